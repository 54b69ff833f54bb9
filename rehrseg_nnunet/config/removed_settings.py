"""Settings that earlier versions had, and what becomes of them in stored plans, which hold every setting of their day.

No network depends on them, so prediction does without, whatever they say. A training would not do what they ask for,
so it takes only plans in which they ask for what is done anyway.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RemovedSetting:
    """What a setting was.

    Attributes:
        default: the value that the code still has.
        since: first version without it.
        why: completes "it was removed because".
    """

    default: Any
    since: str
    why: str


# by path below the block
REMOVED_SETTINGS = {
    "self_sr.label_profile": RemovedSetting(
        "centre", "0.2.0", "labels by majority made neither stage better than labels at the slices' centres"
    ),
    "self_sr.export.keep_volume": RemovedSetting(False, "0.2.0", "labels that keep their volume did not help stage 2"),
    "segmentation.affinity_per_slice": RemovedSetting(
        False, "0.2.0", "one affinity graph per slice was not better than one over the patch"
    ),
}


def drop_old_defaults(block: Any) -> Any:
    """A `rehrseg` block without the removed settings that ask for what is done anyway; anything else is returned."""
    found = _removed_values(block)
    return _without(block, [path for path, value in found.items() if value == REMOVED_SETTINGS[path].default])


def drop_removed(block: Any) -> Any:
    """A `rehrseg` block without removed settings; they are named in a warning, once per process."""
    found = _removed_values(block)
    if found:
        _warn(tuple(found))
    return _without(block, found)


def describe_removed(block: Any, where: str) -> list[str]:
    """For each removed setting in a `rehrseg` block its path below `where`, value, since when, why, and what to do."""
    return [
        f"{where}.{path} {value!r} is no setting since {REMOVED_SETTINGS[path].since}: {REMOVED_SETTINGS[path].why}; "
        f"remove the key from the plans to train with {REMOVED_SETTINGS[path].default!r}, or make plans anew"
        for path, value in _removed_values(block).items()
    ]


def _removed_values(block: Any) -> dict[str, Any]:
    found = {}
    for path in REMOVED_SETTINGS:
        *groups, key = path.split(".")
        group = block
        for name in groups:
            group = group.get(name) if isinstance(group, Mapping) else None
        if isinstance(group, Mapping) and key in group:
            found[path] = group[key]
    return found


def _without(block: Any, paths: Iterable[str]) -> Any:
    result = copy.deepcopy(block)
    for path in paths:
        *groups, key = path.split(".")
        group = result
        for name in groups:
            group = group[name]
        del group[key]
    return result


@cache
def _warn(paths: tuple[str, ...]) -> None:
    logger.warning("the plans have settings that were removed, prediction does without: %s", ", ".join(paths))

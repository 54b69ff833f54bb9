"""Defaults that earlier versions had: what a stored model without the key was trained or predicted with.

Every training writes all settings of its day with the model. A key that is missing there is younger than the model,
which then keeps what the code did before the key came.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# of each block, by path below it
EARLIER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "rehrseg": {"segmentation.hr_from": "mean"},
    "guidance": {"keeper.residual": False},
}


def with_earlier_defaults(block: Any, name: str) -> Any:
    """A stored model's block with what its version did where later ones have a key; what is no block stays.

    Args:
        block: of the model's plans.
        name: `rehrseg` or `guidance`.

    Example:
        >>> with_earlier_defaults({"factor": 4}, "rehrseg")
        {'factor': 4, 'segmentation': {'hr_from': 'mean'}}
        >>> with_earlier_defaults({"segmentation": {"hr_from": "head"}}, "rehrseg")
        {'segmentation': {'hr_from': 'head'}}
    """
    if not isinstance(block, Mapping):
        return block
    result = copy.deepcopy(dict(block))
    for path, value in EARLIER_DEFAULTS[name].items():
        *groups, key = path.split(".")
        group = result
        for part in groups:
            group = group.setdefault(part, {}) if isinstance(group, dict) else None
        if isinstance(group, dict):
            group.setdefault(key, value)
    return result

"""Defaults that earlier versions had: what a stored model without the key was trained or predicted with.

Every training writes all settings of its day with the model. A key that is missing there is younger than the model,
which then keeps what the code did before the key came.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# by path below the block
EARLIER_DEFAULTS = {"segmentation.hr_from": "mean"}


def with_earlier_defaults(block: Any) -> Any:
    """A stored model's `rehrseg` block with what its version did where later ones have a key; what is no block stays.

    Example:
        >>> with_earlier_defaults({"factor": 4})
        {'factor': 4, 'segmentation': {'hr_from': 'mean'}}
        >>> with_earlier_defaults({"segmentation": {"hr_from": "head"}})
        {'segmentation': {'hr_from': 'head'}}
    """
    if not isinstance(block, Mapping):
        return block
    result = copy.deepcopy(dict(block))
    for path, value in EARLIER_DEFAULTS.items():
        *groups, key = path.split(".")
        group = result
        for name in groups:
            group = group.setdefault(name, {}) if isinstance(group, dict) else None
        if isinstance(group, dict):
            group.setdefault(key, value)
    return result

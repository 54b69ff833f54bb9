"""The options of nnU-Net's resampling functions for the slice axis, where they treat it apart from the planes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

KINDS = ("data", "seg", "probabilities")


def set_order_along_z(configuration: dict[str, Any], order: int, *, kinds: Iterable[str] = KINDS) -> None:
    """Change how a configuration of nnU-Net's plans is resampled between slices.

    Plans need not hold the option: a function that knows it gets it.

    Args:
        configuration: one of the plans' `configurations`; its `resampling_fn_<kind>_kwargs` are replaced.
        order: 0 copies the nearest slice, nnU-Net's default; 1 interpolates linearly.
        kinds: what is resampled.
    """
    from nnunetv2.preprocessing.resampling.utils import recursive_find_resampling_fn_by_name

    options = {"order_z": order, "aniso_axis_mode": "linear" if order else "nearest-exact"}
    for kind in kinds:
        function = f"resampling_fn_{kind}"
        if function in configuration:  # not in one that inherits it
            known = inspect.signature(recursive_find_resampling_fn_by_name(configuration[function])).parameters
            kwargs = configuration[f"{function}_kwargs"]
            configuration[f"{function}_kwargs"] = {**kwargs, **{k: v for k, v in options.items() if k in known}}

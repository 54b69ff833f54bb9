"""Both blocks of settings that a plans configuration may have, beside each other or alone.

Each has a module with the same names: `BLOCK` is its key, `parse_block` validates it, `load_config` reads it from a
configuration. A block that is not there has its defaults: no command needs plans of `rehrseg plan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rehrseg_nnunet.config import guidance, rehrseg
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.rehrseg import RehrsegConfig

METHODS = {rehrseg.BLOCK: rehrseg, guidance.BLOCK: guidance}


def parse_blocks(configuration: Mapping[str, Any]) -> dict[str, RehrsegConfig | GuidanceConfig]:
    """Validate the blocks that a configuration has.

    Args:
        configuration: of plans, with or without inheritance resolved.

    Returns:
        The blocks that are there, by name.

    Raises:
        ValueError: names every refused key of the first block that has one.
    """
    return {name: method.parse_block(configuration[name]) for name, method in METHODS.items() if name in configuration}


def blocks_of(plans: Mapping[str, Any]) -> list[str]:
    """Names of the blocks that any configuration of some plans has."""
    configurations = plans["configurations"].values()
    return [name for name in METHODS if any(name in configuration for configuration in configurations)]


def learning_rate_from_trained(configuration: Mapping[str, Any]) -> float:
    """Initial learning rate of a segmentation that starts from a trained network, whatever method it is compared with.

    Args:
        configuration: of the plans, with inheritance resolved.

    Raises:
        ValueError: an invalid block, or two blocks that do not agree.

    Example:
        >>> learning_rate_from_trained({"guidance": {"learning_rate_from_trained": 0.01}})
        0.01
    """
    rates: dict[str, float] = {}
    for name, block in (parse_blocks(configuration) or {rehrseg.BLOCK: RehrsegConfig()}).items():
        if isinstance(block, RehrsegConfig):
            rates[f"{name}.segmentation.learning_rate_from_trained"] = block.segmentation.learning_rate_from_trained
        else:
            rates[f"{name}.learning_rate_from_trained"] = block.learning_rate_from_trained
    if len(set(rates.values())) > 1:
        found = " and ".join(f"{key} {rate:g}" for key, rate in rates.items())
        raise ValueError(f"learning_rate_from_trained must be the same in both blocks, got {found}")
    return next(iter(rates.values()))

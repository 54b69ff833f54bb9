"""Presets: JSON files that add blocks of settings, and if need be a narrower network, to nnU-Net plans."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from importlib.resources import files
from typing import Any

from pydantic import Field, PositiveFloat

from rehrseg_nnunet.config.blocks import METHODS
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.models import StrictModel, validate_block
from rehrseg_nnunet.config.rehrseg import RehrsegConfig


class Preset(StrictModel):
    """One preset file."""

    description: str = Field(description="what the preset is for")
    network_width: PositiveFloat = Field(
        default=1.0, description="factor on every stage's features of the planned U-Net; 1 keeps nnU-Net's network"
    )
    rehrseg: RehrsegConfig = Field(default=RehrsegConfig(), description="the block of this name")
    guidance: GuidanceConfig = Field(default=GuidanceConfig(), description="the block of this name")

    def block(self, method: str) -> dict[str, Any]:
        """The block of a method, without the keys that the preset does not give."""
        return getattr(self, method).model_dump(mode="json", exclude_unset=True)


DEFAULTS = Preset(description="The defaults of every setting")


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    return sorted(entry.name[:-5] for entry in files("rehrseg_nnunet.plans").iterdir() if entry.name.endswith(".json"))


def load_preset(name: str) -> Preset:
    """Read and validate a preset by name.

    Raises:
        ValueError: no such preset, or an invalid file (the keys are named).

    Example:
        >>> load_preset("paper").rehrseg.segmentation.hr_head.upsampling
        'interpolate'
    """
    if name not in preset_names():
        raise ValueError(f"preset must be one of {preset_names()}, got {name!r}")
    content = json.loads(files("rehrseg_nnunet.plans").joinpath(f"{name}.json").read_text())
    return validate_block(content, Preset, name=f"{name}.json")


def apply_preset(
    plans: Mapping[str, Any], preset: Preset, *, plans_name: str, methods: Collection[str] = ("rehrseg",)
) -> dict[str, Any]:
    """Plans with the preset in every configuration that a method can train.

    Those of `rehrseg` are 3d and have thick slices, those of `guidance` are any but cascades. A configuration that
    inherits from another such one has the preset from there; a network of its own gets the width as well.

    Args:
        plans: nnU-Net plans as loaded from JSON; not changed.
        preset: what to add.
        plans_name: name of the new plans; `data_identifier` is kept, so preprocessed data are shared.
        methods: names of the blocks to add.

    Raises:
        ValueError: a method can train no configuration.
    """
    result = add_blocks({**plans, "plans_name": plans_name}, preset, methods=methods)
    trainable = {}
    for method in methods:
        trainable |= trainable_configurations(plans, method)
    for name, resolved in trainable.items():
        configuration = result["configurations"][name]
        if configuration.get("inherits_from") not in trainable or "architecture" in configuration:
            configuration["architecture"] = copy.deepcopy(resolved["architecture"])
            scale_width(configuration["architecture"]["arch_kwargs"], preset.network_width)
    return result


def add_blocks(plans: Mapping[str, Any], preset: Preset, *, methods: Collection[str]) -> dict[str, Any]:
    """Plans with the preset's blocks; networks stay as they are.

    Args:
        plans: nnU-Net plans as loaded from JSON; not changed.
        preset: what to add.
        methods: names of the blocks to add, in the place of those that are there.

    Raises:
        ValueError: a method can train no configuration.
    """
    result = copy.deepcopy(dict(plans))
    for method in methods:
        trainable = trainable_configurations(plans, method)
        for name in trainable:
            configuration = result["configurations"][name]
            if configuration.get("inherits_from") not in trainable or method in configuration:
                configuration[method] = preset.block(method)
    return result


def trainable_configurations(plans: Mapping[str, Any], method: str) -> dict[str, dict[str, Any]]:
    """The configurations that a method can train, by name, with inheritance resolved.

    Raises:
        ValueError: there is none; the message has each one's reason.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(copy.deepcopy(dict(plans)))
    trainable, refusals = {}, []
    for name in plans["configurations"]:
        resolved = manager.get_configuration(name).configuration
        try:
            METHODS[method].load_config({**resolved, method: {}})
        except (ValueError, NotImplementedError) as error:
            refusals.append(f"{name}: {error}")
        else:
            trainable[name] = resolved
    if not trainable:
        wanted = "a thick-slice 3d configuration" if method == "rehrseg" else "a configuration that is no cascade"
        raise ValueError(f"plans must have {wanted}, got {'; '.join(refusals)}")
    return trainable


def scale_width(arch_kwargs: dict[str, Any], width: float) -> None:
    """Make a planned U-Net narrower or wider, in place; no stage gets fewer than 4 features."""
    arch_kwargs["features_per_stage"] = [max(4, round(f * width)) for f in arch_kwargs["features_per_stage"]]

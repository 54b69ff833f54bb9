"""Presets: JSON files that add a `rehrseg` block, and if need be a narrower network, to nnU-Net plans."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from pydantic import Field, PositiveFloat, ValidationError

from rehrseg_nnunet.config.models import StrictModel, describe_errors
from rehrseg_nnunet.config.rehrseg import BLOCK, RehrsegConfig, load_config


class Preset(StrictModel):
    """One preset file."""

    description: str = Field(description="what the preset is for")
    network_width: PositiveFloat = Field(
        default=1.0, description="factor on every stage's features of the planned U-Net; 1 keeps nnU-Net's network"
    )
    rehrseg: RehrsegConfig = Field(default_factory=RehrsegConfig, description="the block")


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
    try:
        return Preset.model_validate(content)
    except ValidationError as error:
        raise ValueError(describe_errors(error, f"{name}.json")) from None


def apply_preset(plans: Mapping[str, Any], preset: Preset, *, plans_name: str) -> dict[str, Any]:
    """Plans with the preset in every 3d configuration that has thick slices.

    One that inherits from another such one has the preset from there; a network of its own gets the width as well.

    Args:
        plans: nnU-Net plans as loaded from JSON; not changed.
        preset: what to add.
        plans_name: name of the new plans; `data_identifier` is kept, so preprocessed data are shared.

    Raises:
        ValueError: no configuration is thick-sliced.
    """
    result = copy.deepcopy(dict(plans))
    result["plans_name"] = plans_name
    configurations = result["configurations"]
    thick = _thick_configurations(plans)
    for name, resolved in thick.items():
        configuration = configurations[name]
        own = configuration.get("inherits_from") not in thick
        if own or BLOCK in configuration:
            configuration[BLOCK] = preset.rehrseg.model_dump(mode="json", exclude_unset=True)
        if own or "architecture" in configuration:
            configuration["architecture"] = copy.deepcopy(resolved["architecture"])
            scale_width(configuration["architecture"]["arch_kwargs"], preset.network_width)
    return result


def _thick_configurations(plans: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations that REHRSeg can train, by name, with inheritance resolved."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(copy.deepcopy(dict(plans)))
    thick, refusals = {}, []
    for name in plans["configurations"]:
        resolved = manager.get_configuration(name).configuration
        try:
            load_config({**resolved, BLOCK: {}})
        except (ValueError, NotImplementedError) as error:
            refusals.append(f"{name}: {error}")
        else:
            thick[name] = resolved
    if not thick:
        raise ValueError(f"plans must have a thick-slice 3d configuration, got {'; '.join(refusals)}")
    return thick


def scale_width(arch_kwargs: dict[str, Any], width: float) -> None:
    """Make a planned U-Net narrower or wider, in place; no stage gets fewer than 4 features."""
    arch_kwargs["features_per_stage"] = [max(4, round(f * width)) for f in arch_kwargs["features_per_stage"]]

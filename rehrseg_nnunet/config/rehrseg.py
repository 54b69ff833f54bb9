"""The `rehrseg` block of an nnU-Net plans configuration: one validated model.

A plans file carries it inside a configuration, beside nnU-Net's own keys::

    "configurations": {"3d_fullres": {..., "rehrseg": {"factor": 4, "self_sr": {"epochs": 600}}}}

Keys that are left out have the defaults below. Each says where its default comes from: the paper (Song et al.), the
authors' released code (github.com/zhiyuns/REHRSeg), or this package (docs/decisions.md has the reason). Unknown keys
and impossible values are refused with the key's name; keys that earlier versions had are in `removed_settings`.
docs/reference/settings.md is generated from here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field

from rehrseg_nnunet.config.changed_defaults import with_earlier_defaults
from rehrseg_nnunet.config.models import OURS, StrictModel, validate_block
from rehrseg_nnunet.config.removed_settings import describe_removed, drop_old_defaults, drop_removed
from rehrseg_nnunet.config.segmentation import SegmentationConfig
from rehrseg_nnunet.config.self_sr import SelfSRConfig
from rehrseg_nnunet.config.smore import SMOREConfig
from rehrseg_nnunet.slices.geometry import check_thick_slices, sr_factor

BLOCK = "rehrseg"


class RehrsegConfig(StrictModel):
    """The whole block."""

    factor: int | None = Field(
        default=None,
        ge=2,
        description="r, HR slices per LR slice; null takes the nearest integer to slice spacing over (geometric mean) "
        "pixel spacing, at least 2. Stage 1 and 2 must agree",
        json_schema_extra=OURS,
    )
    smore: SMOREConfig = Field(
        default=SMOREConfig(),
        description="the interpolation that stage 1 is trained on, where it is wanted",
    )
    self_sr: SelfSRConfig = Field(
        default=SelfSRConfig(),
        description="stage 1",
    )
    segmentation: SegmentationConfig = Field(
        default=SegmentationConfig(),
        description="stage 2",
    )


class ResolvedConfig(RehrsegConfig):
    """The block of a configuration with a known spacing, from `load_config`."""

    factor: int = Field(ge=2, description="r, HR slices per LR slice")

    @property
    def lr_weight(self) -> float:
        """Weight of the LR loss beside the HR loss."""
        wanted = self.segmentation.lr_weight
        if wanted is not None:
            return wanted
        return 1 / self.factor if self.segmentation.input == "thin" else 1.0


Block = TypeVar("Block", bound=RehrsegConfig)


def change_segmentation(config: Block, changes: Mapping[str, Any]) -> Block:
    """The block with other settings of `segmentation`.

    Args:
        config: the block.
        changes: values by key; not `hr_head`, as networks are built from the plans alone.

    Raises:
        ValueError: names every refused key by its path.
    """
    if "hr_head" in changes:
        raise ValueError("changes must leave hr_head as it is in the plans, which the network is built from")
    block = config.model_dump()
    return _validated({**block, "segmentation": {**block["segmentation"], **changes}}, type(config))


def parse_block(block: Mapping[str, Any]) -> RehrsegConfig:
    """Validate a `rehrseg` block.

    Raises:
        ValueError: names every refused key by its path.

    Example:
        >>> block = parse_block({"self_sr": {"epochs": 200}})
        >>> block.self_sr.epochs, block.self_sr.uncertainty_epochs
        (200, 80)
        >>> parse_block({"factor": 4, "epoch": 200})
        Traceback (most recent call last):
        ValueError: rehrseg.epoch: unknown key
    """
    return _validated(block, RehrsegConfig)


def _validated(block: Mapping[str, Any], model: type[Block]) -> Block:
    if removed := describe_removed(block, BLOCK):
        raise ValueError("; ".join(removed))
    return validate_block(block, model, name=BLOCK)


def upgraded_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plans without the removed settings that have their old default: nothing else asks for them again."""
    result = copy.deepcopy(dict(plans))
    for configuration in result["configurations"].values():
        if BLOCK in configuration:
            configuration[BLOCK] = drop_old_defaults(configuration[BLOCK])
    return result


def with_thin_network(plans: Mapping[str, Any], name: str, config: ResolvedConfig) -> dict[str, Any]:
    """Plans whose configuration `name` has the patch, batch and network of `segmentation.thin` in nnU-Net's own keys.

    nnU-Net's commands then take this network like any other.

    Args:
        plans: nnU-Net plans, not changed.
        name: configuration.
        config: its block, which says `input: thin`; it becomes the configuration's.
    """
    result = copy.deepcopy(dict(plans))
    thin = config.segmentation.thin.model_dump(mode="json")
    result["configurations"][name].update(thin, **{BLOCK: config.model_dump(mode="json")})
    return result


def load_config(
    configuration: Mapping[str, Any], *, purpose: Literal["training", "prediction"] = "training"
) -> ResolvedConfig:
    """The `rehrseg` block of a resolved configuration, with `factor` filled in from its spacing.

    Args:
        configuration: `ConfigurationManager.configuration`, i.e. a configuration of the plans with inheritance
            resolved.
        purpose: for "prediction" removed settings are dropped with a warning, and keys that are younger than the model
            have the values of its day; for "training" they are dropped silently, and only with their old default.

    Raises:
        NotImplementedError: a 2d or cascaded configuration.
        ValueError: slices that are not thick, or an invalid block.

    Example:
        >>> load_config({"spacing": (4.0, 1.0, 1.0)}).factor
        4
        >>> load_config({"spacing": (4.0, 1.0, 1.0), "rehrseg": {"factor": 3}}).factor
        3
    """
    if configuration.get("previous_stage") is not None:  # first: no other spacing would help
        raise NotImplementedError(
            "REHRSeg does not support cascades: the previous stage's segmentation has thick slices and cannot be "
            "an input beside pseudo-HR data; train 3d_fullres instead"
        )
    check_thick_slices(configuration["spacing"])
    block = configuration.get(BLOCK, {})
    stored = purpose == "prediction"
    config = parse_block(with_earlier_defaults(drop_removed(block), BLOCK) if stored else drop_old_defaults(block))
    return ResolvedConfig(**{**dict(config), "factor": config.factor or sr_factor(configuration["spacing"])})

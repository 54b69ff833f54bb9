"""The `rehrseg` block of an nnU-Net plans configuration: one validated model.

A plans file carries it inside a configuration, beside nnU-Net's own keys::

    "configurations": {"3d_fullres": {..., "rehrseg": {"factor": 4, "self_sr": {"epochs": 600}}}}

Keys that are left out have the defaults below. Each says where its default comes from: the paper, the authors' released
code, or this package (docs/decisions.md has the reason). Unknown keys and impossible values are refused with the key's
name; keys that earlier versions had are in `removed_settings`. docs/reference/settings.md is generated from here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator
from pydantic.config import JsonDict

from rehrseg_nnunet.config.models import StrictModel, describe_errors
from rehrseg_nnunet.config.removed_settings import describe_removed, drop_old_defaults, drop_removed
from rehrseg_nnunet.slices.geometry import check_thick_slices, sr_factor

BLOCK = "rehrseg"
# Where a default comes from.
PAPER: JsonDict = {"source": "paper"}
RELEASE: JsonDict = {"source": "released code"}  # github.com/zhiyuns/REHRSeg; the paper does not give the value
OURS: JsonDict = {"source": "this package"}
DistillationKind = Literal["correlation+spatial", "correlation", "spatial", "mimic", "ifvd"]


class ExportConfig(StrictModel):
    """How pseudo-HR cases are made with the trained stage-1 network; none of it is in the paper."""

    image: Literal["self_sr", "smore"] = Field(
        default="self_sr",
        description="where the image comes from; `smore` takes SMORE's and needs SMORETrainer of the same fold. "
        "Labels and U are the self-SR network's either way",
        json_schema_extra=OURS,
    )
    back_projection_steps: int = Field(
        default=2,
        ge=0,
        description="steps that bring the image, made thick again, closer to the acquired one",
        json_schema_extra=OURS,
    )


class SelfSRConfig(StrictModel):
    """Stage 1, self-supervised super-resolution (paper sections 3.2 and 4.2)."""

    base_features: PositiveInt = Field(
        default=64,
        description="width of FLAVR's first stage; 64 loads the published checkpoint (`rehrseg convert-flavr`)",
        json_schema_extra=PAPER,
    )
    candidates: PositiveInt = Field(
        default=16,
        description="N of the uncertainty-aware head (Eq. 2)",
        json_schema_extra=RELEASE,
    )
    image_mode: Literal["residual", "direct"] = Field(
        default="residual",
        description="`residual` predicts the residual to the linear interpolation of the two middle slices, `direct` "
        "the image itself (Eq. 4)",
        json_schema_extra=OURS,
    )
    label_mode: Literal["residual", "direct"] = Field(
        default="residual",
        description="`residual` predicts what is added to the interpolated shapes of the window's labels, `direct` "
        "the labels themselves (Eq. 4)",
        json_schema_extra=OURS,
    )
    batch_size: PositiveInt = Field(
        default=64,
        description="windows per step",
        json_schema_extra=PAPER,
    )
    patch_size: tuple[PositiveInt, PositiveInt] = Field(
        default=(64, 64),
        description="in-plane size of a training window, HR pixels (the released code has 96 x 96)",
        json_schema_extra=OURS,
    )
    epochs: PositiveInt = Field(
        default=600,
        description="epochs of both phases together; one epoch is 250 steps, as in nnU-Net (paper: 150,000 steps)",
        json_schema_extra=PAPER,
    )
    uncertainty_epochs: int = Field(
        default=80,
        ge=0,
        description="last epochs, in which Eq. 6 is added (paper: 20,000 steps); a training of another length keeps "
        "the share",
        json_schema_extra=PAPER,
    )
    learning_rate: PositiveFloat = Field(
        default=2e-4,
        description="peak of each phase's one-cycle schedule, Adam (the released code has 5e-4)",
        json_schema_extra=OURS,
    )
    simulated_axes: tuple[Literal["y", "x"], ...] = Field(
        default=("x", "y"),
        min_length=1,
        description="in-plane axes along which thick slices are simulated for training (paper: x); with one axis, "
        "validation watches the other",
        json_schema_extra=RELEASE,
    )
    scaling: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.8, 1.25),
        description="range of in-plane zoom for augmentation",
        json_schema_extra=OURS,
    )
    scaling_probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of windows that are zoomed",
        json_schema_extra=OURS,
    )
    export: ExportConfig = Field(
        default=ExportConfig(),
        description="how pseudo-HR cases are made",
    )

    @model_validator(mode="after")
    def _phases_fit(self) -> SelfSRConfig:
        if self.uncertainty_epochs >= self.epochs:
            raise ValueError(
                f"uncertainty_epochs must be smaller than epochs, got {self.uncertainty_epochs} of {self.epochs}"
            )
        if self.scaling[0] > self.scaling[1]:
            raise ValueError(f"scaling must be (smallest, largest), got {self.scaling}")
        return self


class HRHeadConfig(StrictModel):
    """HR segmentation head (paper section 4.2): the last features, conv, ReLU, conv."""

    label_mode: Literal["residual", "direct"] = Field(
        default="residual",
        description="`residual` predicts what is added to the LR logits, interpolated along z, `direct` the HR logits "
        "themselves",
        json_schema_extra=OURS,
    )
    upsampling: Literal["interpolate", "subpixel"] = Field(
        default="subpixel",
        description="`subpixel` lets the first convolution predict r slices for each LR slice, `interpolate` "
        "interpolates the features along z before it",
        json_schema_extra=OURS,
    )
    hidden_features: PositiveInt = Field(
        default=16,
        description="channels between the two convolutions",
        json_schema_extra=RELEASE,
    )
    first_kernel: PositiveInt = Field(
        default=3,
        description="edge of the first kernel, odd",
        json_schema_extra=RELEASE,
    )
    second_kernel: PositiveInt = Field(
        default=5,
        description="edge of the second kernel, odd",
        json_schema_extra=RELEASE,
    )

    @model_validator(mode="after")
    def _odd(self) -> HRHeadConfig:
        for key in ("first_kernel", "second_kernel"):
            if getattr(self, key) % 2 == 0:
                raise ValueError(f"{key} must be odd, got {getattr(self, key)}")
        return self


class SegmentationConfig(StrictModel):
    """Stage 2, segmentation (paper sections 3.3 to 3.6)."""

    distillation: DistillationKind = Field(
        default="correlation+spatial",
        description="what is distilled from stage 1: Eq. 9 and 10, one of the two, or what the paper's Table 6 "
        "compares with (`mimic`, mean squared difference of features; `ifvd`, how features vary inside a "
        "class)",
        json_schema_extra=PAPER,
    )
    distillation_weight: float = Field(
        default=1.0,
        ge=0,
        description="lambda of Eq. 11, the weight of the distillation loss (what stage 1's encoder teaches); 0 trains "
        "without a teacher",
        json_schema_extra=PAPER,
    )
    affinity_pool: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        default=(1, 2, 2),
        description="voxels per node of the affinity graph (beta)",
        json_schema_extra=PAPER,
    )
    uncertainty_weighting: bool = Field(
        default=True,
        description="weight the LR cross-entropy by 1 - 0.99 U (Eq. 7; 0.99 is the released code's)",
        json_schema_extra=PAPER,
    )
    lr_dice_weight: float = Field(
        default=1.0,
        ge=0,
        description="weight of a Dice term, not weighted by U, in the LR loss (Eq. 11 has none)",
        json_schema_extra=OURS,
    )
    true_lr_probability: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of the patches whose LR input is the true acquisition with its true label; the others are "
        "pseudo-HR cases made thick again at a random phase (Eq. 1)",
        json_schema_extra=OURS,
    )
    hr_head: HRHeadConfig = Field(
        default=HRHeadConfig(),
        description="the HR head",
    )
    learning_rate_from_trained: PositiveFloat = Field(
        default=1e-3,
        description="SGD's initial learning rate, in ContinuedBaselineTrainer too, when training starts from a "
        "trained network; else it is nnU-Net's",
        json_schema_extra=RELEASE,
    )


class SMOREConfig(StrictModel):
    """SMORE, a learnt interpolation that stage 1 can be trained on (paper section 4.4.1); optional, before stage 1."""

    blocks: PositiveInt = Field(
        default=16,
        description="residual blocks of the 2D network",
        json_schema_extra=RELEASE,
    )
    features: PositiveInt = Field(
        default=32,
        description="its width",
        json_schema_extra=RELEASE,
    )
    batch_size: PositiveInt = Field(
        default=32,
        description="slices per step",
        json_schema_extra=RELEASE,
    )
    patch_size: tuple[PositiveInt, PositiveInt] = Field(
        default=(64, 64),
        description="HR pixels of a training slice, along the simulated axis (cut to a multiple of r) and across (the "
        "released code has 96 x 96)",
        json_schema_extra=OURS,
    )
    epochs: PositiveInt = Field(
        default=100,
        description="epochs of 250 steps (the released code takes 260,000 steps)",
        json_schema_extra=OURS,
    )
    learning_rate: PositiveFloat = Field(
        default=1e-3,
        description="peak of the one-cycle schedule, Adam (the released code has 5e-4)",
        json_schema_extra=OURS,
    )


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
    try:
        return model.model_validate(dict(block) if isinstance(block, Mapping) else block)
    except ValidationError as error:
        raise ValueError(describe_errors(error, BLOCK)) from None


def upgraded_plans(plans: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of plans without the removed settings that have their old default: nothing else asks for them again."""
    result = copy.deepcopy(dict(plans))
    for configuration in result["configurations"].values():
        if BLOCK in configuration:
            configuration[BLOCK] = drop_old_defaults(configuration[BLOCK])
    return result


def load_config(
    configuration: Mapping[str, Any], *, purpose: Literal["training", "prediction"] = "training"
) -> ResolvedConfig:
    """The `rehrseg` block of a resolved configuration, with `factor` filled in from its spacing.

    Args:
        configuration: `ConfigurationManager.configuration`, i.e. a configuration of the plans with inheritance
            resolved.
        purpose: removed settings are dropped with a warning for "prediction"; for "training" silently, and only with
            their old default.

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
    drop = drop_removed if purpose == "prediction" else drop_old_defaults
    config = parse_block(drop(configuration.get(BLOCK, {})))
    return ResolvedConfig(**{**dict(config), "factor": config.factor or sr_factor(configuration["spacing"])})

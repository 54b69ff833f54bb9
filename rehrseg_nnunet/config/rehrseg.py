"""The `rehrseg` block of an nnU-Net plans configuration: one validated model.

A plans file carries it inside a configuration, beside nnU-Net's own keys::

    "configurations": {"3d_fullres": {..., "rehrseg": {"factor": 4, "self_sr": {"epochs": 600}}}}

Keys that are left out have the defaults below: the paper's values, or others where docs/decisions.md has the figures
for them (the preset `paper` has the paper's). Unknown keys and impossible values are refused with the key's name. Keys
that earlier versions had are in `removed_settings`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from rehrseg_nnunet.config.removed_settings import describe_removed, drop_old_defaults, drop_removed
from rehrseg_nnunet.slices.geometry import check_thick_slices, sr_factor

BLOCK = "rehrseg"
DistillationKind = Literal["correlation+spatial", "correlation", "spatial", "mimic", "ifvd"]


class StrictModel(BaseModel):
    """Immutable model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExportConfig(StrictModel):
    """How pseudo-HR cases are made with the trained stage-1 network; none of it is in the paper.

    Attributes:
        image: where the image comes from, "self_sr", or "smore", which needs SMORETrainer of the same fold. Labels and
            U are the network's either way.
        back_projection_steps: steps that bring the image, made thick again, closer to the acquired one.
    """

    image: Literal["self_sr", "smore"] = "self_sr"
    back_projection_steps: int = Field(default=2, ge=0)


class SelfSRConfig(StrictModel):
    """Stage 1, self-supervised super-resolution (paper sections 3.2 and 4.2).

    Attributes:
        base_features: width of FLAVR's first stage; 64 loads the published checkpoint.
        candidates: N of the uncertainty-aware head (Eq. 2).
        image_mode: "residual" predicts the residual to the linear interpolation of the two middle slices, "direct" the
            image itself (Eq. 4).
        label_mode: "residual" predicts what is added to the interpolated shapes of the window's labels, "direct" the
            labels themselves (Eq. 4).
        batch_size: windows per step.
        patch_size: in-plane size of a training window, HR pixels.
        epochs: epochs of the first phase plus the uncertainty phase; one epoch is 250 steps, as in nnU-Net.
        uncertainty_epochs: final epochs in which Eq. 6 is added (paper: 20,000 of 150,000 steps).
        learning_rate: peak of each phase's one-cycle schedule (Adam).
        simulated_axes: in-plane axes along which thick slices are simulated for training.
        scaling: range of in-plane zoom for augmentation.
        scaling_probability: share of windows that are zoomed.
        export: how pseudo-HR cases are made.
    """

    base_features: PositiveInt = 64
    candidates: PositiveInt = 16
    image_mode: Literal["residual", "direct"] = "residual"
    label_mode: Literal["residual", "direct"] = "residual"
    batch_size: PositiveInt = 64
    patch_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    epochs: PositiveInt = 600
    uncertainty_epochs: int = Field(default=80, ge=0)
    learning_rate: PositiveFloat = 2e-4
    simulated_axes: tuple[Literal["y", "x"], ...] = Field(default=("x", "y"), min_length=1)
    scaling: tuple[PositiveFloat, PositiveFloat] = (0.8, 1.25)
    scaling_probability: float = Field(default=0.5, ge=0, le=1)
    export: ExportConfig = ExportConfig()

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
    """HR segmentation head (paper section 4.2): the last features, conv, ReLU, conv.

    Attributes:
        label_mode: "residual" predicts what is added to the LR logits, interpolated along z, "direct" the HR logits
            themselves, as in the paper.
        upsampling: let the first convolution predict r slices for each LR slice ("subpixel"), or "interpolate" the
            features along z before it, as in the paper.
        hidden_features: channels between the two convolutions.
        first_kernel: edge of the first kernel, odd.
        second_kernel: edge of the second kernel, odd.
    """

    label_mode: Literal["residual", "direct"] = "residual"
    upsampling: Literal["interpolate", "subpixel"] = "subpixel"
    hidden_features: PositiveInt = 16
    first_kernel: PositiveInt = 3
    second_kernel: PositiveInt = 5

    @model_validator(mode="after")
    def _odd(self) -> HRHeadConfig:
        for key in ("first_kernel", "second_kernel"):
            if getattr(self, key) % 2 == 0:
                raise ValueError(f"{key} must be odd, got {getattr(self, key)}")
        return self


class SegmentationConfig(StrictModel):
    """Stage 2, segmentation (paper sections 3.3 to 3.6).

    Attributes:
        distillation: what is distilled from stage 1: "correlation+spatial" (Eq. 9 and 10), one of the two, or what the
            paper's Table 6 compares with, "mimic" or "ifvd".
        distillation_weight: lambda of Eq. 11; 0 trains without a teacher.
        affinity_pool: voxels aggregated to a node of the affinity graph (beta = 1 x 2 x 2).
        uncertainty_weighting: weight the LR cross-entropy by 1 - 0.99 U (Eq. 7).
        lr_dice_weight: weight of a Dice term, not weighted by U, in the LR loss (Eq. 11 has none).
        true_lr_probability: share of the patches whose LR input is the true acquisition with its true label; the others
            are pseudo-HR cases made thick again at a random phase (Eq. 1).
        hr_head: the HR head.
        learning_rate_from_trained: SGD's initial learning rate when training starts from a trained network.
    """

    distillation: DistillationKind = "correlation+spatial"
    distillation_weight: float = Field(default=1.0, ge=0)
    affinity_pool: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 2)
    uncertainty_weighting: bool = True
    lr_dice_weight: float = Field(default=1.0, ge=0)
    true_lr_probability: float = Field(default=0.5, ge=0, le=1)
    hr_head: HRHeadConfig = HRHeadConfig()
    learning_rate_from_trained: PositiveFloat = 1e-3


class SMOREConfig(StrictModel):
    """SMORE, a learnt interpolation that stage 1 can be trained on (paper section 4.4.1).

    Attributes:
        blocks: residual blocks of the 2D network.
        features: its width.
        batch_size: slices per step.
        patch_size: HR pixels of a training slice, along the simulated axis and across; the first is cut to a multiple
            of r.
        epochs: epochs of 250 steps.
        learning_rate: peak of the one-cycle schedule (Adam).
    """

    blocks: PositiveInt = 16
    features: PositiveInt = 32
    batch_size: PositiveInt = 32
    patch_size: tuple[PositiveInt, PositiveInt] = (64, 64)
    epochs: PositiveInt = 100
    learning_rate: PositiveFloat = 1e-3


class RehrsegConfig(StrictModel):
    """The whole block.

    Attributes:
        factor: r, HR slices per LR slice; None takes max(2, round(c / sqrt(a_y a_x))) from the plans' spacing.
        smore: the interpolation that stage 1 is trained on, where it is wanted.
        self_sr: stage 1.
        segmentation: stage 2.
    """

    factor: int | None = Field(default=None, ge=2)
    smore: SMOREConfig = SMOREConfig()
    self_sr: SelfSRConfig = SelfSRConfig()
    segmentation: SegmentationConfig = SegmentationConfig()


def change_segmentation(config: RehrsegConfig, changes: Mapping[str, Any]) -> RehrsegConfig:
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
    return parse_block({**block, "segmentation": {**block["segmentation"], **changes}})


def describe_errors(error: ValidationError, where: str) -> str:
    """One line for all problems of a validation, each with its key's path below `where`."""
    problems = []
    for problem in error.errors():
        key = ".".join(str(part) for part in (where, *problem["loc"]))
        if problem["type"] == "extra_forbidden":
            problems.append(f"{key}: unknown key")
        elif problem["type"] == "value_error" and "ctx" in problem:  # this module's own, which say what they got
            problems.append(f"{key}: {problem['ctx']['error']}")
        else:
            problems.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(problems)


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
    if removed := describe_removed(block, BLOCK):
        raise ValueError("; ".join(removed))
    try:
        return RehrsegConfig.model_validate(dict(block) if isinstance(block, Mapping) else block)
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
) -> RehrsegConfig:
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
    if config.factor is None:
        config = config.model_copy(update={"factor": sr_factor(configuration["spacing"])})
    return config

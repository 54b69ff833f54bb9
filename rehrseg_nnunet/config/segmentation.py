"""Settings of stage 2, `segmentation` in the `rehrseg` block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rehrseg_nnunet.config.models import OURS, PAPER, RELEASE, StrictModel

DistillationKind = Literal["correlation+spatial", "correlation", "spatial", "mimic", "ifvd"]
HRSource = Literal["head", "lr", "mean"]


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
        description="weight the LR cross-entropy by 1 - `uncertainty_strength` U (Eq. 7)",
        json_schema_extra=PAPER,
    )
    uncertainty_strength: float = Field(
        default=0.99,
        ge=0,
        le=1,
        description="how much less the most uncertain voxel counts (paper: 1, not at all)",
        json_schema_extra=RELEASE,
    )
    hr_uncertainty_weighting: bool = Field(
        default=False,
        description="weight the HR cross-entropy likewise, by U of the thin slices (Eq. 11 does not)",
        json_schema_extra=OURS,
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
    # Stored models without the key must keep predicting the mean, whatever becomes the default of new trainings.
    hr_from: HRSource = Field(
        default="mean",
        description="what `rehrseg predict` takes thin slices from, unless `--hr_from` says otherwise: the HR `head`, "
        "the `lr` logits interpolated along z, or the `mean` of both",
        json_schema_extra=OURS,
    )
    learning_rate_from_trained: PositiveFloat = Field(
        default=1e-3,
        description="SGD's initial learning rate, in ContinuedBaselineTrainer too, when training starts from a "
        "trained network; else it is nnU-Net's",
        json_schema_extra=RELEASE,
    )

"""Settings of stage 2, `segmentation` in the `rehrseg` block."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rehrseg_nnunet.config.models import OURS, PAPER, RELEASE, StrictModel
from rehrseg_nnunet.slices.geometry import InterpolationKind

DistillationKind = Literal["correlation+spatial", "correlation", "spatial", "mimic", "ifvd"]
HRSource = Literal["head", "lr", "mean"]
InputKind = Literal["thick", "thin"]


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


class ThinNetworkConfig(StrictModel):
    """The network of `input: thin`, written by `rehrseg plan --input thin`: nnU-Net's keys, planned for thin slices."""

    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = Field(
        default=None,
        description="patch in thick slices, rows and columns; the network sees r times as many slices",
        json_schema_extra=OURS,
    )
    batch_size: PositiveInt | None = Field(
        default=None,
        description="patches a step",
        json_schema_extra=OURS,
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="nnU-Net's `architecture`",
        json_schema_extra=OURS,
    )


class SegmentationConfig(StrictModel):
    """Stage 2, segmentation (paper sections 3.3 to 3.6)."""

    input: InputKind = Field(
        default="thick",
        description="what the network sees: `thick` slices, with an HR head behind it (the paper's), or `thin` ones, "
        "interpolated first (quality mode: r times the voxels)",
        json_schema_extra=PAPER,
    )
    thin: ThinNetworkConfig = Field(
        default=ThinNetworkConfig(),
        description="the network of `input: thin`",
    )
    interpolation: InterpolationKind = Field(
        default="spline",
        description="how `input: thin` interpolates the thick slices: a cubic `spline` through them, or `smooth`, the "
        "B-spline without prefilter, which hardly shows where they were",
        json_schema_extra=OURS,
    )

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
    centre_features: bool = Field(
        default=False,
        description="subtract each channel's mean over the batch before Eq. 9 and 10, which a constant solves nearly "
        "as well as the teacher's own features (Eq. 8 has none of it)",
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
    lr_weight: PositiveFloat | None = Field(
        default=None,
        description="weight of the LR loss beside the HR loss (Eq. 11: 1); null is 1, but 1/r with `input: thin`: LR "
        "logits are then those of 1 or 2 of r thin slices, which would be learnt almost alone",
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
    exact_pair_probability: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the patches that are true acquisitions turned so that an in-plane axis becomes the slice "
        "axis, which is then made thick (Eq. 1): on the acquired planes the labels between the new thick slices are "
        "exact; nothing else of these patches counts",
        json_schema_extra=OURS,
    )
    hr_head: HRHeadConfig = Field(
        default=HRHeadConfig(),
        description="the HR head",
    )
    hr_from: HRSource = Field(  # models without the key: `changed_defaults`
        default="lr",
        description="what `rehrseg predict` takes thin slices from, unless `--hr_from` says otherwise: the HR `head`, "
        "the `lr` logits interpolated along z, or the `mean` of both; with `input: thin` it is the network itself",
        json_schema_extra=OURS,
    )
    learning_rate_from_trained: PositiveFloat = Field(
        default=1e-3,
        description="SGD's initial learning rate, in ContinuedBaselineTrainer too, when training starts from a "
        "trained network; else it is nnU-Net's",
        json_schema_extra=RELEASE,
    )

    @property
    def hr_source(self) -> HRSource:
        """What `rehrseg predict` takes thin slices from if it is not told: a network that sees them says it itself."""
        return "head" if self.input == "thin" else self.hr_from

    @model_validator(mode="after")
    def _thin_is_planned(self) -> SegmentationConfig:
        if self.input == "thin" and None in self.thin.model_dump().values():
            raise ValueError("input thin needs the keys of `thin`, which `rehrseg plan --input thin -o NAME` writes")
        return self

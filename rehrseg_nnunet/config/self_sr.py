"""Settings of stage 1, `self_sr` in the `rehrseg` block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rehrseg_nnunet.config.models import OURS, PAPER, RELEASE, StrictModel


class ExportConfig(StrictModel):
    """How pseudo-HR cases are made with the trained stage-1 network; none of it is in the paper."""

    image: Literal["self_sr", "smore"] = Field(
        default="self_sr",
        description="where the image comes from; `smore` takes SMORE's and needs SMORETrainer of the same fold. "
        "Labels and U are the self-SR network's either way",
        json_schema_extra=OURS,
    )
    uncertainty: Literal["entropy", "calibrated", "normalised"] = Field(
        default="entropy",
        description="what stage 2 gets as U: `entropy` and `calibrated` the probability that the pseudo label is "
        "wrong, as measured on simulated pairs of validation cases, for the entropy of the label's probabilities and "
        "for the network's U (Eq. 5); `normalised` the network's U between each case's own extremes (Eq. 7)",
        json_schema_extra=OURS,
    )
    volume_offsets: bool = Field(
        default=True,
        description="one logit offset a class for each case, with which its pseudo labels have r times the voxels of "
        "its thick-slice labels; without, they came out 3 % too large",
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
    smooth_upsampling: bool = Field(
        default=True,
        description="smooth the decoder's last upsampling over 3 x 3 pixels; without, outputs have a checkerboard",
        json_schema_extra=OURS,
    )
    uncertainty_error: Literal["image", "labels", "both"] = Field(
        default="labels",
        description="the error that U learns (Eq. 6): of the image, or how likely the label is wrong, or their mean",
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
    label_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of training windows without labels, in input and loss: stage 1 then also serves images "
        "that nobody annotated",
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

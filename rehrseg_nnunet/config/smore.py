"""Settings of SMORE, `smore` in the `rehrseg` block."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from rehrseg_nnunet.config.models import OURS, RELEASE, StrictModel


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

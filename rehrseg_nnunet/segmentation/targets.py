"""What the loss of a patch needs beside its LR labels, in the order in which the loader batches it behind them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PatchTargets(NamedTuple):
    """The last entries of a training batch's target list; the LR labels, one per deep-supervision scale, come first.

    Attributes:
        hr: HR labels (B, 1 or regions, r*D, H, W).
        uncertainty: norm of the downsampled U (Eq. 7), (B, 1, D, H, W) float32 in [0, 1]; 0 on true acquisitions.
        image: what stage 1's encoder sees (B, C, D, H, W): the LR image where it was moved to, with its intensities as
            acquired, in the case's unit (`IntensityUnit`).
        inside: (B, 1, D, 1, 1) bool, False for slices that are padding alone.
        hr_uncertainty: norm of U, (B, 1, r*D, H, W) float32 in [0, 1]; empty unless the HR loss is weighted.
    """

    hr: Tensor
    uncertainty: Tensor
    image: Tensor
    inside: Tensor
    hr_uncertainty: Tensor


FIELDS = tuple(PatchTargets.__annotations__)

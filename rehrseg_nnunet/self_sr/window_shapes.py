"""Shape-based interpolation of a window's labels inside the self-SR network.

The same as `rehrseg_nnunet.slices.shape_interpolation` does for whole volumes, with distances up to a limit, in
tensors: it runs where the network runs, on every window of every step.
"""

from __future__ import annotations

import torch
from torch import nn

from rehrseg_nnunet.nnunet.precision import without_autocast
from rehrseg_nnunet.self_sr.flavr import SLICES
from rehrseg_nnunet.slices.slice_profile import interpolation_matrix

# Pixels; e**-16 is what a softmax then leaves for a label whose boundary is as far away on the other side.
REACH = 8


class ShapeInterpolation(nn.Module):
    """Signed distances of a window's labels, interpolated at the target slices, as logits.

    Distances are in pixels, positive inside, and at most `REACH` either way; pixels are taken for square and slices
    for r of them apart. Their weight, one number for all labels, is trained and starts at 1.

    Args:
        factor: r.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        first = factor + factor // 2
        taps = interpolation_matrix(SLICES, factor, 3)[first : first + factor]
        self.register_buffer("taps", taps.float(), persistent=False)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """(B, K, 4, H, W), 1 inside the label, to (B, K, r, H, W)."""
        with torch.no_grad(), without_autocast(labels.device.type):
            distances = signed_distances(labels > 0.5, (self.factor, 1, 1), reach=REACH).to(labels.dtype)
            fine = torch.einsum("rs,bkshw->bkrhw", self.taps.to(labels.dtype), distances)
        return self.weight * fine


def signed_distances(masks: torch.Tensor, spacing: tuple[int, int, int], *, reach: int) -> torch.Tensor:
    """Signed Euclidean distances to the nearest voxel of the other side, exact up to a limit, float32.

    Args:
        masks: (..., D, H, W) boolean.
        spacing: distance between neighbouring voxels along the three axes, in one unit.
        reach: the limit, in that unit; what is farther away is `reach` away.

    Returns:
        (..., D, H, W), positive inside.
    """
    # the squared distance is the sum over the axes, so the nearest voxel is found along one axis after the other
    squared = torch.stack((masks, ~masks)).float() * reach**2
    for axis, step in zip((-1, -2, -3), reversed(spacing), strict=True):
        squared = _nearest_along(squared, axis, step, reach)
    inside, outside = squared.sqrt()
    return inside - outside


def _nearest_along(squared: torch.Tensor, axis: int, step: int, reach: int) -> torch.Tensor:
    """Smallest squared distance by way of the voxels up to `reach` away along one axis."""
    nearest, size = squared.clone(), squared.shape[axis]
    for shift in range(1, min(reach // step, size - 1) + 1):
        further = squared + (shift * step) ** 2
        rest = size - shift
        nearest.narrow(axis, shift, rest).clamp_(max=further.narrow(axis, 0, rest))
        nearest.narrow(axis, 0, rest).clamp_(max=further.narrow(axis, shift, rest))
    return nearest

"""Position-aware recalibration (PRM) of features, by where they are most active (IJCAI 2020)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from rehrseg_nnunet.nnunet.precision import at_least_float32, without_autocast

STABILISER = 1e-5
# The context's variance below which no gradient comes through its square root, which has none at 0.
SMALLEST_VARIANCE = 1e-12
SMALLEST_SCALE = 1e-3


class PositionRecalibration(nn.Module):
    """Weigh every voxel by how its features agree with the most active voxel's and with the mean's.

    With x(p) the features at voxel p and p* the voxel with the largest sum of channels:

        s_max(p) = <x(p), x(p*)> * mean over axes a of N(theta_a |p_a - p*_a|; 0, scale)
        s_gap(p) = <x(p), mean x>
        s = zero * s_max + one * s_gap,   context = (s - mean s) / (sd s + 1e-5)
        out(p) = x(p) * sigmoid(weight * context(p) + bias)

    N is the normal density, distances are in voxels of the features' grid, and sd is over the voxels of a sample. It
    starts with weight 0 and bias 1, a factor of sigmoid(1) everywhere; theta, scale, zero and one are taught from the
    second step on. Flipping the input flips the output.

    Args:
        dimension: number of spatial axes.
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.rand(dimension))
        self.scale = nn.Parameter(torch.ones(()))
        self.zero = nn.Parameter(torch.zeros(()))
        self.one = nn.Parameter(torch.ones(()))
        self.weight = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.ones(()))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, *size) to the same, in the same precision; its sums are in at least float32."""
        with without_autocast(features.device.type):
            similarity = self._similarity(at_least_float32(features))
            factor = torch.sigmoid(self.weight * _normalised(similarity) + self.bias)
        return features * factor.unsqueeze(1).to(features.dtype)

    def _similarity(self, features: torch.Tensor) -> torch.Tensor:
        """S, (B, *size)."""
        size = features.shape[2:]
        voxels = features.flatten(2)
        peak = voxels.sum(dim=1).argmax(dim=1)
        at_peak = voxels.gather(2, peak.view(-1, 1, 1).expand(-1, voxels.shape[1], 1)).squeeze(2)
        queries = torch.stack([at_peak, voxels.mean(dim=2)], dim=1)
        to_peak, to_mean = torch.bmm(queries, voxels).unflatten(2, size).unbind(dim=1)
        return self.zero * to_peak * self._closeness(peak, size) + self.one * to_mean

    def _closeness(self, peak: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Mean over axes of the density of the distance to the peak (flat index, (B,)): (B, *size)."""
        scale = self.scale.abs().clamp_min(SMALLEST_SCALE)
        total: torch.Tensor | float = 0.0
        for axis, voxels in enumerate(size):
            position = peak // math.prod(size[axis + 1 :]) % voxels
            distance = torch.arange(voxels, device=peak.device) - position[:, None]
            density = torch.exp(-0.5 * (self.theta[axis] * distance / scale) ** 2)
            total = total + density.view(-1, *(voxels if a == axis else 1 for a in range(len(size))))
        return total / (len(size) * scale * math.sqrt(2 * math.pi))


def _normalised(values: torch.Tensor) -> torch.Tensor:
    """Each sample of (B, *size) with mean 0 and standard deviation 1; 0 where all are equal."""
    axes = tuple(range(1, values.ndim))
    variance, mean = torch.var_mean(values, axes, correction=0, keepdim=True)
    return (values - mean) / (variance.clamp_min(SMALLEST_VARIANCE).sqrt() + STABILISER)

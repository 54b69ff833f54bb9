"""Level restoration: a patch's mean and standard deviation go around the network instead of through it.

Instance normalisation makes teacher and keeper blind to the level and the scale of a patch. On whole volumes of one
histogram that does not matter. On patches they could not know how bright their patch is: an L1 loss could not be
fitted, and synthesised patches would not join. The paper works on whole volumes and has no such step.

Convention:
    Means and standard deviations are over all voxels of a patch, of each sample and channel, biased, in at least
    float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.nnunet.precision import at_least_float32, without_autocast

# Far below the contrast of any normalised image: only what is constant comes here.
SMALLEST_STD = 1e-6


class PatchLevel(NamedTuple):
    """Level and scale of a patch.

    Attributes:
        mean: (B, C, 1, ...).
        std: (B, C, 1, ...), 0 for a constant patch.
    """

    mean: torch.Tensor
    std: torch.Tensor


def patch_level(image: torch.Tensor) -> PatchLevel:
    """Mean and standard deviation of every channel of (B, C, *size), without gradient."""
    axes = tuple(range(2, image.ndim))
    variance, mean = torch.var_mean(at_least_float32(image.detach()), axes, correction=0, keepdim=True)
    return PatchLevel(mean, variance.sqrt())


def standardise(image: torch.Tensor, level: PatchLevel) -> torch.Tensor:
    """(B, C, *size) with mean 0 and standard deviation 1 for its own level; a constant patch becomes 0."""
    return (at_least_float32(image) - level.mean) / level.std.clamp_min(SMALLEST_STD)


def restore(image: torch.Tensor, level: PatchLevel) -> torch.Tensor:
    """(B, C, *size) with a level: the inverse of `standardise`. With a standard deviation of 0 it is the mean."""
    return at_least_float32(image) * level.std + level.mean


class PatchLevelMap(nn.Module):
    """From the level of a source patch to that of the privileged patch, which prediction does not have.

    mean_j = sum_i a_ji mean_i + b_j and log std_j = sum_i c_ji log std_i + d_j, over source channels i: four numbers
    for one channel on either side. It starts as the identity, or as the channels' (geometric) mean if they are several.

    Args:
        source_channels: number of i.
        privileged_channels: number of j.
    """

    def __init__(self, source_channels: int, privileged_channels: int) -> None:
        super().__init__()
        self.mean = nn.Linear(source_channels, privileged_channels)
        self.log_std = nn.Linear(source_channels, privileged_channels)
        for layer in (self.mean, self.log_std):
            nn.init.constant_(layer.weight, 1 / source_channels)
            nn.init.zeros_(layer.bias)

    def forward(self, level: PatchLevel) -> PatchLevel:
        """Level of (B, source_channels, 1, ...) to (B, privileged_channels, 1, ...)."""
        with without_autocast(level.mean.device.type):
            mean = _channels_through(self.mean, level.mean)
            log_std = _channels_through(self.log_std, level.std.clamp_min(SMALLEST_STD).log())
        return PatchLevel(mean, log_std.exp())


def _channels_through(layer: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    """Apply a layer to the channels of (B, C, 1, ...)."""
    weight, bias = layer.weight.to(values.dtype), layer.bias.to(values.dtype)
    return functional.linear(values.flatten(1), weight, bias).view(len(values), -1, *values.shape[2:])

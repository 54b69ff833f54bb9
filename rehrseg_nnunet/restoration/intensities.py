"""The intensity unit in which restoring networks see images."""

from __future__ import annotations

import torch

# Only keeps a constant window from dividing by zero: any range above it is stretched in full.
MIN_RANGE = 1e-6


def normalise(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bring every image of a window to mean 0 and range 1.

    FLAVR was trained on colours in [0, 1] minus their mean, which this is for a window that uses the full range; and
    since a*I + b (a > 0) gives the same result as I, what the network predicts cannot depend on the intensity scale.

    Args:
        image: (B, C, 4, H, W), or any other number of spatial axes.

    Returns:
        The normalised image (all zero where the window is constant), the smallest value and the range (max - min, at
        least 1e-6) of every sample and channel, both (B, C, 1, 1, 1).
    """
    space = tuple(range(2, image.ndim))
    lowest = image.amin(dim=space, keepdim=True)
    # the smallest value goes first: a constant window is then exactly zero, whatever its level
    shifted = image - lowest
    value_range = shifted.amax(dim=space, keepdim=True).clamp_min(MIN_RANGE)
    unit = shifted / value_range
    return unit - unit.mean(dim=space, keepdim=True), lowest, value_range

"""The voxel size of simulated thick slices: the one that real ones have (paper section 3.2).

Convention:
    A preprocessed case has spacing (c, a_y, a_x), its interpolated volume (c/r, a_y, a_x). At export, thin slices lie
    c/r apart and have the plane's pixels. Where an in-plane axis plays the slice axis, it takes the spacing c/r, z
    takes that axis's, and the other one keeps its own. With voxels near-isotropic nothing is resampled. Grids share
    the field of view (half-pixel convention).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rehrseg_nnunet.slices.slice_profile import apply_along

# Voxels that differ by less keep their size: over a window of 64 that is a voxel.
TOLERANCE = 0.02


@dataclass(frozen=True)
class AxisGrid:
    """An axis of a stored volume, resampled.

    Attributes:
        stored: voxels of the stored volume.
        voxels: of the resampled one, over the same field of view.
    """

    stored: int
    voxels: int

    @property
    def scale(self) -> float:
        """Resampled voxels per stored one."""
        return self.voxels / self.stored

    def position(self, stored: int) -> int:
        """The resampled voxel that holds the centre of a stored one."""
        return min(int((stored + 0.5) * self.scale), self.voxels - 1)

    def centres(self, start: int, stop: int) -> np.ndarray:
        """Stored coordinates of the resampled voxels start .. stop - 1."""
        return (np.arange(start, stop) + 0.5) / self.scale - 0.5

    def needed(self, start: int, stop: int) -> tuple[int, int]:
        """Stored voxels, half-open, that the resampled voxels start .. stop - 1 are made from."""
        if self.voxels == self.stored:
            return start, stop
        centres, reach = self.centres(start, stop), max(1.0, 1 / self.scale)
        return max(int(np.floor(centres[0] - reach)), 0), min(int(np.ceil(centres[-1] + reach)) + 1, self.stored)

    def resample(
        self, image: torch.Tensor, labels: torch.Tensor, start: int, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Resampled voxels start .. stop - 1: the image linearly (averaged where they are larger), labels by nearest.

        Args:
            image: (C, n, ...), the stored voxels that are `needed`.
            labels: (n, ...), theirs.
            start: first resampled voxel.
            stop: end of the range.
        """
        if self.voxels == self.stored:
            return image, labels
        first, end = self.needed(start, stop)
        centres, reach = self.centres(start, stop), max(1.0, 1 / self.scale)
        weights = np.clip(1 - np.abs(centres[:, None] - np.arange(first, end)) / reach, 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        nearest = np.clip(np.floor(centres + 0.5).astype(int), 0, self.stored - 1) - first
        return apply_along(image, torch.from_numpy(weights), 1), labels[torch.from_numpy(nearest)]


def simulated_grids(
    shape: Sequence[int], axis: int, factor: int, spacing_mm: Sequence[float]
) -> tuple[AxisGrid, AxisGrid]:
    """The grids of the simulated slice axis and of z.

    Args:
        shape: (r*D, H, W) of the interpolated volume.
        axis: 1 (y) or 2 (x), which plays the slice axis; 0, which is known between the slices already.
        factor: r.
        spacing_mm: (c, a_y, a_x) of the thick-slice case.
    """
    scale = 1.0 if axis == 0 else spacing_mm[axis] * factor / spacing_mm[0]
    if abs(scale - 1) <= TOLERANCE:
        scale = 1.0
    return (
        AxisGrid(shape[axis], max(1, round(shape[axis] * scale))),
        AxisGrid(shape[0], max(1, round(shape[0] / scale))),
    )

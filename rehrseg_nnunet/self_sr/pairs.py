"""Self-SR training pairs from one interpolated case (paper section 3.2): random draws apart from what is applied.

Convention:
    An in-plane axis of the near-isotropic volume plays the slice axis. Window k holds the simulated thick slices
    k - 1, k, k + 1, k + 2 (the ends repeat the edge slice); its target are the r HR slices from r*k + floor(r/2) on,
    between the centres of slices k and k + 1. A volume of D thick slices has the D + 1 windows k = -1 .. D - 1; target
    slices outside the volume are masked (mask polarity: 1 counts, 0 is left out).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from rehrseg_nnunet.restoration.pairs import RestorationPair
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, half_support

WINDOW = 4


@dataclass(frozen=True)
class WindowSpec:
    """Where along the slice axis a window is cut.

    Attributes:
        slices: HR slices of the volume along the simulated axis.
        factor: r.
        offset: HR slices left out at the start, 0 .. r - 1: the phase of the simulated acquisition.
        window: k.
        flip: cut from the volume flipped along the slice axis.
        upper_ties: see `degrade_labels`.
    """

    slices: int
    factor: int
    offset: int
    window: int
    flip: bool
    upper_ties: bool = False

    @property
    def thick_slices(self) -> int:
        """D, thick slices of the simulated acquisition."""
        return (self.slices - self.offset) // self.factor

    @property
    def lr_indices(self) -> list[int]:
        """The window's four thick slices; the ends repeat the edge slice."""
        return [min(max(self.window + i, 0), self.thick_slices - 1) for i in (-1, 0, 1, 2)]

    @property
    def hr_indices(self) -> list[int]:
        """The target's r HR slices, counted from `offset`; may lie outside the volume."""
        first = self.factor * self.window + self.factor // 2
        return list(range(first, first + self.factor))

    @property
    def _thick_block(self) -> tuple[int, int]:
        """Thick slices that window and target lie in, half-open."""
        lr, hr = self.lr_indices, self.hr_indices
        first = max(min(lr[0], hr[0] // self.factor), 0)
        return first, min(max(lr[-1], hr[-1] // self.factor) + 1, self.thick_slices)

    @property
    def block(self) -> tuple[int, int]:
        """HR slices to read, half-open, in the (flipped) volume: whole thick slices and what their profiles reach.

        That includes slices that the phase leaves out at the start, and those left over at the end.
        """
        halo = half_support(self.factor)
        first, end = (self.offset + self.factor * k for k in self._thick_block)
        return max(first - halo, 0), min(end + halo, self.slices)

    @property
    def context(self) -> tuple[int, int]:
        """HR slices of the block before and after its whole thick slices."""
        first, end = (self.offset + self.factor * k for k in self._thick_block)
        return first - self.block[0], self.block[1] - end

    @property
    def stored_block(self) -> tuple[int, int]:
        """`block` in the volume as stored."""
        start, stop = self.block
        return (self.slices - stop, self.slices - start) if self.flip else (start, stop)


def sample_window(slices: int, factor: int, rng: np.random.Generator, *, centre: int | None = None) -> WindowSpec:
    """Draw phase, flip, side of ties and window uniformly, or the window whose target is around a given HR slice.

    Args:
        slices: HR slices of the volume along the simulated axis, at least `factor`.
        factor: r.
        rng: random numbers.
        centre: HR slice of the stored volume that the target shall contain (if the phase allows).

    Raises:
        ValueError: fewer slices than the factor.
    """
    if slices < factor:
        raise ValueError(f"slices along the simulated axis must be at least {factor}, got {slices}")
    offset = int(rng.integers(0, min(factor, slices - factor + 1)))
    flip, upper_ties = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    thick = (slices - offset) // factor
    if centre is None:
        window = int(rng.integers(-1, thick))
    else:
        position = (slices - 1 - centre if flip else centre) - offset
        window = int(np.clip((position - factor // 2) // factor, -1, thick - 1))
    return WindowSpec(slices=slices, factor=factor, offset=offset, window=window, flip=flip, upper_ties=upper_ties)


def make_pair(image: torch.Tensor, labels: torch.Tensor, spec: WindowSpec) -> RestorationPair:
    """Cut a window and its target from a block of the near-isotropic volume.

    Args:
        image: (C, S, A, B) HR slices `spec.stored_block` of the volume, slice axis first.
        labels: (S, A, B) their integer labels.
        spec: what to cut.
    """
    if spec.flip:
        image, labels = image.flip(1), labels.flip(0)
    r, (before, after) = spec.factor, spec.context
    start = spec.block[0] + before - spec.offset  # of the whole thick slices, counted from the phase
    lr = [k - start // r for k in spec.lr_indices]
    hr = torch.tensor(spec.hr_indices)
    mask = ((hr >= 0) & (hr < r * spec.thick_slices)).float()
    hr = (hr - start + before).clamp(0, image.shape[1] - 1)
    acquired = labels[before : len(labels) - after]
    return RestorationPair(
        lr_image=degrade(image, r, 1, context=spec.context)[:, lr],
        lr_labels=degrade_labels(acquired, r, 0, upper_ties=spec.upper_ties)[lr],
        hr_image=image[:, hr],
        hr_labels=labels[hr],
        mask=mask[None, :, None, None].expand(1, -1, *image.shape[2:]).clone(),
    )


def resize_in_plane(
    image: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Zoom every slice: image linearly, labels by nearest neighbour.

    Args:
        image: (C, S, A, B).
        labels: (S, A, B).
        size: new (A, B).
    """
    if tuple(image.shape[2:]) == tuple(size):
        return image, labels
    zoomed = functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    nearest = functional.interpolate(labels[None].float(), size=size, mode="nearest-exact")[0]
    return zoomed, nearest.to(labels.dtype)

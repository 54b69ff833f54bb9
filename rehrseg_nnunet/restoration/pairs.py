"""Pairs that restoring networks are trained on: a thick-slice input and the thin truth, in image and labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch


class RestorationPair(NamedTuple):
    """One input and its target.

    A window of L slices has a target of T slices, (A, B) each. SMORE's slices have neither axis A nor window: L thick
    rows and T = r*L thin ones, B columns.

    Attributes:
        lr_image: (C, L, A, B) thick slices, or (C, L, B).
        lr_labels: (L, A, B) integer labels of the thick slices, or (L, B).
        hr_image: (C, T, A, B) target slices, or (C, T, B).
        hr_labels: (T, A, B) integer labels, or (T, B).
        mask: (1, T, A, B), 1 inside the volume, or (1, T, B).
    """

    lr_image: torch.Tensor
    lr_labels: torch.Tensor
    hr_image: torch.Tensor
    hr_labels: torch.Tensor
    mask: torch.Tensor


def random_interval(size: int, edge: int, rng: np.random.Generator, contain: int | None) -> tuple[int, int]:
    """Interval of `edge` voxels within (or, if too long, centred on) 0 .. size, containing a voxel if one is given."""
    if edge >= size:
        start = -((edge - size) // 2)
    elif contain is None:
        start = int(rng.integers(0, size - edge + 1))
    else:
        start = int(rng.integers(max(0, contain - edge + 1), min(contain, size - edge) + 1))
    return start, start + edge

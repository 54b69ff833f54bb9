"""SMORE's training pairs from one in-plane slice of a thick-slice case: random draws apart from what is applied.

Convention:
    The pixels of an in-plane slice (H, W) are thin both ways. It is mirrored and turned by quarters, one of eight ways,
    so that either axis, in either direction, plays the slice axis, which is the rows of the result. Thick row k are the
    thin rows offset + r*k .. offset + r*k + r - 1 and their neighbours, as the slice profile weights them; rows that
    the phase leaves out are neighbours too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from rehrseg_nnunet.restoration.pairs import RestorationPair, random_interval
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels


@dataclass(frozen=True)
class SliceSpec:
    """What is cut from a slice.

    Attributes:
        mirror: flip the columns first.
        turns: quarter turns after that, 0 .. 3, as `torch.rot90` counts them.
        offset: thin rows left out at the start, 0 .. r - 1: the phase of the simulated acquisition.
        upper_ties: see `degrade_labels`.
        rows: thick rows, half-open; may reach outside the slice.
        columns: columns, half-open; may reach outside the slice.
    """

    mirror: bool
    turns: int
    offset: int
    upper_ties: bool
    rows: tuple[int, int]
    columns: tuple[int, int]


def turn(plane: torch.Tensor, *, mirror: bool, turns: int) -> torch.Tensor:
    """Mirror and turn (..., H, W)."""
    return torch.rot90(plane.flip(-1) if mirror else plane, turns, (-2, -1))


def turned_pixel(pixel: Sequence[int], shape: Sequence[int], *, mirror: bool, turns: int) -> tuple[int, int]:
    """Where `turn` takes pixel (y, x) of a plane of shape (H, W)."""
    (y, x), (height, width) = pixel, shape
    if mirror:
        x = width - 1 - x
    for _ in range(turns):
        y, x, height, width = width - 1 - x, y, width, height
    return y, x


def sample_slice(
    shape: Sequence[int],
    factor: int,
    size: Sequence[int],
    rng: np.random.Generator,
    *,
    pixel: Sequence[int] | None = None,
    augment: bool = True,
) -> SliceSpec:
    """Draw symmetry, phase, ties and position uniformly, or so that it contains a given pixel (if the phase allows).

    Args:
        shape: (H, W) of the slice.
        factor: r.
        size: thick rows and columns of the result.
        rng: random numbers.
        pixel: (y, x) of the slice.
        augment: all eight symmetries; else just two, in which y and x are the slice axis.

    Raises:
        ValueError: fewer pixels along the simulated axis than the factor.
    """
    mirror = bool(augment and rng.random() < 0.5)
    turns = int(rng.integers(4 if augment else 2))
    height, width = reversed(shape) if turns % 2 else shape
    if height < factor:
        raise ValueError(f"pixels along the simulated axis must be at least {factor}, got {height}")
    offset = int(rng.integers(0, min(factor, height - factor + 1)))
    thick = (height - offset) // factor
    row = column = None
    if pixel is not None:
        y, column = turned_pixel(pixel, shape, mirror=mirror, turns=turns)
        row = int(np.clip((y - offset) // factor, 0, thick - 1))
    return SliceSpec(
        mirror=mirror,
        turns=turns,
        offset=offset,
        upper_ties=bool(rng.random() < 0.5),
        rows=random_interval(thick, size[0], rng, row),
        columns=random_interval(width, size[1], rng, column),
    )


def make_slice_pair(
    image: torch.Tensor, labels: torch.Tensor, spec: SliceSpec, factor: int, *, outside: int
) -> RestorationPair:
    """Turn a slice, make its rows thick, and cut; what lies outside repeats the edge pixels and is not labelled.

    Args:
        image: (C, H, W) float.
        labels: (H, W) integer.
        spec: what to cut.
        factor: r.
        outside: label of pixels outside the slice.
    """
    image, labels = (turn(plane, mirror=spec.mirror, turns=spec.turns) for plane in (image, labels))
    thick = (image.shape[-2] - spec.offset) // factor
    kept = slice(spec.offset, spec.offset + thick * factor)
    lr_image = degrade(image, factor, 1, context=(kept.start, image.shape[-2] - kept.stop))
    image, labels = image[:, kept], labels[kept]
    lr_labels = degrade_labels(labels, factor, 0, upper_ties=spec.upper_ties)
    lr_box = (spec.rows, spec.columns)
    hr_box = (tuple(factor * edge for edge in spec.rows), spec.columns)
    return RestorationPair(
        lr_image=_cut(lr_image, lr_box, pad_mode="edge"),
        lr_labels=_cut(lr_labels[None], lr_box, value=outside)[0],
        hr_image=_cut(image, hr_box, pad_mode="edge"),
        hr_labels=_cut(labels[None], hr_box, value=outside)[0],
        mask=_cut(torch.ones(1, *labels.shape), hr_box, value=0),
    )


def _cut(
    planes: torch.Tensor, box: Sequence[Sequence[int]], *, value: int = 0, pad_mode: str = "constant"
) -> torch.Tensor:
    cut = crop_and_pad_nd(planes.numpy(), [list(edges) for edges in box], value, pad_mode=pad_mode)
    return torch.from_numpy(np.ascontiguousarray(cut))

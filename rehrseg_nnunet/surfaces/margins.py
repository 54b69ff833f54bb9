"""Where a structure begins: the margin by which a structure's logit wins, positive inside.

Convention:
    Of classes, the margin of k is logit_k minus the largest of the others. Regions are written over one another in
    nnU-Net's order, so a region's margin follows the same order: regions that write one of its labels add to it, all
    others take from it. For regions that lie one inside another that is the region's own logit. The sign is that of
    nnU-Net's label map in every voxel.

    Outside the image the margin is minus what it is inside, mirrored: a structure that the image's border cuts is
    closed by a plane at the outer faces of its last voxels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.ndimage import find_objects, maximum_filter

from rehrseg_nnunet.surfaces.structures import Structure, Structures

_AROUND = 3  # voxels around a structure that its surface may depend on
PAD = 2  # voxels beyond the image
# of the largest margin beside a voxel: vertices keep this distance (in voxels) from voxel centres
_SMALLEST_SHARE = 1e-3
_SMALLEST = 1e-6


class Piece(NamedTuple):
    """The part of a margin around a structure.

    Attributes:
        values: (d, h, w) float32, never 0, negative all around.
        start: index of its first voxel in the volume; beyond the image for structures at its border.
    """

    values: np.ndarray
    start: np.ndarray


def logit_pieces(logits: np.ndarray, structures: Structures) -> Iterator[tuple[Structure, Piece | None]]:
    """Margins of all structures of a prediction, one at a time.

    Args:
        logits: (K, D, H, W) of any float type; what adds the same number to all classes of a voxel changes nothing.
        structures: of the dataset.

    Yields:
        A structure and its margin, None where no voxel belongs to it.
    """
    yield from _region_pieces(logits, structures) if structures.class_order else _class_pieces(logits, structures)


def label_pieces(labels: np.ndarray, structures: Structures) -> Iterator[tuple[Structure, Piece | None]]:
    """Margins of all structures of a label map (D, H, W): 1 inside, -1 outside."""
    for structure in structures.all:
        box = _box(structure.inside(labels))
        if box is None:
            yield structure, None
            continue
        around = _grown(box, labels.shape)
        inside = structure.inside(labels[around])
        yield structure, _piece(np.where(inside, np.float32(1), np.float32(-1)), inside, around)


def _class_pieces(logits: np.ndarray, structures: Structures) -> Iterator[tuple[Structure, Piece | None]]:
    first, second, winner = _two_largest(logits)
    boxes = find_objects(winner)
    for structure in structures.all:
        box = boxes[structure.head - 1] if structure.head <= len(boxes) else None
        if box is None:
            yield structure, None
            continue
        around = _grown(box, winner.shape)
        inside = winner[around] == structure.head
        own = logits[structure.head][around].astype(np.float32)
        yield structure, _piece(np.where(inside, own - second[around], own - first[around]), inside, around)


def _two_largest(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Largest and second largest logit of every voxel, and the first class that has the largest, as argmax has it."""
    first = logits[0].astype(np.float32)
    second = np.full_like(first, -np.inf)
    winner = np.zeros(first.shape, np.uint8 if len(logits) <= 256 else np.uint16)
    for head in range(1, len(logits)):
        values = logits[head].astype(np.float32)
        wins = values > first
        np.maximum(second, np.minimum(values, first), out=second)
        np.maximum(first, values, out=first)
        winner[wins] = head
    return first, second, winner


def _region_pieces(logits: np.ndarray, structures: Structures) -> Iterator[tuple[Structure, Piece | None]]:
    for structure in structures.all:
        margin, inside = _region_margin(logits, structure, structures.class_order)
        box = _box(inside)
        around = _grown(box, inside.shape) if box is not None else ()
        yield structure, None if box is None else _piece(margin[around], inside[around], around)


def _region_margin(
    logits: np.ndarray, region: Structure, class_order: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Margin (D, H, W) of a region, and where nnU-Net's label map has it.

    Args:
        logits: (K, D, H, W); they write their labels in turn where they are positive.
        region: one of them.
        class_order: the labels.
    """
    margin = np.full(logits.shape[1:], -np.inf, np.float32)
    inside = np.zeros(margin.shape, bool)
    for values, label in zip(logits, class_order, strict=True):
        logit = values.astype(np.float32)
        inside[logit > 0] = label in region.labels
        if label in region.labels:
            np.maximum(margin, logit, out=margin)
        else:
            np.minimum(margin, -logit, out=margin)
    return margin, inside


def _box(inside: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around what is true, None around nothing."""
    found = find_objects(inside.view(np.uint8))
    return found[0] if found else None


def _grown(box: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(
        slice(max(0, part.start - _AROUND), min(size, part.stop + _AROUND))
        for part, size in zip(box, shape, strict=True)
    )


def _piece(margin: np.ndarray, inside: np.ndarray, around: tuple[slice, ...]) -> Piece:
    """The margin, kept from 0 (where triangles would have no area) and continued beyond the image."""
    size = np.abs(margin)
    smallest = np.maximum(maximum_filter(size, 3) * np.float32(_SMALLEST_SHARE), np.float32(_SMALLEST))
    np.maximum(size, smallest, out=size)
    padded = np.pad(size, PAD, mode="symmetric")
    np.negative(padded, out=padded, where=~np.pad(inside, PAD))
    return Piece(padded, np.array([part.start - PAD for part in around]))

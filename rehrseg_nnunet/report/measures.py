"""What is measured of a case beside its scores: volumes, pieces, where along the stack it is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy import ndimage

from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.report.cases import CaseOnGrid
from rehrseg_nnunet.surfaces.structures import Structure, Structures

SURE, POSSIBLE = 0.75, 0.25  # probabilities between which a voxel is unsure
FIFTHS = 5
_FACES_EDGES_CORNERS = np.ones((3, 3, 3), dtype=bool)


@dataclass(frozen=True)
class StructureMeasures:
    """One structure of one case.

    Attributes:
        name: in dataset.json.
        volume_ml: predicted.
        reference_ml: of the reference; None if it is not known.
        sure_ml: voxels of probability `SURE` or more; None without probabilities.
        possible_ml: voxels of probability `POSSIBLE` or more; None without probabilities.
        pieces: connected parts of the prediction, by faces, edges or corners.
        reference_pieces: of the reference; None if it is not known.
        cut: sides of the scan that the prediction reaches, such as "first slice".
    """

    name: str
    volume_ml: float
    reference_ml: float | None
    sure_ml: float | None
    possible_ml: float | None
    pieces: int
    reference_pieces: int | None
    cut: tuple[str, ...]


def measure_structures(case: CaseOnGrid, structures: Structures, *, axis: int) -> list[StructureMeasures]:
    """Every structure of a case, `axis` being that of the slices."""
    return [_measure(case, structure, axis) for structure in structures.all]


def with_sureness_of(
    measured: Sequence[StructureMeasures], others: Sequence[StructureMeasures]
) -> list[StructureMeasures]:
    """Measures with what is sure and possible on another grid, whose probabilities were written."""
    pairs = zip(measured, others, strict=True)
    return [replace(found, sure_ml=other.sure_ml, possible_ml=other.possible_ml) for found, other in pairs]


def _measure(case: CaseOnGrid, structure: Structure, axis: int) -> StructureMeasures:
    inside = structure.inside(case.labels.values)
    reference = None if case.reference is None else structure.inside(case.reference.values)
    ml = case.labels.voxel_ml
    sure = possible = None
    if case.probabilities is not None:
        probability = case.probabilities[structure.head]
        sure, possible = (float((probability >= limit).sum()) * ml for limit in (SURE, POSSIBLE))
    return StructureMeasures(
        name=structure.name,
        volume_ml=float(inside.sum()) * ml,
        reference_ml=None if reference is None else float(reference.sum()) * ml,
        sure_ml=sure,
        possible_ml=possible,
        pieces=pieces(inside),
        reference_pieces=None if reference is None else pieces(reference),
        cut=tuple(sides_reached(inside, axis)),
    )


def pieces(inside: np.ndarray) -> int:
    """Number of connected parts of a mask."""
    _, count = cast("tuple[np.ndarray, int]", ndimage.label(inside, _FACES_EDGES_CORNERS))
    return count


def sides_reached(inside: np.ndarray, axis: int) -> list[str]:
    """Sides of the volume that a mask reaches: the first or last slice, or an edge of the slices."""
    found = [f"{name} slice" for name, index in (("first", 0), ("last", -1)) if np.take(inside, index, axis=axis).any()]
    others = [other for other in range(3) if other != axis]
    if any(np.take(inside, index, axis=other).any() for other in others for index in (0, -1)):
        found.append("edge of the slices")
    return found


@dataclass(frozen=True, eq=False)
class StackOverlap:
    """Overlap with the reference in fifths of the stack, from the structures' first slice to their last.

    Attributes:
        shared: (5,) 2 |A and B| summed over structures.
        total: (5,) |A| + |B| summed over structures.
        wrong: (5,) voxels with another label than the reference.
    """

    shared: np.ndarray
    total: np.ndarray
    wrong: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """(5,), nan where there is nothing."""
        return np.divide(self.shared, self.total, out=np.full(FIFTHS, np.nan), where=self.total > 0)

    @property
    def share_at_ends(self) -> float:
        """Share of the wrong voxels that lie in the first and last fifth; nan where nothing is wrong."""
        wrong = self.wrong.sum()
        return float((self.wrong[0] + self.wrong[-1]) / wrong) if wrong else float("nan")


def stack_overlap(labels: Volume, reference: Volume, structures: Structures, *, axis: int) -> StackOverlap:
    """Overlap by position in the stack; the first and last slice are those of labels and reference together."""
    others = tuple(other for other in range(3) if other != axis)
    known = np.isin(reference.values, _values(structures))
    shown = known | np.isin(labels.values, _values(structures))
    slices = np.flatnonzero(shown.any(axis=others))
    result = StackOverlap(*(np.zeros(FIFTHS) for _ in range(3)))
    if not len(slices):
        return result
    first, last = slices[0], slices[-1]
    fifth = np.clip((np.arange(shown.shape[axis]) - first) * FIFTHS // (last - first + 1), 0, FIFTHS - 1)
    wrong = ((labels.values != reference.values) & shown).sum(axis=others)
    np.add.at(result.wrong, fifth, wrong)
    for structure in structures.all:
        ours, theirs = structure.inside(labels.values), structure.inside(reference.values)
        np.add.at(result.shared, fifth, 2 * (ours & theirs).sum(axis=others))
        np.add.at(result.total, fifth, ours.sum(axis=others) + theirs.sum(axis=others))
    return result


def _values(structures: Structures) -> Sequence[int]:
    return sorted({value for structure in structures.all for value in structure.labels})


def errors_ml(labels: Volume, reference: Volume, structures: Structures) -> tuple[float, float, float]:
    """Volumes that are missed, too much, and given to another structure."""
    values = _values(structures)
    ours, theirs = np.isin(labels.values, values), np.isin(reference.values, values)
    confused = ours & theirs & (labels.values != reference.values)
    counts = (theirs & ~ours).sum(), (ours & ~theirs).sum(), confused.sum()
    missed, too_much, mixed_up = (float(count) * labels.voxel_ml for count in counts)
    return missed, too_much, mixed_up

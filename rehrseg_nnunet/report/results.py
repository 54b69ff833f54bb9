"""Results of all cases: scores, measures and flags of each, worst first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.report.agreement import agreement
from rehrseg_nnunet.report.cases import CaseFiles, CaseOnGrid, annotated, read_case, slice_axis
from rehrseg_nnunet.report.measures import (
    StackOverlap,
    StructureMeasures,
    errors_ml,
    measure_structures,
    stack_overlap,
    with_sureness_of,
)
from rehrseg_nnunet.self_sr.export import MIN_LABEL_DICE
from rehrseg_nnunet.surfaces.structures import Structures

METRICS = ("Dice", "HD95", "NSD")
MIN_CASES = 6  # to say what is usual
_OUTLIER = 3.5  # robust standard deviations (Iglewicz and Hoaglin)
_MAD_TO_DEVIATION = 1.4826
_LEAST_DEVIATION = 0.1  # of log volumes: 0.7 to 1.4 times the median is never an outlier

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # case, structure, metric


@dataclass(frozen=True)
class Flag:
    """Something to look at: a word, and what it is about."""

    word: str
    text: str


@dataclass(frozen=True, eq=False)
class CaseResult:
    """A case.

    Attributes:
        files: of the case.
        axis: of the slices, of standing volumes.
        structures: measures of each structure, on the main grid.
        scores: metrics by structure, on the main grid; empty without reference.
        acquired_scores: on the acquired slices; empty without reference there.
        baseline_scores: the baseline's, on the grid of the scores that rank.
        agreement: of the thin labels with the acquired ones; None where there is one grid.
        stack: overlap along the stack; None without reference.
        baseline_stack: the baseline's.
        errors_ml: missed, too much, mixed up; None without reference.
        flags: what to look at.
    """

    files: CaseFiles
    axis: int
    structures: Sequence[StructureMeasures]
    scores: Mapping[str, Mapping[str, float]]
    acquired_scores: Mapping[str, Mapping[str, float]]
    baseline_scores: Mapping[str, Mapping[str, float]]
    agreement: float | None
    stack: StackOverlap | None
    baseline_stack: StackOverlap | None
    errors_ml: tuple[float, float, float] | None
    flags: tuple[Flag, ...] = field(default=())

    @property
    def name(self) -> str:
        """In file names."""
        return self.files.name

    @property
    def ranking_scores(self) -> Mapping[str, Mapping[str, float]]:
        """Those of the main grid, or of the acquired slices where only their reference is known."""
        return self.scores or self.acquired_scores

    def mean(self, metric: str, scores: Mapping[str, Mapping[str, float]] | None = None) -> float:
        """Mean over the structures of a metric of the ranking scores, or of others; nan where none is defined."""
        chosen = self.ranking_scores if scores is None else scores
        values = [value for row in chosen.values() if not math.isnan(value := row[metric])]
        return float(np.mean(values)) if values else math.nan

    @property
    def volume_ml(self) -> float:
        """Of all structures."""
        return sum(structure.volume_ml for structure in self.structures)

    @property
    def unsure_share(self) -> float:
        """Volume that is possible but not sure, of the predicted volume; nan without probabilities or structures."""
        pairs = [(s.possible_ml, s.sure_ml) for s in self.structures]
        if not self.volume_ml or any(possible is None or sure is None for possible, sure in pairs):
            return math.nan
        return sum((possible or 0) - (sure or 0) for possible, sure in pairs) / self.volume_ml


def scores_of(summary: Mapping[str, Any] | None, method: str) -> Scores:
    """A method's scores in what `evaluate_folders` returns, by case; structures by name."""
    if summary is None or method not in summary["methods"]:
        return {}
    names = summary["settings"]["labels"]
    cases = [case for fold in summary["methods"][method]["folds"].values() for case in fold["metric_per_case"]]
    return {case["case"]: {names[label]: row for label, row in case["metrics"].items()} for case in cases}


def case_result(
    files: CaseFiles,
    *,
    reader: WholeFiles,
    structures: Structures,
    ignore_label: int | None,
    scores: Sequence[Scores],
) -> CaseResult:
    """Read and measure a case.

    Args:
        files: of the case.
        reader: for its files.
        structures: of the dataset.
        ignore_label: of voxels that nobody annotated; None if there is none.
        scores: of the main grid, of the acquired slices, and of the baseline.
    """
    main = read_case(files.main, reader=reader, heads=structures.heads)
    acquired = None if files.acquired is None else read_case(files.acquired, reader=reader, heads=structures.heads)
    axis = slice_axis((acquired or main).labels)
    judged = main if main.reference is not None or acquired is None else acquired
    if (known := annotated(judged, ignore_label)) is not judged:  # volumes of the reference mean nothing then
        main, judged = replace(main, reference=None), known
    measured = measure_structures(main, structures, axis=axis)
    if acquired is not None and main.probabilities is None:
        measured = with_sureness_of(measured, measure_structures(acquired, structures, axis=axis))
    agreed = None if acquired is None else agreement(main.labels, acquired.labels, structures)
    own, on_acquired, baseline = (of_cases.get(files.name, {}) for of_cases in scores)
    return CaseResult(
        files,
        axis,
        measured,
        own,
        on_acquired,
        baseline,
        agreed,
        stack=_stack(judged, judged.labels, structures, axis),
        baseline_stack=None if judged.baseline is None else _stack(judged, judged.baseline, structures, axis),
        errors_ml=None if judged.reference is None else errors_ml(judged.labels, judged.reference, structures),
        flags=tuple(own_flags(measured, agreed)),
    )


def _stack(judged: CaseOnGrid, labels: Any, structures: Structures, axis: int) -> StackOverlap | None:
    return None if judged.reference is None else stack_overlap(labels, judged.reference, structures, axis=axis)


def own_flags(structures: Sequence[StructureMeasures], agreed: float | None) -> list[Flag]:
    """What a case says by itself."""
    flags = []
    for found in structures:
        if found.volume_ml == 0 and found.reference_ml != 0:
            flags.append(Flag("empty", f"{found.name} has no voxel"))
        elif found.volume_ml > 0 and found.reference_ml == 0:
            flags.append(Flag("made up", f"{found.name} is not in the reference"))
        if found.cut:
            flags.append(Flag("cut", f"{found.name} reaches the {' and '.join(found.cut)}"))
        if found.reference_pieces and found.pieces > found.reference_pieces:
            flags.append(Flag("pieces", f"{found.name} is in {found.pieces} pieces, not {found.reference_pieces}"))
    if agreed is not None and agreed < MIN_LABEL_DICE:
        flags.append(Flag("disagrees", f"Dice {agreed:.2f} with the labels on the acquired slices"))
    return flags


def ranked(cases: Sequence[CaseResult]) -> list[CaseResult]:
    """Worst first, with flags that compare a case with the others: by Dice, else by flags and unsure voxels."""
    flagged = [replace(case, flags=(*case.flags, *flags)) for case, flags in zip(cases, _unusual(cases), strict=True)]
    if any(not math.isnan(case.mean("Dice")) for case in flagged):
        return sorted(flagged, key=lambda case: (_last_if_nan(case.mean("Dice")), case.name))
    return sorted(flagged, key=lambda case: (-len(case.flags), _last_if_nan(-case.unsure_share), case.name))


def _last_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _unusual(cases: Sequence[CaseResult]) -> list[list[Flag]]:
    flags: list[list[Flag]] = [[] for _ in cases]
    if len(cases) < MIN_CASES:
        return flags
    for rows in zip(*(case.structures for case in cases), strict=True):
        volumes = np.array([row.volume_ml for row in rows])
        usual_pieces = float(np.median([row.pieces for row in rows]))
        for number, (row, off) in enumerate(zip(rows, _deviations(volumes), strict=True)):
            if abs(off) > _OUTLIER:
                median = float(np.median(volumes[volumes > 0]))
                flags[number].append(Flag("volume", f"{row.name} has {row.volume_ml:.2f} ml, most {median:.2f} ml"))
            if row.reference_pieces is None and row.pieces > usual_pieces:
                flags[number].append(Flag("pieces", f"{row.name} is in {row.pieces} pieces, most in {usual_pieces:g}"))
    return flags


def _deviations(volumes: np.ndarray) -> np.ndarray:
    """Robust standard deviations of log volumes from their median; 0 for empty structures, which have a flag."""
    present = volumes > 0
    result = np.zeros(volumes.shape)
    if present.any():
        logs = np.log(volumes[present])
        off = logs - np.median(logs)
        result[present] = off / max(_LEAST_DEVIATION, _MAD_TO_DEVIATION * float(np.median(np.abs(off))))
    return result

"""What is compared with what: methods over runs, their differences in paired runs, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.quality.clock import read_seconds
from benchmarks.quality.runs import Run, seconds_file
from rehrseg_nnunet.evaluation.summary import (
    MEAN,
    SEGMENTATION_METRICS,
    corrected_tests,
    paired_test,
    statistic,
    statistics,
)

Cases = list[dict[str, Any]]


@dataclass
class Method:
    """A row at one length, by one way to HR.

    Attributes:
        name: of the row and the way.
        key: of the row.
        epochs: as printed.
        labels: keys of the labels.
        runs: its runs, by name.
        cases: their scores, by the same names.
    """

    name: str
    key: str
    epochs: str
    labels: list[str]
    runs: dict[str, Run] = field(default_factory=dict)
    cases: dict[str, Cases] = field(default_factory=dict)

    @property
    def name_and_epochs(self) -> str:
        """Unique."""
        return f"{self.name}, {self.epochs}"


def by_method(keys: Sequence[str], scores: Mapping[Run, Any], dataset: str, resolution: str) -> list[Method]:
    """The methods of finished runs, in the order of the keys, shorter trainings first.

    Args:
        keys: rows.
        scores: of finished runs, as `scores.score` keeps them.
        dataset: "validation" or "test".
        resolution: "lr" or "hr".
    """
    methods: dict[tuple[str, str, str], Method] = {}
    for run in sorted(scores, key=lambda run: (keys.index(run.row.key), run.epochs or 0)):
        for way, scored in scores[run].get(dataset, {}).get(resolution, {}).items():
            name = f"{run.row.title}, {way}" if way else run.row.title
            new = Method(name, run.row.key, run.all_epochs, list(scored["labels"]))
            method = methods.setdefault((run.row.key, way, run.all_epochs), new)
            method.runs[run_name(run)] = run
            method.cases[run_name(run)] = scored["cases"]
    return list(methods.values())


def run_name(run: Run) -> str:
    """Seed and fold: what paired runs share."""
    return f"seed {run.seed} fold {run.fold}"


def compare_methods(methods: Sequence[Method], *, first: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Every method minus the first row's of the same length of stage 2, over the runs that both have.

    Args:
        methods: as of `by_method`.
        first: key of the row that the others are compared with; by its first way.

    Returns:
        By name and epochs, by metric: ``over_runs`` (see `difference_over_runs`) and ``over_cases``: a Wilcoxon test of
        the cases' means over runs, with an interval, corrected for the number of methods.
    """
    references = _references(methods, first)
    pairs = {m.name_and_epochs: (m, r) for m in methods if (r := _reference(m, references)) is not None}
    tests: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in pairs}
    for metric in SEGMENTATION_METRICS:
        over_cases = corrected_tests({name: _test(*pair, metric) for name, pair in pairs.items()})
        for name, (method, reference) in pairs.items():
            over_runs = difference_over_runs(method, reference, metric)
            tests[name][metric] = {"over_runs": over_runs, "over_cases": over_cases[name]}
    return tests


def _references(methods: Sequence[Method], first: str) -> dict[int, Method]:
    """The first row's methods by its first way, by epochs of stage 2."""
    result: dict[int, Method] = {}
    for method in methods:
        if method.key == first:
            result.setdefault(_length(method), method)
    return result


def _reference(method: Method, references: Mapping[int, Method]) -> Method | None:
    """What a method is compared with; one without a stage 2, such as the baseline, with the shortest."""
    found = references.get(_length(method)) or next(iter(references.values()), None)
    return None if found is method else found


def _length(method: Method) -> int:
    return next(iter(method.runs.values())).stage_2_epochs


def _test(method: Method, reference: Method, metric: str) -> dict[str, Any]:
    common = sorted(method.cases.keys() & reference.cases.keys())
    pair = [{run: one.cases[run] for run in common} for one in (method, reference)]
    return {"runs": common, **paired_test(*pair, labels=method.labels, metric=metric)}


def difference_over_runs(method: Method, other: Method, metric: str) -> dict[str, float]:
    """Mean over paired runs of a method's mean minus another's, and its standard error.

    Returns:
        ``n`` runs, ``mean``, ``standard_error`` (nan for fewer than two runs).
    """
    runs = sorted(method.cases.keys() & other.cases.keys())
    differences = [_mean(method, run, metric) - _mean(other, run, metric) for run in runs]
    summary = statistic(differences)
    return {"n": len(runs), "mean": summary["mean"], "standard_error": summary["std"] / math.sqrt(len(runs) or 1)}


def _mean(method: Method, run: str, metric: str) -> float:
    return statistics(method.cases[run], labels=method.labels, metrics=[metric])[MEAN][metric]["mean"]


def cpu_seconds(runs: Mapping[str, Run]) -> dict[str, float]:
    """Statistic over runs of the CPU seconds of all training: its own, and that of all it builds on, with exports."""
    return statistic(_pipeline_seconds(run) for run in runs.values())


def _pipeline_seconds(run: Run) -> float:
    """Sum of the trainings; nan if one was not measured."""
    return sum(read_seconds(seconds_file(step)).get("train", {}).get("cpu", math.nan) for step in run.pipeline)


@dataclass(frozen=True)
class EqualTime:
    """The first row beside a rival that had at least as much CPU time.

    Attributes:
        first: the first row's method.
        rival: another one.
        seconds: CPU seconds of both, mean over runs.
        differences: by metric, first minus rival, see `difference_over_runs`.
    """

    first: Method
    rival: Method
    seconds: tuple[float, float]
    differences: dict[str, dict[str, float]]

    @property
    def runs(self) -> int:
        """Paired runs."""
        return len(self.first.runs.keys() & self.rival.runs.keys())


def equal_time(methods: Sequence[Method], *, first: str) -> Iterator[EqualTime]:
    """The first row at each of its lengths, beside every other method at its shortest length of at least its time."""
    seconds = {method.name_and_epochs: cpu_seconds(method.runs)["mean"] for method in methods}
    rivals: dict[str, list[Method]] = {}
    for method in methods:
        if method.key != first and not np.isnan(seconds[method.name_and_epochs]):
            rivals.setdefault(method.name, []).append(method)
    for own in _references(methods, first).values():
        for lengths in rivals.values():
            rival = _shortest(lengths, seconds, at_least=seconds[own.name_and_epochs])
            if rival is not None and own.runs.keys() & rival.runs.keys():
                differences = {m: difference_over_runs(own, rival, m) for m in SEGMENTATION_METRICS}
                yield EqualTime(own, rival, (seconds[own.name_and_epochs], seconds[rival.name_and_epochs]), differences)


def _shortest(methods: Iterable[Method], seconds: Mapping[str, float], *, at_least: float) -> Method | None:
    enough = [method for method in methods if seconds[method.name_and_epochs] >= at_least]
    return min(enough, key=lambda method: seconds[method.name_and_epochs], default=None)

"""The table of part S: guided segmentations beside rivals, controls and what a better scan gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.guidance.image_scores import read
from benchmarks.guidance.rows import ROWS
from benchmarks.guidance.runs import Run
from benchmarks.guidance.tables import Cell, Table
from benchmarks.quality.clock import read_seconds
from benchmarks.quality.differences import Method, compare_methods
from rehrseg_nnunet.evaluation.summary import MEAN, method_summary, statistic

TITLE = "Segmentation"
NOISE = 0.004  # Dice by which two trainings of one setting differ: a smaller room says nothing
FAIR_RIVAL = "continued"  # of costs and shares; differences are with each row's own
ROOMS = {
    "true_guides": "share of what true guides give",
    "true_guides_scratch_paperFusion": "share of what true guides give from scratch, fusion as in the paper",
    "better": "share of what the better scan gives",
}
DIGITS = {"Dice": 3, "HD95": 2}
COLUMNS = {
    "seeds": "seeds",
    "dice": "Dice",
    "hd95_mm": "HD95 (mm)",
    "dice_minus_rival": "Dice minus nnU-Net on the scan, as long and from the same start ± SE",
    "p_minus_rival": "p",
    "hd95_mm_minus_rival": "HD95 minus it ± SE",
    "dice_minus_random": "Dice minus random keeper ± SE",
    "p_minus_random": "p ",
    **{f"share_of_{key}": title for key, title in ROOMS.items()},
    "training_cpu_s": "training, CPU (s)",
    "training_ratio": "of continued",
    "prediction_ratio": "prediction command, of continued",
}
Comparisons = Mapping[str, Mapping[str, Mapping[str, Any]]]


def segmentation_table(runs: Sequence[Run]) -> Table:
    """Means over the test cases and seeds of finished runs, and differences with their standard error over seeds.

    What is trained once counts for every seed that builds on it. p is of a Wilcoxon test over cases with their mean
    over seeds, corrected for the number of rows.
    """
    methods = _methods(runs)
    others = {key for method in methods for key in (ROWS[method.key].rival, ROWS[method.key].control) if key}
    against = {key: compare_methods(methods, first=key) for key in others}
    dice = {method.key: _summary(method)["Dice"]["mean"] for method in methods}
    seconds = {method.key: _seconds(method) for method in methods}
    number = max((len(_first(method)) for method in methods), default=0)
    table = Table(TITLE, COLUMNS, "test", number)
    for method in methods:
        table.rows[f"{method.name}, {method.epochs} epochs"] = {
            **_means(method),
            **_differences(method, against),
            **_shares(method.key, dice),
            **_times(method.key, seconds),
        }
    return table


def _methods(runs: Sequence[Run]) -> list[Method]:
    """Rows with scores."""
    seeds = sorted({run.seed for run in runs})
    methods: dict[str, Method] = {}
    for run in runs:
        scores = None if run.row.synthesises else read(run.scores)
        if scores is None:
            continue
        new = Method(run.row.title, run.row.key, run.all_epochs, list(scores["labels"]))
        method = methods.setdefault(run.row.key, new)
        for seed in [run.seed] if run.row.seeded else seeds:
            method.runs[f"seed {seed}"], method.cases[f"seed {seed}"] = run, scores["cases"]  # pyright: ignore
    return list(methods.values())


def _first(method: Method) -> Sequence[Any]:
    return next(iter(method.cases.values()))


def _summary(method: Method) -> dict[str, dict[str, float]]:
    summary = method_summary(
        method.cases, dict.fromkeys(method.cases, Path()), labels=method.labels, metrics=list(DIGITS)
    )
    return summary["over_cases"][MEAN]


def _means(method: Method) -> dict[str, Cell]:
    means = _summary(method)
    trained = len({run.seed for run in method.runs.values()})
    return {
        "seeds": Cell(trained, 0),
        "dice": Cell(means["Dice"]["mean"], DIGITS["Dice"]),
        "hd95_mm": Cell(means["HD95"]["mean"], DIGITS["HD95"]),
    }


def _differences(method: Method, against: Mapping[str, Comparisons]) -> dict[str, Cell]:
    cells, row = {}, ROWS[method.key]
    for name, other, metrics in (("rival", row.rival, DIGITS), ("random", row.control, {"Dice": 3})):
        found = against.get(other, {}).get(method.name_and_epochs)
        if found is None:
            continue
        for metric, digits in metrics.items():
            over = found[metric]["over_runs"]
            key = {"Dice": "dice", "HD95": "hd95_mm"}[metric]
            cells[f"{key}_minus_{name}"] = Cell(over["mean"], digits, over["standard_error"], signed=True)
        p = found["Dice"]["over_cases"]["p_holm"]
        cells[f"p_minus_{name}"] = Cell(p, 4, text="<0.0001" if p < 0.0001 else "")
    return cells


def _shares(key: str, dice: Mapping[str, float]) -> dict[str, Cell]:
    """How much of the way from the fair rival to each bound; nothing where the bound is hardly above the rival."""
    start = dice.get(FAIR_RIVAL, math.nan)
    rooms = {bound: dice.get(bound, math.nan) - start for bound in ROOMS}
    return {
        f"share_of_{bound}": Cell((dice[key] - start) / room, 2, signed=True)
        for bound, room in rooms.items()
        if room > NOISE and key not in (FAIR_RIVAL, bound)
    }


def _seconds(method: Method) -> dict[str, float]:
    """CPU seconds of its own training and prediction, mean over seeds; nan where one was not measured."""
    clocks = [read_seconds(run.seconds) for run in method.runs.values()]
    return {
        step: statistic(seconds.get(step, {}).get("cpu", math.nan) for seconds in clocks)["mean"]
        for step in ("train", "predict")
    }


def _times(key: str, seconds: Mapping[str, Mapping[str, float]]) -> dict[str, Cell]:
    own, rival = seconds[key], seconds.get(FAIR_RIVAL, {"train": math.nan, "predict": math.nan})
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = {step: float(np.divide(own[step], rival[step])) for step in own}
    return {
        "training_cpu_s": Cell(own["train"], 0),
        "training_ratio": Cell(ratios["train"], 2),
        "prediction_ratio": Cell(ratios["predict"], 2),
    }

"""The tables, in markdown, csv and json, from whatever runs are finished."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.clock import read_seconds
from benchmarks.quality.differences import Method, by_method, compare_methods, cpu_seconds, equal_time
from benchmarks.quality.rows import ROWS, TABLES
from benchmarks.quality.runs import Run, seconds_file
from benchmarks.quality.scores import SETS, read_scores
from rehrseg_nnunet.evaluation.summary import (
    MEAN,
    MISSED,
    SEGMENTATION_METRICS,
    method_summary,
    statistic,
)
from rehrseg_nnunet.nnunet.safe_files import write_atomically

RESOLUTIONS = {"lr": "thick slices (LR)", "hr": "thin slices (HR)"}
TITLES = {
    "Dice": "Dice",
    "HD95": "HD95 (mm)",
    "NSD": "NSD",
    "ASSD": "ASSD (mm)",
    "VolumeBias": "volume bias (%)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "dice": "Dice",
    "spearman": "Spearman of U",
}
COMPARED = ("Dice", "HD95")  # with the first row
DIGITS = {"Dice": 3, "HD95": 2, "NSD": 3, "ASSD": 2, "VolumeBias": 1, "psnr": 2, "ssim": 3, "dice": 3, "spearman": 2}


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: what it is of.
        rows: cells by column, as text.
        data: the same and more as numbers, for json.
    """

    title: str
    rows: list[dict[str, str]]
    data: dict[str, Any]

    def markdown(self) -> str:
        """The title and a markdown table of the columns that say something."""
        columns = [column for column in self.rows[0] if not column or any(row.get(column) for row in self.rows)]
        lines = [columns, ["---"] * len(columns), *([row.get(c, "") for c in columns] for row in self.rows)]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def write_tables(numbers: Sequence[str], runs: Sequence[Run], folder: Path) -> str:
    """Write `tables.md`, `tables.json` and, with every single value, `scores.csv`; returns the markdown.

    Args:
        numbers: keys of `TABLES`.
        runs: finished or not; those without scores are left out.
        folder: for the files.
    """
    scores = {run: found for run in runs if run.row.segments and (found := read_scores(run)) is not None}
    tables = [table for number in numbers for table in _tables(number, runs, scores)]
    tables += [table for table in [_time_table(runs)] if table.rows]
    folder.mkdir(parents=True, exist_ok=True)
    markdown = "\n".join(table.markdown() for table in tables)
    write_atomically(folder / "tables.md", markdown)
    write_atomically(folder / "tables.json", json.dumps({t.title: t.data for t in tables}, indent=2))
    write_atomically(folder / "scores.csv", _csv(scores))
    return markdown


def _tables(number: str, runs: Sequence[Run], scores: Mapping[Run, Any]) -> Iterable[Table]:
    title, keys = TABLES[number]
    name = f"Table {number}: {title}" if number.isdigit() else title.capitalize()
    if not ROWS[keys[0]].segments:
        table = restoration_table(name, [run for run in runs if run.row.key in keys])
        return [table] if table.rows else []
    shown = {run: found for run, found in scores.items() if run.row.key in keys}
    made = [
        make(name, keys, shown, dataset=dataset, resolution=resolution)
        for dataset in SETS
        for resolution in RESOLUTIONS
        for make in (segmentation_table, equal_time_table)
    ]
    return [table for table in made if table.rows]


def segmentation_table(
    name: str, keys: Sequence[str], scores: Mapping[Run, Any], *, dataset: str, resolution: str
) -> Table:
    """All metrics of rows over folds and seeds, and the others minus the first: over runs, and over cases.

    Args:
        name: of the table.
        keys: its rows, the one that the others are compared with first.
        scores: of finished runs.
        dataset: "validation" or "test".
        resolution: "lr" or "hr".
    """
    methods = by_method(keys, scores, dataset, resolution)
    title = f"{name}, {RESOLUTIONS[resolution]}, {dataset} cases"
    compared = compare_methods(methods, first=keys[0])
    rows, data = [], {}
    for method in methods:
        summary = method_summary(
            method.cases, dict.fromkeys(method.cases, Path()), labels=method.labels, metrics=SEGMENTATION_METRICS
        )
        differences = compared.get(method.name_and_epochs, {})
        seconds = cpu_seconds(method.runs)
        rows.append(_segmentation_cells(method, summary, differences, seconds))
        kept = {over: summary[over] for over in ("over_cases", "over_folds", "one_empty")}
        data[method.name_and_epochs] = {
            "epochs": method.epochs,
            "runs": sorted(method.cases),
            **kept,
            "minus_first": differences,
            "cpu_seconds": seconds,
        }
    return Table(title, rows, data)


def equal_time_table(
    name: str, keys: Sequence[str], scores: Mapping[Run, Any], *, dataset: str, resolution: str
) -> Table:
    """The first row minus each other method at the shortest length that takes at least as much CPU time.

    Arguments as of `segmentation_table`.
    """
    pairs = equal_time(by_method(keys, scores, dataset, resolution), first=keys[0])
    rows, data = [], {}
    for pair in pairs:
        cells = {"": f"{pair.first.name}, {pair.first.epochs}", "against": f"{pair.rival.name}, {pair.rival.epochs}"}
        cells["runs"] = str(pair.runs)
        cells["CPU time (s)"] = " / ".join(f"{seconds:.0f}" for seconds in pair.seconds)
        for metric in COMPARED:
            cells[f"{TITLES[metric]}, first minus this ± SE over runs"] = _over_runs(
                {"over_runs": pair.differences[metric]}, DIGITS[metric]
            )
        rows.append(cells)
        data[f"{cells['']} - {cells['against']}"] = {"seconds": pair.seconds, "differences": pair.differences}
    return Table(f"{name}, {RESOLUTIONS[resolution]}, {dataset} cases, at equal CPU time", rows, data)


def _segmentation_cells(
    method: Method,
    summary: Mapping[str, Any],
    differences: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> dict[str, str]:
    over_cases = summary["over_cases"][MEAN]
    cells = {"": method.name, "epochs": method.epochs, "runs": str(len(method.cases))}
    cells["cases"] = str(over_cases["Dice"]["n"])
    for metric in SEGMENTATION_METRICS:
        cells[TITLES[metric]] = _mean_std(over_cases[metric], DIGITS[metric])
    for metric in COMPARED:
        difference = differences.get(metric)
        cells[f"minus first, {TITLES[metric]} ± SE over runs"] = _over_runs(difference, DIGITS[metric])
        cells[f"95 % over cases ({metric})"] = _interval(difference, DIGITS[metric])
        cells[f"p, Holm ({metric})"] = "" if difference is None else _p_value(difference["over_cases"]["p_holm"])
    cells[MISSED] = str(sum(summary["one_empty"].values()) or "")
    cells["CPU time of all training (s)"] = _mean_std(seconds, 0)
    return cells


def _over_runs(difference: Mapping[str, Any] | None, digits: int) -> str:
    if difference is None or math.isnan(difference["over_runs"]["mean"]):
        return ""
    error = difference["over_runs"]["standard_error"]
    return f"{difference['over_runs']['mean']:+.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def _interval(difference: Mapping[str, Any] | None, digits: int) -> str:
    low, high = (math.nan, math.nan) if difference is None else difference["over_cases"]["interval"]
    return "" if math.isnan(low) else f"{low:+.{digits}f} to {high:+.{digits}f}"


def _time_table(runs: Sequence[Run]) -> Table:
    """CPU and wall seconds of every row's own training, export and validation: mean ± std over runs."""
    taken: dict[tuple[str, str], list[Mapping[str, float]]] = {}
    for run in runs:
        if run.finished and "train" in (seconds := read_seconds(seconds_file(run))):
            taken.setdefault((run.row.title, run.all_epochs), []).append(seconds["train"])
    data = {
        f"{title}, {epochs}": {clock: statistic(values[clock] for values in seconds) for clock in ("cpu", "wall")}
        for (title, epochs), seconds in taken.items()
    }
    rows = [
        {
            "training, export and validation": title,
            "epochs": epochs,
            "runs": str(len(seconds)),
            **{f"{clock} (s)": _mean_std(statistic(s[clock] for s in seconds), 0) for clock in ("cpu", "wall")},
        }
        for (title, epochs), seconds in taken.items()
    ]
    return Table("Time of single trainings", rows, data)


def restoration_table(name: str, runs: Sequence[Run]) -> Table:
    """PSNR, SSIM, Dice, Spearman of U against the true HR volumes: validation cases' mean, its mean ± std over runs."""
    collected: dict[str, dict[str, dict[tuple[int, int], float]]] = {}
    for run in runs:
        if run.finished:
            for method, scores in json.loads(run.report.read_text())["comparisons"].get("true HR", {}).items():
                # interpolation stands in every row's report and counts once; a network is named by the row's title
                title = method if method.startswith("B-spline") else run.row.title
                for metric, value in scores.items():
                    collected.setdefault(title, {}).setdefault(metric, {})[run.seed, run.fold] = value
    data = {
        title: {metric: statistic(values.values()) for metric, values in metrics.items()}
        for title, metrics in collected.items()
    }
    order = sorted(data, key=lambda title: not title.startswith("B-spline"))
    rows = [
        {
            "": title,
            **{
                f"{TITLES[m]}, mean ± std over runs": _mean_std(data[title][m], DIGITS[m]) if m in data[title] else ""
                for m in TITLES
                if m.islower()
            },
        }
        for title in order
    ]
    return Table(f"{name}, validation cases", rows, data)


def _csv(scores: Mapping[Run, Any]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("row", "epochs", "seed", "fold", "set", "resolution", "upsampling", "case", "label", "metric", "value")
    )
    for run, sets in scores.items():
        head = (run.row.key, run.all_epochs, run.seed, run.fold)
        for dataset, resolutions in sets.items():
            for resolution, ways in resolutions.items():
                for way, scored in ways.items():
                    for case in scored["cases"]:
                        for label, metrics in case["metrics"].items():
                            for metric in SEGMENTATION_METRICS:
                                value = metrics.get(metric, math.nan)  # not of an earlier version
                                writer.writerow(
                                    (
                                        *head,
                                        dataset,
                                        resolution,
                                        way,
                                        case["case"],
                                        scored["labels"][label],
                                        metric,
                                        value,
                                    )
                                )
    return text.getvalue()


def _mean_std(value: Mapping[str, float], digits: int) -> str:
    deviation = "" if math.isnan(value["std"]) else f" ± {value['std']:.{digits}f}"
    return f"{_number(value['mean'], digits)}{deviation}"


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.0001" if p < 0.0001 else _number(p, 4)


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"

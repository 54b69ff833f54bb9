"""The tables, in markdown, csv and json, from whatever runs are finished."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.rows import ROWS, TABLES, Row
from benchmarks.quality.runs import Run, seconds_file
from benchmarks.quality.scores import SETS, read_scores
from rehrseg_nnunet.evaluation.summary import (
    MEAN,
    MISSED,
    SEGMENTATION_METRICS,
    method_summary,
    paired_test,
    statistic,
)
from rehrseg_nnunet.nnunet.safe_files import write_atomically

RESOLUTIONS = {"lr": "thick slices (LR)", "hr": "thin slices (HR)"}
TITLES = {
    "Dice": "Dice",
    "HD95": "HD95 (mm)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "dice": "Dice",
    "spearman": "Spearman of U",
}
DIGITS = {"Dice": 3, "HD95": 2, "psnr": 2, "ssim": 3, "dice": 3, "spearman": 2}
# Rows whose times are summed up, and those over which
PIPELINES = (("self_sr", "rehrseg"), ("smore", "self_sr_smore", "rehrseg_smore"))
BASELINES = (("baseline",), ("baseline", "continued"))


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
    tables += [table for table in [cost_table(runs)] if table.rows]
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
    return [
        table
        for dataset in SETS
        for resolution in RESOLUTIONS
        if (table := segmentation_table(name, keys, shown, dataset=dataset, resolution=resolution)).rows
    ]


def segmentation_table(
    name: str, keys: Sequence[str], scores: Mapping[Run, Any], *, dataset: str, resolution: str
) -> Table:
    """Dice and HD95 of rows, pooled over folds and seeds, the others tested against the first.

    Args:
        name: of the table.
        keys: its rows, the one that the others are tested against first.
        scores: of finished runs.
        dataset: "validation" or "test".
        resolution: "lr" or "hr".
    """
    methods, labels = _by_method(keys, scores, dataset, resolution)
    title = f"{name}, {RESOLUTIONS[resolution]}, {dataset} cases"
    rows, data = [], {}
    reference = next((folds for (row, _), folds in methods.items() if row.key == keys[0]), None)
    for (row, way), folds in methods.items():
        summary = method_summary(folds, dict.fromkeys(folds, Path()), labels=labels, metrics=SEGMENTATION_METRICS)
        tests = {} if reference is None or folds is reference else _tests(folds, reference, labels)
        epochs = next(run.all_epochs for run in scores if run.row is row)
        full_name = f"{row.title}, {way}" if way else row.title
        rows.append(_segmentation_cells(full_name, epochs, summary, tests))
        kept = {over: summary[over] for over in ("over_cases", "over_folds", "one_empty")}
        data[full_name] = {"epochs": epochs, "runs": sorted(folds), **kept, "against_first": tests}
    return Table(title, rows, data)


def _tests(
    folds: Mapping[str, list[dict[str, Any]]], reference: Mapping[str, list[dict[str, Any]]], labels: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Paired tests over the runs that both have: other folds and seeds would be part of the difference."""
    common = sorted(folds.keys() & reference.keys())
    pair = [{run: method[run] for run in common} for method in (folds, reference)]
    return {
        metric: {"runs": common, **paired_test(*pair, labels=labels, metric=metric)} for metric in SEGMENTATION_METRICS
    }


def _by_method(
    keys: Sequence[str], scores: Mapping[Run, Any], dataset: str, resolution: str
) -> tuple[dict[tuple[Row, str], dict[str, list[dict[str, Any]]]], list[str]]:
    """Cases by run's name, by row and way to HR, in the order of the keys; and the labels."""
    methods: dict[tuple[Row, str], dict[str, list[dict[str, Any]]]] = {}
    labels: list[str] = []
    for run in sorted(scores, key=lambda run: keys.index(run.row.key)):
        for way, scored in scores[run].get(dataset, {}).get(resolution, {}).items():
            labels = list(scored["labels"])
            methods.setdefault((run.row, way), {})[f"seed {run.seed} fold {run.fold}"] = scored["cases"]
    return methods, labels


def _segmentation_cells(
    name: str, epochs: str, summary: Mapping[str, Any], tests: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    over_cases, over_runs = summary["over_cases"][MEAN], summary["over_folds"][MEAN]
    cells = {"": name, "epochs": epochs, "runs": str(len(summary["folds"])), "cases": str(over_cases["Dice"]["n"])}
    for metric in SEGMENTATION_METRICS:
        cells[f"{TITLES[metric]}, mean ± std over cases"] = _mean_std(over_cases[metric], DIGITS[metric])
        cells[f"± over runs ({metric})"] = _number(over_runs[metric]["std"], DIGITS[metric])
        test = tests.get(metric)
        cells[f"first minus this ({metric})"] = _difference(test, DIGITS[metric])
        cells[f"p ({metric})"] = "" if test is None else _p_value(test["p"])
    missed = sum(summary["one_empty"].values())
    cells[MISSED] = str(missed or "")
    return cells


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


def cost_table(runs: Sequence[Run]) -> Table:
    """What REHRSeg's trainings take, over what the baseline's do, in wall and in CPU time, per fold and seed.

    Trainings of which an attempt was killed are left out: nobody knows how long it was.
    """
    totals: dict[tuple[int, int], dict[str, dict[str, float]]] = {}
    for run in runs:
        file = seconds_file(run)
        taken = json.loads(file.read_text()).get("train") if file.is_file() and run.finished else None
        if taken is not None and not taken.get("incomplete"):
            totals.setdefault((run.seed, run.fold), {})[run.row.key] = taken
    rows, data = [], {}
    for pipeline, base in product(PIPELINES, BASELINES):
        ratios = {
            clock: statistic(
                sum(taken[key][clock] for key in pipeline) / sum(taken[key][clock] for key in base)
                for taken in totals.values()
                if taken.keys() >= {*pipeline, *base}
            )
            for clock in ("wall", "cpu")
        }
        if ratios["cpu"]["n"]:
            trainers, bases = [ROWS[key].trainer for key in pipeline], [ROWS[key].title for key in base]
            name = f"{' + '.join(trainers)}, over {' + '.join(bases)}"
            rows.append({"training, export and validation": name, **{c: _mean_std(r, 2) for c, r in ratios.items()}})
            data[name] = ratios
    return Table("Time, ratios within one run", rows, data)


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
                                value = metrics[metric]
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


def _difference(test: Mapping[str, Any] | None, digits: int) -> str:
    undefined = test is None or math.isnan(test["mean_difference"])
    return "" if undefined else f"{-test['mean_difference']:+.{digits}f}"


def _p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else _number(p, 4)


def _number(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"

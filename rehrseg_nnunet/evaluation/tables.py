"""Print and write what ``evaluate_folders`` returns."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rehrseg_nnunet.evaluation.summary import MEAN
from rehrseg_nnunet.nnunet.safe_files import write_atomically

_DECIMALS = {"Dice": 4, "HD95": 2, "NSD": 4, "ASSD": 2, "VolumeBias": 1, "PSNR": 2, "SSIM": 4}
_TITLES = {
    "HD95": "HD95 (mm)",
    "NSD": "NSD (surface Dice)",
    "ASSD": "ASSD (mm)",
    "VolumeBias": "volume bias (%)",
    "PSNR": "PSNR (dB)",
}
CSV_COLUMNS = ("name", "fold", "case", "label", "metric", "value")


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as text with aligned columns: the first to the left, the others to the right.

    Args:
        rows: cells by column name; the columns are those of the first row.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must not be empty, got no row")
    cells = [list(rows[0]), *([row[column] for column in rows[0]] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(pairs))
        for pairs in (zip(row, widths, strict=True) for row in cells)
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(line.rstrip() for line in lines)


def format_summary(summary: Mapping[str, Any]) -> str:
    """All tables of an evaluation, with what the numbers mean, as text for a terminal."""
    settings, methods = summary["settings"], summary["methods"]
    several_folds = {name: method for name, method in methods.items() if len(method["folds"]) > 1}
    parts = []
    for metric in settings["metrics"]:
        title = _TITLES.get(metric, metric)
        parts.append(f"{title}: mean +- std over cases\n{_metric_table(methods, settings, metric, 'over_cases')}")
        if several_folds:
            table = _metric_table(several_folds, settings, metric, "over_folds")
            parts.append(f"{title}: mean +- std of the folds' means\n{table}")
    parts.extend(_notes(summary))
    if summary["paired"]:
        rows = [_paired_row(test) for test in summary["paired"]]
        parts.append(
            "Paired differences of the cases' means over labels: 95 % bootstrap interval of the mean; p of a two-sided "
            "Wilcoxon test, and corrected by Holm for the number of methods\n" + format_table(rows)
        )
    return "\n\n".join(parts)


def _metric_table(methods: Mapping[str, Any], settings: Mapping[str, Any], metric: str, over: str) -> str:
    columns = {MEAN: MEAN, **settings["labels"]}
    if len(settings["labels"]) == 1:
        del columns[MEAN]
    rows = []
    for name, method in methods.items():
        row = {"": name, "n": str(method[over][MEAN][metric]["n"])}
        for key, title in columns.items():
            row[title] = _mean_std(method[over][key][metric], _DECIMALS[metric])
        rows.append(row)
    return format_table(rows)


def _mean_std(statistic: Mapping[str, float], decimals: int) -> str:
    mean, deviation = (
        "-" if math.isnan(value) else f"{value:.{decimals}f}" for value in (statistic["mean"], statistic["std"])
    )
    return f"{mean} +- {deviation}"


def _paired_row(test: Mapping[str, Any]) -> dict[str, str]:
    decimals = _DECIMALS[test["metric"]]
    low, high = test["interval"]
    return {
        "": f"{test['name']} - {test['against']}",
        "metric": test["metric"],
        "n": str(test["n"]),
        "mean difference": f"{test['mean_difference']:+.{decimals}f}",
        "95 % interval": "-" if math.isnan(low) else f"{low:+.{decimals}f} to {high:+.{decimals}f}",
        "p": _p_value(test["p"]),
        "p (Holm)": _p_value(test["p_holm"]),
        "note": test["note"],
    }


def _p_value(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3g}"


def _notes(summary: Mapping[str, Any]) -> Iterator[str]:
    settings = summary["settings"]
    for name, method in summary["methods"].items():
        counts = {label: count for label, count in method.get("one_empty", {}).items() if count}
        if counts:
            listed = ", ".join(f"{settings['labels'][label]} in {count}" for label, count in counts.items())
            yield (
                f"{name}: structures that are missed or made up: {listed}; they count as Dice and NSD 0, and as HD95 "
                "and ASSD of the image's diagonal"
            )
    if "nsd_tolerance_mm" in settings:
        tolerance = settings["nsd_tolerance_mm"]
        yield f"NSD: tolerance {'one pixel of the slices' if tolerance is None else f'{tolerance:g} mm'}"
    if "data_range" in settings:
        ranges = [value for *_, metric, value in score_rows(summary) if metric == "data_range"]
        yield (
            f"PSNR, SSIM: data range = {settings['data_range']}, {min(ranges):.6g} to {max(ranges):.6g}; SSIM with a "
            f"Gaussian window of {settings['ssim_window']} voxels, sigma {settings['ssim_sigma']}"
        )
        constant = sum(value == 0 for value in ranges)
        if constant:
            yield f"PSNR, SSIM: not defined for {constant} comparisons with a constant reference image"


def score_rows(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str, str, float]]:
    """Every single value as (name, fold, case, label name, metric, value)."""
    names = summary["settings"]["labels"]
    for name, method in summary["methods"].items():
        for fold, content in method["folds"].items():
            for case in content["metric_per_case"]:
                for label, values in case["metrics"].items():
                    for metric, value in values.items():
                        yield name, fold, case["case"], names[label], metric, value


def write_summary(summary: Mapping[str, Any], *, json_file: Path, csv_file: Path) -> None:
    """Write the whole evaluation as JSON and its single values as CSV, each in one step.

    Undefined values are ``NaN`` in the JSON file, as in nnU-Net's summary.json, and ``nan`` in the CSV file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(score_rows(summary))
    for file, content in ((csv_file, text.getvalue()), (json_file, json.dumps(summary, indent=2) + "\n")):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content)

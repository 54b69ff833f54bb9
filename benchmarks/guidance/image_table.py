"""The table of part P: images of teacher, keeper and rival beside the source after its best line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.guidance.image_scores import FEATURES, GUIDES, ImageModel, read, values_of
from benchmarks.guidance.runs import Run
from benchmarks.guidance.tables import Cell, Table
from benchmarks.quality.clock import read_seconds
from rehrseg_nnunet.guided.image_scores import mean_of_defined
from rehrseg_nnunet.guided.report import RECONSTRUCTED, SOURCE, SYNTHESISED

TITLE = "Synthesised images"
METRICS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 3),
    "nmse": ("NMSE", 3),
    FEATURES: ("feature distance of the image", 3),
    GUIDES: ("of the guides", 3),
}
DIFFERENCES = (("psnr", "source"), ("psnr", "l1_unet"), (FEATURES, "l1_unet"), (GUIDES, "l1_unet"))
TITLES = {"source": "source", "l1_unet": "U-Net"}
SCHEDULES = {"one_cycle": "one cycle", "polynomial": "falling rate"}
Values = dict[str, dict[str, float]]  # metric, case


def image_table(runs: Sequence[Run]) -> Table:
    """Means over the validation cases of finished runs, and differences with their standard error over these cases."""
    scored = {run: scores for run in runs if run.row.synthesises and (scores := read(run.scores)) is not None}
    rows: dict[str, tuple[Values, dict[str, float]]] = {}
    for run, scores in scored.items():
        for title, image in _images(run):
            rows[title] = _values(scores, image), _seconds(run, scores) if image != SOURCE else {}
    own = {"source": "source, best line"} | {run.row.key: title_of(run) for run in scored}
    rows = {title: rows[title] for title in sorted(rows, key=lambda title: title != own["source"])}
    references = {key: rows[own[key]][0] for key in TITLES if key in own and own[key] in rows}
    n = len(next(iter(rows.values()))[0]["psnr"]) if rows else 0
    table = Table(TITLE, _columns(), "validation", n)
    for title, (values, seconds) in rows.items():
        others = {key: values_ for key, values_ in references.items() if values_ is not values}
        table.rows[title] = {**_means(values), **_differences(values, others), **_times(seconds)}
    return table


def _images(run: Run) -> list[tuple[str, str]]:
    """Titles of a run's rows and what they are of."""
    if run.row.trainer != "GuidanceTeacherTrainer":
        return [(title_of(run), SYNTHESISED)]
    reconstruction = (f"reconstruction by the {title_of(run)} (bound)", RECONSTRUCTED)
    return [("source, best line", SOURCE), reconstruction] if run.row.key == "teacher" else [reconstruction]


def title_of(run: Run) -> str:
    """Title of a row with the settings that it was trained with, as its plans say."""
    config = ImageModel(run).settings
    parts = [run.row.title, *([] if run.row.key == "l1_unet" else [f"width {config.base_features}"])]
    if run.row.teacher:
        parts += [f"kernel {config.keeper.kernel}", f"distillation {config.keeper.distillation_weight:g}"]
        parts += [] if config.keeper.residual else ["not residual"]
        parts += ["no adversary"] if not config.keeper.adversarial_weight else []
    parts += [] if config.schedule == "constant" else [SCHEDULES[config.schedule]]
    return ", ".join([*parts, f"{run.epochs or getattr(config, run.row.epochs).epochs} epochs"])


def _values(scores: Mapping[str, Any], image: str) -> Values:
    return {metric: values_of(scores, image, metric) for metric in METRICS}


def _seconds(run: Run, scores: Mapping[str, Any]) -> dict[str, float]:
    cpu = read_seconds(run.seconds).get("train", {}).get("cpu", math.nan)
    return {"cpu_s": cpu, "wall_s": scores["epochs_seconds"]}


def _columns() -> dict[str, str]:
    columns = {metric: title for metric, (title, _) in METRICS.items()}
    for metric, key in DIFFERENCES:
        columns[f"{metric}_minus_{key}"] = f"{METRICS[metric][0]} minus {TITLES[key]} ± SE"
    return columns | {"cpu_s": "training, CPU (s)", "wall_s": "epochs, wall (s)"}


def _means(values: Values) -> dict[str, Cell]:
    means = {metric: mean_of_defined([*values[metric].values()]) for metric in METRICS}
    return {metric: Cell(means[metric], digits) for metric, (_, digits) in METRICS.items()}


def _differences(values: Values, references: Mapping[str, Values]) -> dict[str, Cell]:
    cells = {}
    for metric, key in DIFFERENCES:
        if key in references:
            difference, error = paired_difference(values[metric], references[key][metric])
            cells[f"{metric}_minus_{key}"] = Cell(difference, METRICS[metric][1], error, signed=True)
    return cells


def paired_difference(values: Mapping[str, float], others: Mapping[str, float]) -> tuple[float, float]:
    """Mean over common cases of values minus others, and its standard error; nan where there is none."""
    pairs = np.array([[values[case], others[case]] for case in sorted(values.keys() & others.keys())]).reshape(-1, 2)
    differences = np.diff(pairs[np.isfinite(pairs).all(axis=1)][:, ::-1], axis=1)[:, 0]
    if len(differences) < 2:
        return mean_of_defined(differences), math.nan
    return float(differences.mean()), float(differences.std(ddof=1) / math.sqrt(len(differences)))


def _times(seconds: Mapping[str, float]) -> dict[str, Cell]:
    return {name: Cell(value, 0) for name, value in seconds.items()}

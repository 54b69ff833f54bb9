"""Charts of all cases and of training, as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from rehrseg_nnunet.report.measures import FIFTHS
from rehrseg_nnunet.report.pictures import as_uri
from rehrseg_nnunet.report.results import CaseResult
from rehrseg_nnunet.report.training_log import TERM, TrainingLog
from rehrseg_nnunet.surfaces.structures import Structure, Structures

_MODEL, _BASELINE = "#0072b2", "#d55e00"
_LOSSES = ("train loss", "val loss")
_IMAGE_METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "uncertainty_spearman": "Spearman, U with error"}


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context():  # nnU-Net's own plots leave seaborn's style and large fonts behind
        matplotlib.rcdefaults()
        matplotlib.rcParams |= {"svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
        matplotlib.rcParams |= {"axes.spines.top": False, "axes.spines.right": False}
        yield


def paired_dots(cases: Sequence[CaseResult]) -> str | None:
    """Dice of every case with the baseline and with the model, joined by a line; None without pairs."""
    pairs = [(case.name, case.mean("Dice", case.baseline_scores), case.mean("Dice")) for case in cases]
    pairs = [(name, *values) for name, *values in pairs if not np.isnan(values).any()]
    if not pairs:
        return None
    with _style():
        figure = Figure(figsize=(3.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for _, before, after in pairs:
            axes.plot([0, 1], [before, after], color="#999999", linewidth=0.8, zorder=1)
        for place, colour in ((0, _BASELINE), (1, _MODEL)):
            axes.scatter([place] * len(pairs), [pair[1 + place] for pair in pairs], color=colour, s=18, zorder=2)
        name, _, lowest = min(pairs, key=lambda pair: pair[2])
        axes.annotate(f" {name}", (1, lowest), fontsize=8, va="center")
        axes.set(xlim=(-0.5, 2), xticks=[0, 1], ylabel="Dice")
        axes.set_xticklabels(["baseline", "model"])
        return as_uri(figure, kind="svg")


def along_the_stack(cases: Sequence[CaseResult], *, model: str, baseline: str | None) -> str | None:
    """Dice in every fifth of the stack: a dot for each case, a line through the means; None without reference."""
    series = [(model, _MODEL, [case.stack.dice for case in cases if case.stack is not None])]
    if baseline is not None:
        stacks = [case.baseline_stack for case in cases]
        series.append((baseline, _BASELINE, [stack.dice for stack in stacks if stack is not None]))
    if not series[0][2]:
        return None
    with _style():
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for shift, (title, colour, rows) in zip((0.06, -0.06), series, strict=False):
            if rows:
                places = np.arange(FIFTHS) + shift
                values = np.array(rows)
                axes.scatter(np.tile(places, len(rows)), values, color=colour, s=8, alpha=0.35, linewidths=0)
                axes.plot(places, [_mean(column) for column in values.T], color=colour, marker="o", label=title)
        labels = ["first", "second", "middle", "fourth", "last"]
        first = ("inferior", "anterior", "right")[cases[0].axis]
        axes.set(xticks=range(FIFTHS), ylabel="Dice", xlabel=f"fifth of the structures' slices, {first} first")
        axes.set_xticklabels(labels)
        axes.legend(frameon=False, fontsize=8)
        return as_uri(figure, kind="svg")


def _mean(values: np.ndarray) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def volume_differences(cases: Sequence[CaseResult], structures: Structures) -> str | None:
    """Predicted minus true volume against the true volume, by structure; None without reference."""
    pairs: dict[Structure, list[tuple[float, float]]] = {}
    for number, structure in enumerate(structures.all):
        rows = [case.structures[number] for case in cases]
        pairs[structure] = [(row.reference_ml, row.volume_ml) for row in rows if row.reference_ml]
    if not any(pairs.values()):
        return None
    with _style():
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for structure, volumes in pairs.items():
            true, found = np.reshape(volumes, (-1, 2)).T
            colour = tuple(part / 255 for part in structures.colour(structure))
            axes.scatter(true, 100 * (found / true - 1), color=colour, s=18, label=structure.name)
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set(xlabel="volume of the reference (ml)", ylabel="predicted volume, difference (%)")
        axes.legend(frameon=False, fontsize=8)
        return as_uri(figure, kind="svg")


def curves(log: TrainingLog) -> str | None:
    """Losses, terms of the loss, pseudo Dice and stage 1's image metrics by epoch; None for a log without epochs."""
    groups = [("loss", _LOSSES), ("loss by term, last step", log.terms), ("pseudo Dice", ["pseudo Dice"])]
    groups += [(title, [name]) for name, title in _IMAGE_METRICS.items()]
    shown = [(title, [name for name in names if log.epochs.get(name)]) for title, names in groups]
    shown = [(title, names) for title, names in shown if names]
    if not shown:
        return None
    with _style():
        columns = min(3, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, names) in zip(panels, shown, strict=False):
            for name in names:
                axes.plot(*log.series(name), label=name.removeprefix(TERM), linewidth=1.3)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("epoch")
            if len(names) > 1:
                axes.legend(frameon=False, fontsize=8)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        return as_uri(figure, kind="svg")

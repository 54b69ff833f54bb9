"""Planes through volumes side by side, in millimetres, with outlines of labels: every figure of this repository.

Every volume is drawn on its own grid: thick slices look thick, and an outline runs along the edges of voxels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

from rehrseg_nnunet.evaluation.volumes import Box, Volume

matplotlib.use("agg")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Colour = tuple[float, float, float]  # red, green, blue from 0 to 1
COLUMN_INCHES = 3.0
SCALE_BAR_MM = 10
_WINDOW_PERCENT = (0.5, 99.5)
_HORIZONTAL, _VERTICAL = {0: 2, 1: 2, 2: 1}, {0: 1, 1: 0, 2: 0}  # axes of the plane across an axis


@dataclass(frozen=True)
class Overlay:
    """Labels over an image.

    Attributes:
        labels: whole numbers.
        colours: of each label that is drawn.
        filled: areas in place of outlines.
        dashed: outlines of dashes.
    """

    labels: Volume
    colours: Mapping[int, Colour]
    filled: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """A column of a figure.

    Attributes:
        title: above it.
        image: None draws the overlays on black.
        overlays: from bottom to top.
        limits: values from the first to the last colour of a map of uncertainty; None: grey values of the scan.
    """

    title: str
    image: Volume | None
    overlays: Sequence[Overlay] = ()
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cut:
    """A row of a figure: the plane across an axis at a position in mm."""

    title: str
    axis: int
    position: float


def draw_planes(panels: Sequence[Panel], cuts: Sequence[Cut], window: Box, *, grey: tuple[float, float]) -> Figure:
    """A figure with a column for each panel and a row for each cut, all at one scale.

    Args:
        panels: with parallel axes.
        cuts: at least one.
        window: what is shown, in mm.
        grey: black and white value of the scans.
    """
    from matplotlib.figure import Figure

    length = window[:, 1] - window[:, 0]
    width = max(length[_HORIZONTAL[cut.axis]] for cut in cuts)
    heights = [length[_VERTICAL[cut.axis]] / width for cut in cuts]
    size = (COLUMN_INCHES * len(panels), COLUMN_INCHES * sum(heights) + 0.3 + 0.05 * len(cuts))
    with matplotlib.rc_context():  # nnU-Net's own plots leave seaborn's style and large fonts behind
        matplotlib.rcdefaults()
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)  # pyright: ignore
        rows = figure.subplots(len(cuts), len(panels), squeeze=False, height_ratios=heights)
        for row, cut in zip(rows, cuts, strict=True):
            for axes, panel in zip(row, panels, strict=True):
                _draw(axes, panel, cut, window, grey)
            row[0].set_ylabel(cut.title, fontsize=9)
        for axes, panel in zip(rows[0], panels, strict=True):
            axes.set_title(panel.title, fontsize=10)
        _add_scale_bar(rows[-1][0], cuts[-1], window)
    return figure


def grey_window(image: Volume) -> tuple[float, float]:
    """Black and white value of a scan."""
    low, high = np.percentile(image.values, _WINDOW_PERCENT)
    return float(low), float(high)


def _draw(axes: Axes, panel: Panel, cut: Cut, window: Box, grey: tuple[float, float]) -> None:
    horizontal, vertical = _HORIZONTAL[cut.axis], _VERTICAL[cut.axis]
    axes.set_facecolor("black")
    if panel.image is not None:
        low, high = grey if panel.limits is None else panel.limits
        colours = "gray" if panel.limits is None else "inferno"
        _show(axes, panel.image, panel.image.plane(cut.axis, cut.position), cut, cmap=colours, vmin=low, vmax=high)
    for overlay in panel.overlays:
        labels = overlay.labels.plane(cut.axis, cut.position)
        for value, colour in overlay.colours.items():
            inside = labels == value
            if overlay.filled:
                area = np.zeros((*inside.shape, 4))
                area[inside] = (*colour, 0.5)
                _show(axes, overlay.labels, area, cut)
            else:
                _outline(axes, inside, overlay, cut, colour)
    axes.set_xlim(window[horizontal])
    axes.set_ylim(window[vertical] if vertical == 0 else window[vertical][::-1])
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])


def _show(axes: Axes, volume: Volume, plane: np.ndarray, cut: Cut, **options: Any) -> None:
    """Superior is up, posterior is down."""
    left, right = volume.box[_HORIZONTAL[cut.axis]]
    low, high = volume.box[_VERTICAL[cut.axis]]
    upright = _VERTICAL[cut.axis] == 0
    extent = (left, right, low, high) if upright else (left, right, high, low)
    axes.imshow(plane, extent=extent, origin="lower" if upright else "upper", interpolation="nearest", **options)


def _outline(axes: Axes, inside: np.ndarray, overlay: Overlay, cut: Cut, colour: Colour) -> None:
    from matplotlib.collections import LineCollection

    columns, rows = (overlay.labels.edges(axes_of[cut.axis]) for axes_of in (_HORIZONTAL, _VERTICAL))
    lines = [[(columns[x], rows[y]) for y, x in ends] for ends in voxel_edges(inside)]
    outline = LineCollection(lines, colors=[colour], linewidths=1.2, capstyle="projecting")
    if overlay.dashed:
        outline.set_linestyle((0, (3, 2)))
    axes.add_collection(outline)


def voxel_edges(inside: np.ndarray) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The outline of a mask (H, W) along the edges of its pixels: pairs of corners (row, column).

    Neighbouring edges on one line are one, so that dashes do not begin anew at every pixel.

    Example:
        >>> voxel_edges(np.array([[True, True]]))
        [((0, 0), (0, 2)), ((1, 0), (1, 2)), ((0, 0), (1, 0)), ((0, 2), (1, 2))]
    """
    padded = np.pad(inside, 1)
    horizontal = (padded[1:] != padded[:-1])[:, 1:-1]
    vertical = (padded[:, 1:] != padded[:, :-1])[1:-1]
    along = [((row, start), (row, end)) for row, start, end in _runs(horizontal)]
    return along + [((start, column), (end, column)) for column, start, end in _runs(vertical.T)]


def _runs(edges: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of true in every row: row, first, one after the last."""
    steps = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(row), int(start), int(end)) for (row, start), (_, end) in zip(starts, ends, strict=True)]


def _add_scale_bar(axes: Axes, cut: Cut, window: Box) -> None:
    left, right = window[_HORIZONTAL[cut.axis]]
    low, high = axes.get_ylim()
    if right - left < 2 * SCALE_BAR_MM:
        return
    start, height = left + 0.04 * (right - left), low + 0.05 * (high - low)
    axes.plot([start, start + SCALE_BAR_MM], [height, height], color="white", linewidth=2)
    axes.text(start, height + 0.02 * (high - low), f"{SCALE_BAR_MM} mm", color="white", fontsize=8)


def picture(figure: Figure, *, kind: str = "png", dpi: int = 100) -> bytes:
    """The bytes of a figure's file: png, webp or svg."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, dpi=dpi)
    return stream.getvalue()


def save_figure(figure: Figure, file: Path) -> None:
    """Write a PNG, complete or not at all."""
    partial = file.with_name(f".{file.name}")
    try:
        partial.write_bytes(picture(figure))
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)

"""Segmentations of one case side by side, in a plane through the slices, each on its own grid and in millimetres.

    python benchmarks/figure.py OUT.png "thick slices=IMAGE.nii.gz,LABELS.nii.gz" "thin slices=..." "truth=..."

The plane goes through the centre of the last panel's foreground, which is best the truth. Every voxel is drawn as large
as it is, so thick slices look thick.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import SimpleITK as sitk
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap

from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.evaluation.figures import label_centre

COLOURS = ListedColormap([f"C{number}" for number in range(1, 10)])
MARGIN_MM = 6


@dataclass(frozen=True)
class Panel:
    """One title with its image and labels, which share a grid along the scanner's axes."""

    title: str
    image: sitk.Image
    labels: sitk.Image

    def centre_mm(self) -> tuple[float, float, float]:
        """Physical point (x, y, z) of the foreground's centre."""
        z, y, x = label_centre(sitk.GetArrayFromImage(self.labels))
        return self.labels.TransformIndexToPhysicalPoint((x, y, z))

    def plane(self, volume: sitk.Image, point_mm: tuple[float, float, float], axis: int) -> np.ndarray:
        """The plane across an array axis through the voxel that holds a physical point."""
        index = volume.TransformPhysicalPointToIndex(point_mm)[::-1]
        return np.take(sitk.GetArrayFromImage(volume), index[axis], axis=axis)

    def extent_mm(self, axis: int) -> tuple[float, float, float, float]:
        """Edges (left, right, bottom, top) of that plane in mm, relative to the scanner's origin."""
        grid = self.image.GetOrigin(), self.image.GetSpacing(), self.image.GetSize()
        origin, spacing, size = (values[::-1] for values in grid)
        rows, columns = (other for other in range(3) if other != axis)
        edges = [(origin[a] - spacing[a] / 2, origin[a] + spacing[a] * (size[a] - 0.5)) for a in (columns, rows)]
        return (*edges[0], *edges[1])


def main(argv: list[str] | None = None) -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT.png")
    parser.add_argument("panels", nargs="+", metavar="TITLE=IMAGE,LABELS", type=_panel)
    parser.add_argument("--across", choices=AXES, default="x", help="axis that the plane is across (default: x)")
    parser.add_argument("--dpi", type=int, default=100)
    args = parser.parse_args(argv)
    draw(args.panels, axis=AXES[args.across]).savefig(args.output, dpi=args.dpi, bbox_inches="tight")


def _panel(text: str) -> Panel:
    title, _, files = text.rpartition("=")
    image, separator, labels = files.partition(",")
    if not title or not separator:
        raise argparse.ArgumentTypeError(f"a panel must be TITLE=IMAGE,LABELS, got {text}")
    return Panel(title, *(sitk.ReadImage(file) for file in (image, labels)))


def draw(panels: list[Panel], *, axis: int) -> plt.Figure:
    """One column per panel, all with the same window of the last panel's foreground and the same grey scale."""
    truth = panels[-1]
    point = truth.centre_mm()
    low, high = np.percentile(sitk.GetArrayFromImage(truth.image), (0.5, 99.5))
    window = _window_mm(truth, point, axis)
    figure, columns = plt.subplots(1, len(panels), figsize=(3 * len(panels), 3.2), squeeze=False)
    for column, panel in zip(columns[0], panels, strict=True):
        extent = panel.extent_mm(axis)
        options = {"extent": extent, "origin": "lower", "interpolation": "nearest"}
        column.imshow(panel.plane(panel.image, point, axis), cmap="gray", vmin=low, vmax=high, **options)
        labels = panel.plane(panel.labels, point, axis)
        shown = np.ma.masked_equal(labels, 0)
        column.imshow(shown, cmap=COLOURS, vmin=0.5, vmax=COLOURS.N + 0.5, alpha=0.5, **options)
        _frame(column, panel.title, window)
    figure.tight_layout()
    return figure


def _window_mm(panel: Panel, point: tuple[float, float, float], axis: int) -> tuple[float, float, float, float]:
    """Box of the foreground in the plane, with a margin, as `extent_mm`."""
    labels = panel.plane(panel.labels, point, axis)
    rows, columns = np.nonzero(labels)
    left, right, bottom, top = panel.extent_mm(axis)
    y, x = (top - bottom) / labels.shape[0], (right - left) / labels.shape[1]
    return (
        left + columns.min() * x - MARGIN_MM,
        left + (columns.max() + 1) * x + MARGIN_MM,
        bottom + rows.min() * y - MARGIN_MM,
        bottom + (rows.max() + 1) * y + MARGIN_MM,
    )


def _frame(column: Axes, title: str, window: tuple[float, float, float, float]) -> None:
    column.set_xlim(window[:2])
    column.set_ylim(window[2:])
    column.set_title(title, fontsize=10)
    column.set_xticks([])
    column.set_yticks([])


if __name__ == "__main__":
    main()

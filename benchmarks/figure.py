"""Segmentations of one case side by side, in a plane through the slices, each on its own grid and in millimetres.

    python benchmarks/figure.py OUT.png "thick slices=IMAGE.nii.gz,LABELS.nii.gz" "thin slices=..." "truth=..."

The plane goes through the centre of the last panel's foreground, which is best the truth. Every voxel is drawn as large
as it is, so thick slices look thick.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.evaluation.figures import Cut, Overlay, Panel, draw_planes, grey_window, picture
from rehrseg_nnunet.evaluation.volumes import read_volume, window_around
from rehrseg_nnunet.surfaces.colours import COLOURS

MARGIN_MM = 6


def main(argv: list[str] | None = None) -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT.png")
    parser.add_argument("panels", nargs="+", metavar="TITLE=IMAGE,LABELS", type=_panel)
    parser.add_argument("--across", choices=AXES, default="x", help="axis that the plane is across (default: x)")
    parser.add_argument("--dpi", type=int, default=100)
    args = parser.parse_args(argv)
    args.output.write_bytes(picture(draw(args.panels, axis=AXES[args.across]), dpi=args.dpi))


def _panel(text: str) -> Panel:
    title, _, files = text.rpartition("=")
    image, separator, labels = files.partition(",")
    if not title or not separator:
        raise argparse.ArgumentTypeError(f"a panel must be TITLE=IMAGE,LABELS, got {text}")
    colours = {number: tuple(part / 255 for part in rgb) for number, rgb in enumerate(COLOURS, start=1)}
    overlay = Overlay(read_volume(Path(labels), labels=True), colours, filled=True)
    return Panel(title, read_volume(Path(image)), [overlay])


def draw(panels: list[Panel], *, axis: int):
    """One column per panel, all with the same window of the last panel's foreground and the same grey scale."""
    labels, scan = panels[-1].overlays[0].labels, panels[-1].image
    window = window_around([labels], margin_mm=MARGIN_MM, within=scan)
    voxel = round(float(np.argwhere(labels.values > 0)[:, axis].mean()))
    edges = labels.edges(axis)
    cut = Cut("", axis, float(edges[voxel] + edges[voxel + 1]) / 2)
    return draw_planes(panels, [cut], window, grey=grey_window(scan))


if __name__ == "__main__":
    main()

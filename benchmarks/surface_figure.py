"""Surfaces of one case side by side, all seen from one direction and at one scale.

    python benchmarks/surface_figure.py OUT.png "labels=A_Anterior.stl,A_Posterior.stl" "margin=B_Anterior.stl,..."

The files are those of `rehrseg surfaces` and `rehrseg predict --surfaces`, all in the same coordinates.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import trimesh
from matplotlib.colors import LightSource
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from mpl_toolkits.mplot3d.axes3d import Axes3D

from rehrseg_nnunet.surfaces.colours import colour

MARGIN_MM = 1


@dataclass(frozen=True)
class Panel:
    """A title with surfaces that are drawn together."""

    title: str
    meshes: tuple[trimesh.Trimesh, ...]


def main(argv: list[str] | None = None) -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT.png")
    parser.add_argument("panels", nargs="+", metavar="TITLE=FILE,FILE", type=_panel)
    parser.add_argument("--elevation", type=float, default=20, help="degrees above the x-y plane (default: 20)")
    parser.add_argument("--azimuth", type=float, default=-60, help="degrees around z (default: -60)")
    parser.add_argument("--dpi", type=int, default=100)
    args = parser.parse_args(argv)
    draw(args.panels, elevation=args.elevation, azimuth=args.azimuth).savefig(args.output, dpi=args.dpi)


def _panel(text: str) -> Panel:
    title, _, files = text.rpartition("=")
    if not title:
        raise argparse.ArgumentTypeError(f"a panel must be TITLE=FILE,FILE, got {text}")
    return Panel(title, tuple(trimesh.load(file, force="mesh") for file in files.split(",")))


def draw(panels: list[Panel], *, elevation: float, azimuth: float) -> plt.Figure:
    """One column per panel, all with the same window."""
    corners = np.concatenate([mesh.bounds for panel in panels for mesh in panel.meshes])
    low, high = corners.min(0) - MARGIN_MM, corners.max(0) + MARGIN_MM
    figure = plt.figure(figsize=(3.2 * len(panels), 3.2))
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number, projection="3d", proj_type="ortho")
        _add_surfaces(axes, panel)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
        axes.set_box_aspect(high - low, zoom=1.25)
        axes.view_init(elevation, azimuth)
        axes.set_axis_off()
        axes.set_title(panel.title, fontsize=10)
    figure.subplots_adjust(0, 0, 1, 0.9, 0, 0)
    return figure


def _add_surfaces(axes: Axes3D, panel: Panel) -> None:
    """All triangles in one collection, so that matplotlib sorts them by depth; flat shading shows every stair."""
    triangles = np.concatenate([mesh.triangles for mesh in panel.meshes])
    shades = [np.tile(np.array(colour(index)) / 255, (len(m.faces), 1)) for index, m in enumerate(panel.meshes)]
    collection = Poly3DCollection(
        triangles, facecolors=np.concatenate(shades), shade=True, lightsource=LightSource(azdeg=315, altdeg=40)
    )
    collection.set_antialiased(False)
    axes.add_collection3d(collection)


if __name__ == "__main__":
    main()

"""Pictures of a case: three planes through the structures, acquired and thin grid side by side, and where it is unsure.

*Convention* The reference is white, structures have their colours. Left on the picture is the patient's right.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rehrseg_nnunet.evaluation.figures import Colour, Cut, Overlay, Panel, draw_planes, grey_window, picture
from rehrseg_nnunet.evaluation.volumes import Volume, largest_section, window_around
from rehrseg_nnunet.report.cases import CaseOnGrid, describe_spacing
from rehrseg_nnunet.surfaces.structures import Structure, Structures

PLANES = ("axial", "coronal", "sagittal")
MARGIN_MM = 8
_MOST_WRONG = "most wrong"
_WHITE = (1.0, 1.0, 1.0)


def structure_of_each_label(structures: Structures) -> dict[int, Structure]:
    """The structure of every label in a file; regions are those that write the label."""
    if structures.class_order:
        return dict(zip(structures.class_order, structures.all, strict=True))
    return {value: structure for structure in structures.all for value in structure.labels}


def colours_of(structures: Structures) -> dict[int, Colour]:
    """Colour of every label."""
    found = {value: structures.colour(structure) for value, structure in structure_of_each_label(structures).items()}
    return {value: (red / 255, green / 255, blue / 255) for value, (red, green, blue) in found.items()}


def draw_case(main: CaseOnGrid, acquired: CaseOnGrid | None, structures: Structures, *, axis: int) -> Figure:
    """The figure of a case.

    Args:
        main: what is judged.
        acquired: on the acquired slices, None where there is one grid.
        structures: of the dataset.
        axis: of the slices.
    """
    grids = [grid for grid in (acquired, main) if grid is not None]
    frame = grids[0].scan or grids[0].labels
    colours = colours_of(structures)
    panels = [_panel("prediction", main, frame, colours, thick=acquired)]
    if acquired is not None:
        panels.insert(0, _panel("acquired slices", acquired, frame, colours, thick=None))
    unsure = [grid.entropy(has_regions=bool(structures.class_order)) for grid in reversed(grids)]
    entropy = next((volume for volume in unsure if volume is not None), None)
    if entropy is not None:
        limit = 1.0 if structures.class_order else float(np.log2(max(2, structures.heads)))
        panels.append(Panel("where it is unsure (entropy)", entropy.with_axes_of(frame, order=1), limits=(0, limit)))
    shown = [volume.with_axes_of(frame, order=0) for volume in _labels(grids)]
    window = window_around(shown, margin_mm=MARGIN_MM, within=frame)
    scan = next((grid.scan for grid in grids if grid.scan is not None), None)
    grey = (0.0, 1.0) if scan is None else grey_window(scan)
    return draw_planes(panels, _cuts(grids, frame, axis, colours), window, grey=grey)


def _labels(grids: Sequence[CaseOnGrid]) -> list[Volume]:
    volumes = [volume for grid in grids for volume in (grid.labels, grid.reference)]
    return [volume for volume in volumes if volume is not None]


def _panel(
    title: str, grid: CaseOnGrid, frame: Volume, colours: Mapping[int, Colour], *, thick: CaseOnGrid | None
) -> Panel:
    overlays = []
    if thick is not None:
        overlays.append(Overlay(thick.labels.with_axes_of(frame, order=0), colours, dashed=True))
    if grid.reference is not None:
        white = dict.fromkeys(colours, _WHITE)
        overlays.append(Overlay(grid.reference.with_axes_of(frame, order=0), white))
    overlays.append(Overlay(grid.labels.with_axes_of(frame, order=0), colours))
    scan = None if grid.scan is None else grid.scan.with_axes_of(frame, order=1)
    return Panel(f"{title}: {describe_spacing(grid.labels.grid.spacing_mm)}", scan, overlays)


def _cuts(grids: Sequence[CaseOnGrid], frame: Volume, axis: int, colours: Mapping[int, Colour]) -> list[Cut]:
    """Planes of the largest sections; with a reference also the slice with most wrong voxels."""
    main = grids[-1]
    labels = main.labels if main.labels.values.any() or main.reference is None else main.reference
    labels = labels.with_axes_of(frame, order=0)
    cuts = [Cut(name, number, largest_section(labels, number)) for number, name in enumerate(PLANES)]
    judged = next((grid for grid in reversed(grids) if grid.reference is not None), None)
    if judged is not None and judged.reference is not None:
        true = judged.reference.values
        annotated = (true == 0) | np.isin(true, list(colours))
        wrong = Volume(((judged.labels.values != true) & annotated).astype(np.uint8), judged.labels.grid)
        if wrong.values.any():
            position = largest_section(wrong.with_axes_of(frame, order=0), axis)
            if abs(position - cuts[axis].position) > judged.labels.grid.spacing_mm[axis] / 2:
                cuts.append(Cut(f"{PLANES[axis]}, {_MOST_WRONG}", axis, position))
    return cuts


def as_uri(figure: Figure, *, kind: str) -> str:
    """A figure as a data address: webp for planes, svg for charts."""
    return data_uri(picture(figure, kind=kind, dpi=90), kind)


def file_uri(file: Path) -> str:
    """A PNG file as a data address."""
    return data_uri(file.read_bytes(), "png")


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of a picture as a data address."""
    mime = {"svg": "svg+xml"}.get(kind, kind)
    return f"data:image/{mime};base64,{base64.b64encode(content).decode('ascii')}"

"""Surface files that this package wrote, read again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from rehrseg_nnunet.slices.grids import LPS_RAS
from rehrseg_nnunet.surfaces.formats import FORMATS, require_formats
from rehrseg_nnunet.surfaces.mesh import Surface

_SPACE = re.compile(rb'SPACE"?[=:]"?(LPS|RAS)')
_HEAD_BYTES = 4096  # all formats that name their coordinates do so at the start
_MM = 1e3  # per metre


def read_surface(file: Path) -> tuple[Surface, tuple[int, int, int] | None]:
    """Read a surface in LPS mm, and its colour if the file has one.

    A file that does not name its coordinates is taken as LPS, as 3D Slicer does.

    Raises:
        ValueError: the file cannot be read as a surface.
        RuntimeError: a package is missing that reads surfaces.
    """
    file_format = file.suffix[1:].lower()
    if file_format not in FORMATS:
        raise ValueError(f"surfaces must be {', '.join(FORMATS)} files, got {file}")
    require_formats([file_format])
    import trimesh
    from trimesh.visual import ColorVisuals

    try:
        mesh = trimesh.load_mesh(file, file_type=file_format)
    except Exception as error:  # trimesh raises whatever its parsers do
        raise ValueError(f"{file} could not be read as a surface: {error}") from error
    vertices = np.asarray(mesh.vertices, dtype=np.float64) * (_MM if file_format == "glb" else 1)
    with file.open("rb") as stream:
        space = _SPACE.search(stream.read(_HEAD_BYTES))
    if space and space[1] == b"RAS":
        vertices = vertices @ LPS_RAS[:3, :3]
    colour = None
    if isinstance(mesh.visual, ColorVisuals) and mesh.visual.kind == "vertex":
        red, green, blue = (int(part) for part in mesh.visual.vertex_colors[0][:3])
        colour = red, green, blue
    return Surface(vertices, np.asarray(mesh.faces)), colour

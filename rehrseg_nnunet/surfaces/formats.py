"""Surface files: STL, PLY, OBJ, 3MF in mm and GLB in metres, written by trimesh."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands read `FORMATS` for their options
    from rehrseg_nnunet.surfaces.mesh import Surface

FORMATS = ("stl", "ply", "obj", "glb", "3mf")
_NEEDED = {"trimesh": "trimesh", "skimage": "scikit-image"}
_NEEDED_FOR_3MF = {"lxml": "lxml", "networkx": "networkx"}
_STL_HEADER = 80  # bytes
_LONGEST_NAME = 50  # letters of a label, in file names
_METRES = 1e-3  # per mm


def require_formats(formats: Sequence[str]) -> None:
    """Refuse to begin where a package is missing that these formats need.

    Raises:
        RuntimeError: the message names the extra.
    """
    needed = {**_NEEDED, **(_NEEDED_FOR_3MF if "3mf" in formats else {})}
    require_packages(needed, extra="surfaces", purpose="surfaces")


def require_packages(needed: dict[str, str], *, extra: str, purpose: str) -> None:
    """Refuse to begin without packages of an extra.

    Args:
        needed: distribution of each imported name.
        extra: of this package.
        purpose: what needs them.

    Raises:
        RuntimeError: the message names packages and extra.
    """
    missing = [distribution for module, distribution in needed.items() if not _importable(module)]
    if missing:
        raise RuntimeError(
            f"{purpose} need {' and '.join(missing)}, which must be installed: pip install 'rehrseg-nnunet[{extra}]'"
        )


def _importable(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def encoded(surface: Surface, file_format: str, *, space: str, colour: tuple[int, int, int]) -> bytes:
    """Content of a surface file.

    STL, PLY and OBJ name the coordinate system in a comment as 3D Slicer does, which reads it there.

    Args:
        surface: in mm.
        file_format: one of `FORMATS`.
        space: LPS or RAS.
        colour: red, green, blue from 0 to 255; for PLY and GLB.
    """
    import trimesh
    from trimesh.visual import ColorVisuals

    # process would merge vertices
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    if file_format in ("ply", "glb"):
        mesh.visual = ColorVisuals(mesh, vertex_colors=[*colour, 255])
    if file_format == "glb":
        mesh.apply_scale(_METRES)
        scene = trimesh.Scene(mesh, metadata={"SPACE": space, "unit": "m"})
        return _bytes(scene.export(file_type="glb"))
    if file_format == "3mf":
        mesh.units = "millimeter"
        return _bytes(trimesh.Scene(mesh).export(file_type="3mf"))
    return _with_comment(_bytes(mesh.export(file_type=file_format)), file_format, f"SPACE={space} unit=mm")


def _bytes(content: object) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)  # pyright: ignore[reportArgumentType] # bytes


def _with_comment(content: bytes, file_format: str, comment: str) -> bytes:
    text = f"rehrseg-nnunet {comment}"
    if file_format == "stl":
        return text.encode().ljust(_STL_HEADER, b" ") + content[_STL_HEADER:]
    if file_format == "ply":
        first, second, rest = content.split(b"\n", 2)  # "ply" and the encoding
        return b"\n".join((first, second, f"comment {text}".encode(), rest))
    return f"# {text}\n".encode() + content


def file_names(names: Sequence[str]) -> list[str]:
    """Names that every file system takes, all different.

    Example:
        >>> file_names(["left/right", "left right", "Grade II"])
        ['left_right', 'left_right_2', 'Grade_II']
    """
    safe: list[str] = []
    taken: set[str] = set()
    for name in names:
        plain = re.sub(r"[^\w.+-]+", "_", name)[:_LONGEST_NAME].strip("_.") or "label"
        chosen, number = plain, 1
        while chosen.lower() in taken:  # some file systems know no capitals
            number += 1
            chosen = f"{plain}_{number}"
        taken.add(chosen.lower())
        safe.append(chosen)
    return safe

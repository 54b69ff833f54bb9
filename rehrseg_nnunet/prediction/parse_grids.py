"""What `--grid` says."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid, OutputGrid
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid
from rehrseg_nnunet.prediction.spacing_grid import parse_spacing


def parse_grids(values: Sequence[str]) -> tuple[OutputGrid, ...]:
    """The grids that `--grid` names.

    Raises:
        ValueError: two grids whose files would have one name, or impossible voxel sizes.
        FileNotFoundError: neither a keyword nor voxel sizes nor an existing path.
    """
    sizes = [value.strip(",") for value in values]
    if len(sizes) == 3 and all(_is_number(size) for size in sizes):
        raise ValueError(f"--grid must have commas between voxel sizes, no blanks: write {','.join(sizes)}")
    grids = tuple(parse_grid(value) for value in values)
    names = [grid.name for grid in grids]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"--grid must name grids of different names, which their files end in, got {', '.join(twice)} twice; "
            "rename one, or give each a call of its own"
        )
    return grids


def parse_grid(value: str) -> OutputGrid:
    """The grid that one value of `--grid` names.

    Args:
        value: "hr", "native", voxel sizes in mm ("0.5,0.5,0.5"), or the path of a file or folder.

    Raises:
        ValueError: impossible voxel sizes.
        FileNotFoundError: neither a keyword nor voxel sizes nor an existing path.
    """
    if value in ("hr", "native"):
        return HRGrid() if value == "hr" else NativeGrid()
    if value and Path(value).exists():
        return ReferenceGrid(Path(value))
    spacing = parse_spacing(value)
    if spacing is None:
        raise FileNotFoundError(
            f"--grid must be hr, native, voxel sizes in mm (0.5,0.5,0.5), or an existing file or folder, got "
            f"{value or 'nothing'}"
        )
    return spacing


def grid_of(value: Any) -> OutputGrid | None:
    """The grid that an argument `grid` of a Python function names; None for None.

    Args:
        value: text or path as for `parse_grid`, or three voxel sizes in mm.

    Raises:
        TypeError: anything else.
    """
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 3 and all(isinstance(size, (int, float)) for size in value):
        return parse_grid(",".join(map(str, value)))
    if not isinstance(value, (str, PathLike)):
        raise TypeError(
            "grid must be 'hr', 'native', voxel sizes such as (0.5, 0.5, 0.5) or the path of a file, got "
            f"{value if isinstance(value, (list, tuple, float, int)) else type(value).__name__}"
        )
    return parse_grid(fspath(value))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True

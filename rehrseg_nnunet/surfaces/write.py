"""Surfaces of a case as files: one for each structure and format, all of them or none."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError, final_name, written_together
from rehrseg_nnunet.slices.grids import LPS_RAS, Grid
from rehrseg_nnunet.surfaces.formats import encoded, file_names
from rehrseg_nnunet.surfaces.margins import Piece, label_pieces, logit_pieces
from rehrseg_nnunet.surfaces.mesh import surface_of
from rehrseg_nnunet.surfaces.structures import Structure, Structures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SurfaceOptions:
    """Which files are written; travels to worker processes.

    Attributes:
        formats: of `formats.FORMATS`.
        ras: coordinates point right, anterior, superior, not left, posterior, superior.
    """

    formats: tuple[str, ...]
    ras: bool = False


@dataclass(frozen=True)
class WrittenSurface:
    """A structure and its surface; an empty one has no files.

    Attributes:
        name: of the structure.
        files: one for each format.
        volume_mm3: inside.
        area_mm2: of the surface.
    """

    name: str
    files: tuple[Path, ...] = ()
    volume_mm3: float = 0.0
    area_mm2: float = 0.0

    def described(self, case: str) -> str:
        """One line on the surface of a case."""
        return f"{case} {self.name}: {self.volume_mm3:.1f} mm3, {self.area_mm2:.1f} mm2"


def check_names(structures_by_case: Mapping[str, Structures]) -> None:
    """Refuse cases whose surfaces would share a file: label `left_bone` of case `knee`, and `bone` of `knee_left`.

    Args:
        structures_by_case: what each case has; cases as their files are called.

    Raises:
        ValueError: names both cases and the file.
    """
    owners: dict[str, str] = {}
    for case, structures in structures_by_case.items():
        for name in file_names([structure.name for structure in structures.all]):
            file = f"{case}_{name}"
            other = owners.setdefault(file, case)
            if other != case:
                raise ValueError(
                    f"cases must have surfaces of different names, but {other} and {case} would both write {file}; "
                    "rename one of them, or write into two folders"
                )


def write_surfaces(
    logits: np.ndarray, grid: Grid, structures: Structures, stem: Path, options: SurfaceOptions
) -> list[WrittenSurface]:
    """Write the surfaces of a prediction, `<stem>_<name>.<format>`, through the logits' margins.

    Memory beside the logits: three volumes and what is around one structure.

    Args:
        logits: (K, D, H, W) of any float type.
        grid: of the array (D, H, W).
        structures: of the dataset.
        stem: folder and case; a path that `staging` gave is fine.
        options: formats and coordinates.

    Returns:
        One entry for each structure, in their order.

    Raises:
        UnwrittenFileError: a file could not be written; none of them has its final name.
    """
    return _write(logit_pieces(logits, structures), grid, structures, stem, options, smooth=True)


def write_label_surfaces(
    labels: np.ndarray, grid: Grid, structures: Structures, stem: Path, options: SurfaceOptions
) -> list[WrittenSurface]:
    """Write the surfaces of a label map (D, H, W) as they are, with the voxels' stairs; see `write_surfaces`."""
    return _write(label_pieces(labels, structures), grid, structures, stem, options, smooth=False)


def _write(
    pieces: Iterable[tuple[Structure, Piece | None]],
    grid: Grid,
    structures: Structures,
    stem: Path,
    options: SurfaceOptions,
    *,
    smooth: bool,
) -> list[WrittenSurface]:
    names = dict(zip(structures.all, file_names([structure.name for structure in structures.all]), strict=True))
    affine = LPS_RAS @ grid.affine if options.ras else grid.affine
    written = []
    with written_together(stem) as staged:
        for structure, piece in pieces:
            files = [staged.with_name(f"{staged.name}_{names[structure]}.{ending}") for ending in options.formats]
            if piece is None:
                _say_empty(stem.name, structure.name, files)
                written.append(WrittenSurface(structure.name))
                continue
            surface = surface_of(piece, affine, smooth=smooth)
            for file in files:
                space = "RAS" if options.ras else "LPS"
                _write_bytes(file, encoded(surface, file.suffix[1:], space=space, colour=structures.colour(structure)))
            final = tuple(final_name(file) for file in files)
            written.append(WrittenSurface(structure.name, final, surface.volume_mm3, surface.area_mm2))
    return written


def _write_bytes(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise UnwrittenFileError(f"{final_name(file)} could not be written: {error.strerror or error}") from error


def _say_empty(case: str, name: str, files: Iterable[Path]) -> None:
    logger.warning("%s: %s is empty, no surface is written", case, name)
    for file in files:  # of an earlier run, in which it was not empty
        final_name(file).unlink(missing_ok=True)

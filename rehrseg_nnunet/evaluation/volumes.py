"""Volumes on grids of their own that are looked at together, in millimetres.

*Convention* A *standing* volume has its axes run to superior, posterior and left, as nearly as its own axes allow, so
planes look as radiologists expect. Positions are coordinates (3,) in mm along the unit vectors of a volume's axes;
volumes whose axes are parallel share them, whatever their voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import affine_transform

from rehrseg_nnunet.nnunet.raw_files import image_ending
from rehrseg_nnunet.nnunet.whole_files import WholeFiles, whole_files_of
from rehrseg_nnunet.slices.grids import Grid, grid_from_properties, to_reference_order

_STANDING = Grid((1, 1, 1), np.eye(4)[:, [2, 1, 0, 3]])  # array axes S, P, L in LPS coordinates
_PARALLEL = 1e-3  # of unit vectors: 0.2 mm over 200 mm

Box = np.ndarray  # (3, 2), lower and upper edge in mm along each axis


@dataclass(frozen=True, eq=False)
class Volume:
    """Values on a grid.

    Attributes:
        values: (D, H, W).
        grid: theirs.
    """

    values: np.ndarray
    grid: Grid

    @property
    def axes(self) -> np.ndarray:
        """(3, 3), the unit vector of every axis in a column."""
        return self.grid.affine[:3, :3] / self.grid.spacing_mm

    @property
    def box(self) -> Box:
        """The outer edges of the first and last voxel."""
        spacing = np.array(self.grid.spacing_mm)
        first = self.grid.affine[:3, 3] @ self.axes - spacing / 2
        return np.stack([first, first + spacing * self.grid.shape], axis=1)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel."""
        return float(np.prod(self.grid.spacing_mm)) / 1000

    def edges(self, axis: int) -> np.ndarray:
        """(n + 1,) edges of the voxels along an axis, in mm."""
        low, high = self.box[axis]
        return np.linspace(low, high, self.grid.shape[axis] + 1)

    def plane(self, axis: int, position: float) -> np.ndarray:
        """The plane across an axis whose voxels hold a position, or the nearest one."""
        low, high = self.box[axis]
        count = self.grid.shape[axis]
        index = int(np.floor((position - low) / (high - low) * count))
        return np.take(self.values, min(max(index, 0), count - 1), axis=axis)

    def with_axes_of(self, other: Volume, *, order: int) -> Volume:
        """The volume itself if its axes are parallel to another's, else resampled onto that one's voxels.

        Args:
            other: standing.
            order: 0 for labels, 1 for images.
        """
        return self if np.abs(self.axes - other.axes).max() <= _PARALLEL else self.with_voxels_of(other, order=order)

    def with_voxels_of(self, other: Volume, *, order: int) -> Volume:
        """The volume resampled onto another's voxels, as in `with_axes_of`; 0 outside."""
        to_own = np.linalg.solve(self.grid.affine, other.grid.affine)
        values = self.values if order == 0 else self.values.astype(np.float32)
        # the whole matrix, for which SciPy takes the offset out of it
        resampled = affine_transform(values, to_own, output_shape=other.grid.shape, order=order)
        return Volume(resampled, other.grid)


def standing(values: np.ndarray, grid: Grid) -> Volume:
    """A volume whose axes are permuted and flipped to run to superior, posterior and left. Nothing is interpolated.

    Example:
        >>> lying = Grid((1, 1, 2), np.diag([1.0, 1.0, -2.0, 1.0]))  # axes L, P and downwards
        >>> standing(np.array([[[7, 8]]]), lying).values.ravel().tolist()
        [8, 7]
    """
    return Volume(*to_reference_order(values, grid, _STANDING))


def read_volume(file: Path, *, reader: WholeFiles | None = None, labels: bool = False) -> Volume:
    """A standing volume from an image or label file.

    Args:
        file: of one channel.
        reader: for the file; None chooses by its ending.
        labels: integers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be used, see `WholeFiles`.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist")
    if reader is None:
        reader = whole_files_of({"file_ending": image_ending(file.name) or file.suffix}, file)
    values, properties = reader.read_seg(str(file)) if labels else reader.read_images([str(file)])
    return standing(values[0], grid_from_properties(properties, values.shape[1:]))


def window_around(labels: Sequence[Volume], *, margin_mm: float, within: Volume) -> Box:
    """The box around the labels above 0, with a margin, as far as a volume goes; all of it where there are none."""
    low, high = within.box.T
    corners = []
    for volume in labels:
        inside = volume.values > 0
        if inside.any():
            corners.append([_ends_mm(volume, inside, axis) for axis in range(3)])
    if not corners:
        return within.box
    found = np.array(corners)
    first, last = found[..., 0].min(axis=0) - margin_mm, found[..., 1].max(axis=0) + margin_mm
    return np.stack([np.clip(first, low, high), np.clip(last, low, high)], axis=1)


def _ends_mm(volume: Volume, inside: np.ndarray, axis: int) -> tuple[float, float]:
    """Outer edges along an axis of the voxels of a mask that is not empty."""
    shown = np.flatnonzero(inside.any(axis=tuple(other for other in range(3) if other != axis)))
    edges = volume.edges(axis)
    return float(edges[shown[0]]), float(edges[shown[-1] + 1])


def largest_section(volume: Volume, axis: int) -> float:
    """Position in mm across an axis of the plane with the most foreground, the middle one where there is none."""
    area = (volume.values > 0).sum(axis=tuple(other for other in range(3) if other != axis))
    index = int(area.argmax()) if area.any() else len(area) // 2
    edges = volume.edges(axis)
    return float(edges[index] + edges[index + 1]) / 2

"""Do two files hold values at the same physical points?

*Convention* A grid maps array indices (i, j, k), in the order of the array that nnU-Net's readers return (slowest axis
first), to the physical position of the voxel's centre in mm, in LPS coordinates. The map is affine, so two grids of
one shape coincide everywhere if they do at the eight corner voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE_VOXELS = 0.1  # of the smallest voxel edge: headers are rounded, and voxels may be of any size
LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from either to the other


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of a volume.

    Attributes:
        shape: number of voxels along the three array axes.
        affine: (4, 4) matrix from array indices (i, j, k, 1) to LPS positions in mm.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel spacing along the three array axes."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def corners_mm(self) -> np.ndarray:
        """(8, 3) positions of the corner voxels' centres."""
        indices = np.array(list(itertools.product(*((0, size - 1) for size in self.shape))), dtype=np.float64)
        return indices @ self.affine[:3, :3].T + self.affine[:3, 3]

    def __str__(self) -> str:
        def numbers(values: Any) -> str:
            return "(" + ", ".join(f"{value:.6g}" for value in values) + ")"

        with np.errstate(invalid="ignore", divide="ignore"):  # of a broken header
            axes = (self.affine[:3, :3] / self.spacing_mm).T.round(4) + 0.0
        return (
            f"shape {self.shape}, spacing {numbers(self.spacing_mm)} mm (slowest axis first), "
            f"origin {numbers(self.affine[:3, 3])} mm, axes along {', '.join(numbers(axis) for axis in axes)}"
        )


def grid_from_properties(properties: Mapping[str, Any], shape: tuple[int, ...]) -> Grid:
    """Grid of an array that one of nnU-Net's readers returned, from the geometry that the reader found in the header.

    Formats without geometry (tif, png) have only a spacing; their origin is taken as 0 and their axes as aligned.

    Args:
        properties: the dictionary that the reader returned beside the array.
        shape: the array's shape without its channel axis; 2D images come with a first axis of length 1.

    Raises:
        ValueError: the array is not a volume.
    """
    if len(shape) != 3:
        raise ValueError(f"shape must have 3 axes, got {tuple(shape)}")
    if "sitk_stuff" in properties:
        affine = _sitk_affine(properties["sitk_stuff"])
    elif "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        affine = LPS_RAS @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
    else:
        return Grid((shape[0], shape[1], shape[2]), np.diag([*map(float, properties["spacing"]), 1.0]))
    # Files store the fastest axis first, arrays the slowest.
    return Grid((shape[0], shape[1], shape[2]), affine[:, [2, 1, 0, 3]])


def _sitk_affine(geometry: Mapping[str, Any]) -> np.ndarray:
    spacing = np.asarray(geometry["spacing"], dtype=np.float64)
    dimension = len(spacing)
    if dimension not in (2, 3):
        raise ValueError(f"a file must hold a 2D or 3D image, got {dimension} dimensions")
    affine = np.eye(4)
    affine[:dimension, :dimension] = np.reshape(geometry["direction"], (dimension, dimension)) * spacing
    affine[:dimension, 3] = geometry["origin"]
    return affine


def corner_distance_mm(grid: Grid, reference: Grid) -> float:
    """Largest distance between corresponding corner voxels of two grids, in mm.

    Example:
        >>> grid = Grid((8, 32, 32), np.diag([4.0, 1.0, 1.0, 1.0]))
        >>> grid.spacing_mm
        (4.0, 1.0, 1.0)
        >>> moved = grid.affine.copy()
        >>> moved[0, 3] = 2.0
        >>> corner_distance_mm(Grid(grid.shape, moved), grid)
        2.0
    """
    return float(np.linalg.norm(grid.corners_mm - reference.corners_mm, axis=1).max())


def tolerance_mm(reference: Grid) -> float:
    """How far a voxel may be displaced from its place on a grid, in mm."""
    return TOLERANCE_VOXELS * min(reference.spacing_mm)


def check_same_points(grid: Grid, reference: Grid, *, file: str, reference_file: str, remedy: str) -> None:
    """Refuse a grid with other physical points, or with the same points in another order.

    Args:
        grid: of a file.
        reference: the grid to compare with.
        file: name of the file, for the message.
        reference_file: name of the reference's file, for the message.
        remedy: the end of the message.

    Raises:
        ValueError: the grids' points differ; the message has both grids and the distance.
    """
    distance = corner_distance_mm(grid, reference)
    if grid.shape == reference.shape and distance <= tolerance_mm(reference):
        return
    raise ValueError(
        f"{file} must have the voxels of {reference_file} at the same physical points, got {grid} instead of "
        f"{reference}: corner voxels are up to {distance:.4g} mm apart ({tolerance_mm(reference):.4g} mm is allowed); "
        f"{remedy}"
    )


def to_reference_order(array: np.ndarray, grid: Grid, reference: Grid) -> tuple[np.ndarray, Grid]:
    """Permute and flip the axes of an array so that they run as the reference's do. No value is interpolated.

    Args:
        array: volume of shape ``grid.shape``.
        grid: its grid.
        reference: the grid whose axes to follow.

    Returns:
        The array (a view) and its grid after the move; both unchanged where the axes cannot be paired one to one.

    Example:
        >>> grid = Grid((1, 1, 3), np.eye(4))
        >>> mirrored = Grid((1, 1, 3), np.diag([1.0, 1.0, -1.0, 1.0]))  # its last axis runs the other way
        >>> to_reference_order(np.array([[[1, 2, 3]]]), mirrored, grid)[0]
        array([[[3, 2, 1]]])
    """
    # Column j says along which axes of the reference one step along axis j leads.
    steps = np.linalg.solve(reference.affine[:3, :3] / reference.spacing_mm, grid.affine[:3, :3] / grid.spacing_mm)
    order = np.abs(steps).argmax(axis=1)
    if sorted(order) != [0, 1, 2]:
        return array, grid
    flipped = [axis for axis in range(3) if steps[axis, order[axis]] < 0]
    shape = (grid.shape[order[0]], grid.shape[order[1]], grid.shape[order[2]])
    affine = grid.affine[:, [*order, 3]]
    for axis in flipped:
        affine[:3, 3] += affine[:3, axis] * (shape[axis] - 1)
        affine[:3, axis] *= -1
    return np.flip(array.transpose(order), axis=tuple(flipped)), Grid(shape, affine)


def onto_reference(array: np.ndarray, grid: Grid, reference: Grid, *, file: str, reference_file: str) -> np.ndarray:
    """The array's values in the order of the reference's voxels, if both have the same physical points.

    Axes that are stored in another order or direction are permuted and flipped, which is exact.

    Args:
        array: volume of shape ``grid.shape``.
        grid: its grid.
        reference: the grid to compare with.
        file: name of the array's file, for the message.
        reference_file: name of the reference's file, for the message.

    Raises:
        ValueError: the grids' points differ; the message has both grids and the distance.
    """
    moved, moved_grid = to_reference_order(array, grid, reference)
    check_same_points(
        moved_grid,
        reference,
        file=file,
        reference_file=reference_file,
        remedy=f"`rehrseg predict --grid {reference_file}` writes a prediction on the reference's grid",
    )
    return moved

"""A grid of chosen voxels along the input's own axes as output grid (`--grid 0.5,0.5,0.5`)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.field_of_view import PlacedShape, placed_properties, sample_field_of_view
from rehrseg_nnunet.prediction.output_grid import OutputGrid, Resize, has_geometry
from rehrseg_nnunet.slices.geometry import file_axes, scale_slice_geometry

_ROUNDING = 1e-3  # voxels by which an extent may miss a whole number: headers are rounded


@dataclass(frozen=True)
class SpacingGrid(OutputGrid):
    """Voxels of a given size along the input's axes, over its whole field of view, rounded up to whole voxels.

    Where voxels reach beyond the field of view, they do so by as much on either side.

    Attributes:
        spacing_mm: along the axes of the file, x first in most.
    """

    spacing_mm: tuple[float, float, float]

    @property
    def name(self) -> str:
        """0.5mm, or 0.5x0.5x1mm."""
        sizes = [f"{size:g}" for size in self.spacing_mm]
        return ("x".join(sizes) if len(set(sizes)) > 1 else sizes[0]) + "mm"

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """The input's geometry with other voxels, and their place in the case."""
        order = [int(axis) for axis in plans_manager.transpose_forward]
        geometry, to_index, shape = dict(properties), np.eye(4), [0, 0, 0]
        for axis, file_axis in enumerate(file_axes(properties)):
            voxels = int(properties["shape_before_cropping"][order.index(axis)])
            scale = self.spacing_mm[file_axis] / float(properties["spacing"][axis])
            shape[axis] = max(1, math.ceil(voxels / scale - _ROUNDING))
            before = (shape[axis] * scale - voxels) / 2
            to_index[axis, axis], to_index[axis, 3] = scale, (scale - 1) / 2 - before
            if has_geometry(properties):
                geometry = scale_slice_geometry(geometry, axis, scale, before=before)
        geometry["spacing"] = [float(s * to_index[a, a]) for a, s in enumerate(properties["spacing"])]
        return placed_properties(properties, geometry, to_index, shape, order)

    def place(self, logits: Logits, shape: PlacedShape, resize: Resize, *, has_regions: bool) -> Logits:
        """Sample at the grid's voxels."""
        return sample_field_of_view(logits, shape, has_regions=has_regions)


def parse_spacing(value: str) -> SpacingGrid | None:
    """The grid that three numbers with commas name, or one for all axes; None where these are no numbers.

    Raises:
        ValueError: another count of numbers, or a size that no voxel has.
    """
    try:
        sizes = [float(size) for size in value.split(",")]
    except ValueError:
        return None
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or not all(math.isfinite(size) and size > 0 for size in sizes):
        raise ValueError(f"--grid must have one or three voxel sizes above 0 in mm, such as 0.5,0.5,0.5, got {value}")
    return SpacingGrid((sizes[0], sizes[1], sizes[2]))

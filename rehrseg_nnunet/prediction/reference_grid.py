"""The grid of a file as output grid: predictions are sampled at the physical positions of its voxels.

Convention:
    Field-of-view coordinates run from -1 to 1 along each array axis of a case's crop, from the outer face of the first
    voxel to that of the last.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rehrseg_nnunet.prediction.output_grid import (
    HRGrid,
    Logits,
    NativeGrid,
    OutputGrid,
    Resize,
    to_logits,
    to_probabilities,
)
from rehrseg_nnunet.slices.grids import grid_from_properties

logger = logging.getLogger(__name__)


class ReferenceShape(tuple):
    """Shape of a reference grid that knows where in the case it lies.

    nnU-Net's export gives the resampling function a case's target shape and nothing else of the case, so the shape
    carries the rest.

    Attributes:
        to_field_of_view: (3, 4) from voxel index on the reference grid (transposed axis order) to field-of-view
            coordinates of the case's crop.
    """

    to_field_of_view: np.ndarray

    @classmethod
    def at(cls, shape: Sequence[int], to_field_of_view: np.ndarray) -> ReferenceShape:
        """The shape with its place."""
        placed = cls(int(n) for n in shape)
        placed.to_field_of_view = to_field_of_view
        return placed


@dataclass(frozen=True)
class ReferenceGrid(OutputGrid):
    """The grid of a file, or of each case's namesake in a folder.

    Probabilities are interpolated linearly at the physical positions of the reference's voxels; what lies outside the
    input's field of view is background. Nothing is averaged: a reference with thick slices gets the probabilities at
    its slices' centres.

    Attributes:
        path: an image or label file that the plans' reader can read, or a folder with `<case><file ending>` or
            `<case>_0000<file ending>` for every case.
    """

    path: Path

    def file(self, image_file: str | None) -> Path | None:
        """The reference for an image `<case>_0000<file ending>`, None where there is none."""
        if self.path.is_file():
            return self.path
        if image_file is None:
            return None
        name = Path(image_file).name
        candidates = [self.path / re.sub(r"_\d{4}(\.[^_]*)$", r"\1", name), self.path / name]
        return next((c for c in candidates if c.is_file()), None)

    def missing(self, image_files: Sequence[str]) -> list[str]:
        """The images without a file in the folder."""
        return [image_file for image_file in image_files if self.file(image_file) is None]

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, image_file: str | None
    ) -> dict[str, Any]:
        """The reference's geometry, and its place in the case.

        Raises:
            FileNotFoundError: the folder has no such file, or the image came without a name.
            NotImplementedError: the reader keeps no geometry.
        """
        file = self.file(image_file)
        if file is None:
            raise FileNotFoundError(f"--grid {self.path} must have a file for every input, got none for {image_file}")
        image, reference = plans_manager.image_reader_writer_class().read_images((str(file),))
        order = [int(axis) for axis in plans_manager.transpose_forward]
        shape = [image.shape[1:][axis] for axis in order]
        to_index = np.linalg.inv(_array_affine(properties)) @ _array_affine(reference)
        placed = ReferenceShape.at(shape, _to_field_of_view(to_index, order, properties["bbox_used_for_cropping"]))
        return {
            **reference,
            "shape_before_cropping": tuple(shape),
            "bbox_used_for_cropping": [[0, n] for n in shape],
            "shape_after_cropping_and_before_resampling": placed,
        }

    def place(self, logits: Logits, shape: ReferenceShape, resize: Resize, *, has_regions: bool) -> Logits:
        """Sample the probabilities at the reference's voxels."""
        probabilities = to_probabilities(logits, has_regions=has_regions)
        sampled = sample_field_of_view(probabilities, shape, shape.to_field_of_view, has_regions=has_regions)
        return to_logits(sampled, has_regions=has_regions)


def _array_affine(properties: dict[str, Any]) -> np.ndarray:
    """(4, 4) from index in the array that a reader returned to mm."""
    if not {"sitk_stuff", "nibabel_stuff"} & set(properties):
        raise NotImplementedError(
            f"--grid with a file needs nnU-Net's SimpleITK or nibabel readers, got properties {sorted(properties)}"
        )
    return grid_from_properties(properties, (1, 1, 1)).affine


def _to_field_of_view(to_index: np.ndarray, order: Sequence[int], box: Sequence[Sequence[int]]) -> np.ndarray:
    """(3, 4) from transposed reference index to field-of-view coordinates of the crop `box` (transposed order)."""
    permutation = np.eye(4)[[*order, 3]]
    transposed = permutation @ to_index @ permutation.T
    start, stop = np.array(box, dtype=np.float64).T
    coordinates = transposed[:3] * (2 / (stop - start))[:, None]
    coordinates[:, 3] += 2 * (0.5 - start) / (stop - start) - 1
    return coordinates


def sample_field_of_view(
    probabilities: torch.Tensor, shape: Sequence[int], to_field_of_view: np.ndarray, *, has_regions: bool
) -> torch.Tensor:
    """Linear interpolation of probabilities (K, ...) at the voxels of another grid.

    Args:
        probabilities: (K, D, H, W), covering the field of view.
        shape: of the other grid.
        to_field_of_view: (3, 4) from its voxel indices to field-of-view coordinates.
        has_regions: background is 0 in every map, not 1 in the first.

    Returns:
        (K, *shape) float32, background outside the field of view.
    """
    background = torch.zeros(len(probabilities))
    background[0] = 0.0 if has_regions else 1.0
    sampled = torch.empty(len(probabilities), *shape)
    rows = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in shape[1:]), indexing="ij"), -1)
    matrix = torch.from_numpy(np.ascontiguousarray(to_field_of_view)).double()
    any_inside = False
    for index in range(shape[0]):  # slice by slice: coordinates of a whole volume are larger than the volume
        points = rows @ matrix[:, 1:3].T + matrix[:, 0] * index + matrix[:, 3]
        inside = (points.abs() <= 1 + 1e-6).all(-1)
        any_inside |= bool(inside.any())
        grid = points.flip(-1).float()[None, None]  # grid_sample wants (x, y, z)
        values = functional.grid_sample(
            probabilities[None], grid, mode="bilinear", padding_mode="border", align_corners=False
        )[0, :, 0]
        sampled[:, index] = torch.where(inside, values, background[:, None, None])
    if not any_inside:
        logger.warning("The reference grid lies outside the input's field of view: all of it is background.")
    return sampled


def parse_grid(value: str) -> OutputGrid:
    """The grid that `--grid` names.

    Args:
        value: "hr", "native", or the path of a file or folder.

    Raises:
        FileNotFoundError: neither a keyword nor an existing path.
    """
    if value == "hr":
        return HRGrid()
    if value == "native":
        return NativeGrid()
    if not Path(value).exists():
        raise FileNotFoundError(f"--grid must be hr, native, or an existing file or folder, got {value}")
    return ReferenceGrid(Path(value))

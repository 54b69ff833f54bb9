"""The grid of a file as output grid: predictions are sampled at the physical positions of its voxels."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.field_of_view import PlacedShape, is_outside, placed_properties, sample_field_of_view
from rehrseg_nnunet.prediction.output_grid import OutputGrid, Resize
from rehrseg_nnunet.slices.grids import grid_from_properties

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceGrid(OutputGrid):
    """The grid of a file, or of each case's namesake in a folder.

    Logits are sampled at the physical positions of the reference's voxels (`field_of_view`); what lies outside the
    input's field of view is background.

    Attributes:
        path: an image or label file that the plans' reader can read, or a folder with `<case><file ending>` or
            `<case>_0000<file ending>` for every case.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's or folder's, without its ending."""
        return self.path.name.split(".")[0] or self.path.resolve().name

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
        to_index = np.linalg.inv(_array_affine(properties)) @ _array_affine(reference)
        order = [int(axis) for axis in plans_manager.transpose_forward]
        placed = placed_properties(properties, reference, to_index, image.shape[1:], order)
        if is_outside(placed["shape_after_cropping_and_before_resampling"]):
            logger.warning("%s lies outside the input's field of view: all of it is background.", file)
        return placed

    def place(self, logits: Logits, shape: PlacedShape, resize: Resize, *, has_regions: bool) -> Logits:
        """Sample at the reference's voxels."""
        return sample_field_of_view(logits, shape, has_regions=has_regions)


def _array_affine(properties: dict[str, Any]) -> np.ndarray:
    """(4, 4) from index in the array that a reader returned to mm."""
    if not {"sitk_stuff", "nibabel_stuff"} & set(properties):
        raise NotImplementedError(
            f"--grid with a file needs nnU-Net's SimpleITK or nibabel readers, got properties {sorted(properties)}"
        )
    return grid_from_properties(properties, (1, 1, 1)).affine

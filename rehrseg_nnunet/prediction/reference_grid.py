"""The grid of a file as output grid: predictions are sampled at the physical positions of its voxels."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.field_of_view import PlacedShape, is_outside, placed_properties, sample_field_of_view
from rehrseg_nnunet.prediction.inputs import SIMPLE_ITK_ENDINGS
from rehrseg_nnunet.prediction.output_grid import OutputGrid, Resize
from rehrseg_nnunet.slices.grids import grid_from_properties

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceGrid(OutputGrid):
    """The grid of a file, or of each case's namesake in a folder.

    Logits are sampled at the physical positions of the reference's voxels (`field_of_view`); what lies outside the
    input's field of view is background.

    Attributes:
        path: an image or label file that the plans' reader can read, or a folder with such a file, `<case>.nii.gz` or
            `<case>_0000.nii.gz`, for every case.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's or folder's, without its ending."""
        return self.path.name.split(".")[0] or self.path.resolve().name

    def file(self, case: str | None) -> Path | None:
        """The reference for a case, None where there is none."""
        if self.path.is_file():
            return self.path
        candidates = [self.path / f"{case}{channel}{end}" for channel in ("", "_0000") for end in SIMPLE_ITK_ENDINGS]
        return None if case is None else next((c for c in candidates if c.is_file()), None)

    def missing(self, cases: Sequence[str]) -> list[str]:
        """The cases without a file in the folder."""
        return [case for case in cases if self.file(case) is None]

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """The reference's geometry, and its place in the case.

        Raises:
            FileNotFoundError: the folder has no such file, or the case came without a name.
            NotImplementedError: the reader keeps no geometry.
        """
        file = self.file(case)
        if file is None:
            named = "the name of a case" if case is None else f"a file {case}{SIMPLE_ITK_ENDINGS[0]} for every case"
            raise FileNotFoundError(f"--grid {self.path} needs {named}, got none; give one file as grid")
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

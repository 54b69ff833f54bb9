"""What can be written beside a segmentation while it is exported: surfaces, and 3D Slicer's segmentations."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.prediction.export import PlacedCase
from rehrseg_nnunet.slices.grids import LPS_RAS, Grid
from rehrseg_nnunet.surfaces.structures import structures_of
from rehrseg_nnunet.surfaces.viewers import write_segmentation
from rehrseg_nnunet.surfaces.write import SurfaceOptions, check_names, write_surfaces

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SurfaceWriter:
    """Writes the surfaces of a case; see `export.Writer`."""

    options: SurfaceOptions

    def check(self, names: Sequence[str], dataset_json: Mapping[str, Any]) -> None:
        """Refuse cases whose surfaces would share a file.

        Args:
            names: of their files, without ending.
            dataset_json: the model's.

        Raises:
            ValueError: names both cases and the file.
        """
        check_names(dict.fromkeys(names, structures_of(dataset_json)))

    def __call__(self, case: PlacedCase) -> None:
        """Write `<output>_<label>.<format>`."""
        structures = structures_of(case.dataset_json)
        stem = Path(case.output)
        for surface in write_surfaces(case.logits, _grid(case), structures, stem, self.options):
            if surface.files:
                logger.info("%s", surface.described(stem.name))


@dataclass(frozen=True)
class SegmentationWriter:
    """Writes a case as `.seg.nrrd`, the part of the image that was predicted; see `export.Writer`."""

    def __call__(self, case: PlacedCase) -> None:
        """Write `<output>.seg.nrrd`."""
        labels = np.asarray(case.label_manager.convert_logits_to_segmentation(case.logits))
        write_segmentation(labels, _grid(case), structures_of(case.dataset_json), Path(case.output))


def _grid(case: PlacedCase) -> Grid:
    depth, height, width = case.logits.shape[1:]
    return Grid((depth, height, width), LPS_RAS @ case.affine)

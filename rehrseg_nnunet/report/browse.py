"""Cases for the interactive viewer: scan, labels on the acquired and on the thin grid, uncertainty, surfaces."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np

from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.report.cases import CaseFiles, CaseOnGrid
from rehrseg_nnunet.report.pictures import structure_of_each_label
from rehrseg_nnunet.report.viewer import ViewerCase, ViewerLayer
from rehrseg_nnunet.slices.grids import LPS_RAS
from rehrseg_nnunet.surfaces.formats import FORMATS, file_names, require_formats
from rehrseg_nnunet.surfaces.structures import Structures

logger = logging.getLogger(__name__)

_REFERENCE_COLOUR = (255, 255, 255)


def viewer_case(files: CaseFiles, main: CaseOnGrid, acquired: CaseOnGrid | None, structures: Structures) -> ViewerCase:
    """What the viewer shows of a case.

    Args:
        files: of the case.
        main: what is judged.
        acquired: on the acquired slices, None where there is one grid.
        structures: of the dataset.
    """
    scan = main.scan or (None if acquired is None else acquired.scan)
    shown = structure_of_each_label(structures)
    names = {value: structure.name for value, structure in shown.items()}
    colours = {value: structures.colour(structure) for value, structure in shown.items()}
    white = dict.fromkeys(colours, _REFERENCE_COLOUR)
    volumes = [("Prediction", main.labels, colours), ("Reference", main.reference, white)]
    if acquired is not None:
        volumes.append(("Prediction on the acquired slices", acquired.labels, colours))
        volumes.append(("Reference on the acquired slices", acquired.reference, white))
    layers = [
        ViewerLayer(title, as_nifti(volume), "labels", look, names)
        for title, volume, look in volumes
        if volume is not None
    ]
    entropies = [g.entropy(has_regions=bool(structures.class_order)) for g in (main, acquired) if g is not None]
    entropy = next((volume for volume in entropies if volume is not None), None)
    if entropy is not None:
        layers.append(ViewerLayer("Where it is unsure (entropy)", as_nifti(entropy), kind="uncertainty"))
    surfaces = surfaces_of(files.main.prediction.parent, files.name, structures)
    return ViewerCase(files.name, None if scan is None else as_nifti(scan), layers, surfaces)


def surfaces_of(folder: Path, name: str, structures: Structures) -> list[Path]:
    """A case's surfaces beside its prediction, each structure in the first format that is there and can be read."""
    found = []
    for label in file_names([structure.name for structure in structures.all]):
        there = (folder / f"{name}_{label}.{ending}" for ending in FORMATS)
        found += [file for file in there if file.is_file()][:1]
    if not found:
        return []
    try:
        require_formats([file.suffix[1:] for file in found])
    except RuntimeError as error:
        logger.warning("%s is shown without its surfaces: %s", name, error)
        return []
    return found


def as_nifti(volume: Volume) -> nibabel.Nifti1Image:
    """A volume as an image (I, J, K) in RAS coordinates."""
    affine = LPS_RAS @ volume.grid.affine[:, [2, 1, 0, 3]]
    values = volume.values.transpose(2, 1, 0)
    return nibabel.Nifti1Image(values.astype(_stored_type(values)), affine)


def _stored_type(values: np.ndarray) -> type:
    if values.dtype.kind not in "iu":
        return np.float32
    return np.int16 if values.max(initial=0) <= np.iinfo(np.int16).max else np.int32

"""What the interactive viewer shows of the cases of a page."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np

from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.report.cases import CaseFiles, CaseOnGrid, read_case
from rehrseg_nnunet.report.viewer import ViewerCase, ViewerLayer
from rehrseg_nnunet.slices.grids import LPS_RAS
from rehrseg_nnunet.surfaces.formats import FORMATS, file_names, require_formats
from rehrseg_nnunet.surfaces.structures import Structures

logger = logging.getLogger(__name__)


def viewer_cases(cases: Sequence[CaseFiles], *, reader: WholeFiles, structures: Structures) -> Iterator[ViewerCase]:
    """One case after the other: predictions, reference, baseline and entropy on both grids, and surfaces beside them.

    Args:
        cases: in their order.
        reader: for their files.
        structures: of the dataset.
    """
    for case in cases:
        main = read_case(case.main, reader=reader, heads=structures.heads)
        acquired = None if case.acquired is None else read_case(case.acquired, reader=reader, heads=structures.heads)
        scan = acquired.scan if acquired is not None and acquired.scan is not None else main.scan
        layers = _layers(main, structures, "" if acquired is None else " on thin slices")
        if acquired is not None:
            layers += _layers(acquired, structures, " on the acquired slices")
        yield ViewerCase(case.name, None if scan is None else _image(scan), layers, _surfaces(case, structures))


def _layers(case: CaseOnGrid, structures: Structures, where: str) -> list[ViewerLayer]:
    colours, names = _legend(structures)
    labels = {"Labels": case.labels, "Reference": case.reference, "Baseline": case.baseline}
    found = [
        ViewerLayer(f"{title}{where}", _image(volume), "labels", colours, names)
        for title, volume in labels.items()
        if volume is not None
    ]
    entropy = case.entropy(has_regions=bool(structures.class_order))
    if entropy is not None:
        found.append(ViewerLayer(f"Uncertainty{where} (entropy)", _image(entropy), "uncertainty"))
    return found


def _legend(structures: Structures) -> tuple[dict[int, tuple[int, int, int]], dict[int, str]]:
    """Colour and name of each label: those of the smallest region that it belongs to."""
    owners = {}
    for structure in sorted(structures.all, key=lambda one: len(one.labels), reverse=True):
        owners.update(dict.fromkeys(structure.labels, structure))
    return (
        {label: structures.colour(owner) for label, owner in owners.items()},
        {label: owner.name for label, owner in owners.items()},
    )


def _image(volume: Volume) -> nibabel.Nifti1Image:
    """Arrays have their slowest axis first and positions in LPS, images their fastest and RAS."""
    kind = np.float32 if np.issubdtype(volume.values.dtype, np.floating) else np.int16
    return nibabel.Nifti1Image(volume.values.T.astype(kind), LPS_RAS @ volume.grid.affine[:, [2, 1, 0, 3]])


def _surfaces(case: CaseFiles, structures: Structures) -> list[Path]:
    """Surface files beside the prediction, one for each structure."""
    folder = case.main.prediction.parent
    names = file_names([structure.name for structure in structures.all])
    choices = [[folder / f"{case.name}_{name}.{ending}" for ending in FORMATS] for name in names]
    found = [next((file for file in files if file.is_file()), None) for files in choices]
    files = [file for file in found if file is not None]
    try:
        require_formats([file.suffix[1:] for file in files])
    except RuntimeError as error:
        logger.warning("%s: surfaces are left out of the page: %s", case.name, error)
        return []
    return files

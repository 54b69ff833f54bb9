"""Names and colours of labels for viewers: 3D Slicer's `.seg.nrrd` and ITK-SNAP's label description file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.raw_files import SLICER_ENDING
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError, final_name, written_together
from rehrseg_nnunet.slices.grids import Grid
from rehrseg_nnunet.surfaces.formats import require_packages
from rehrseg_nnunet.surfaces.structures import Structure, Structures, structures_of

NIFTI_ENDINGS = (".nii", ".nii.gz")
ITK_SNAP_FILE = "itksnap_labels.txt"
_ITK_SNAP_HEADER = """\
################################################
# ITK-SNAP Label Description File
# IDX -R- -G- -B- -A-- VIS MSH LABEL
################################################
"""


def require_slicer() -> None:
    """Refuse to begin without what writes `.seg.nrrd`.

    Raises:
        RuntimeError: the message names the extra.
    """
    require_packages({"slicerio": "slicerio", "nrrd": "pynrrd"}, extra="slicer", purpose=f"{SLICER_ENDING} files")


def write_segmentation(labels: np.ndarray, grid: Grid, structures: Structures, stem: Path) -> Path:
    """Write `<stem>.seg.nrrd`, which 3D Slicer opens as a segmentation with names and colours.

    Regions that share voxels become segments that do.

    Args:
        labels: (D, H, W) integers.
        grid: of the array.
        structures: of the dataset.
        stem: folder and case; a path that `staging` gave is fine.

    Returns:
        The file.

    Raises:
        UnwrittenFileError: the file could not be written; named.
    """
    import slicerio

    to_lps = grid.affine[:, [2, 1, 0, 3]]  # from i, j, k, the fastest axis first
    voxels = labels.transpose(2, 1, 0)
    segmentation = slicerio.create_segmentation(voxels.shape, to_lps, _smallest_type(structures))
    if structures.class_order:
        for structure in structures.all:
            slicerio.add_segment(segmentation, structure.inside(voxels), _segment(structure, structures))
    else:
        known = [structure.labels[0] for structure in structures.all]
        segmentation["voxels"] = np.where(np.isin(voxels, known), voxels, 0).astype(segmentation["voxels"].dtype)
        segmentation["segments"] = [
            {**_segment(structure, structures), "labelValue": structure.labels[0]} for structure in structures.all
        ]
    with written_together(stem) as staged:
        file = staged.with_name(staged.name + SLICER_ENDING)
        try:
            slicerio.write_segmentation(str(file), segmentation)
        except OSError as error:
            raise UnwrittenFileError(f"{final_name(file)} could not be written: {error.strerror or error}") from error
    return final_name(file)


def _segment(structure: Structure, structures: Structures) -> dict[str, object]:
    name = _in_ascii(structure.name) or f"Label {structure.labels[0]}"
    shares = [round(part / 255, 6) for part in structures.colour(structure)]
    return {"id": f"Segment_{structure.head}", "name": name, "color": shares}


def _in_ascii(name: str) -> str:
    """A name as a line of an NRRD header, which knows no other letters: without accents, and without other scripts."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return " ".join(plain.split())


def _smallest_type(structures: Structures) -> str:
    largest = max((label for structure in structures.all for label in structure.labels), default=0)
    return np.min_scalar_type(largest).name


def describe_predictions(dataset_json: Mapping[str, Any], folder: Path) -> None:
    """Write ITK-SNAP's file beside predictions in NIfTI, the format that people open there."""
    if dataset_json["file_ending"] in NIFTI_ENDINGS:
        write_itk_snap_labels(structures_of(dataset_json), folder)


def write_itk_snap_labels(structures: Structures, folder: Path) -> Path:
    """Write ITK-SNAP's label description file for the label images of a folder.

    Where regions share voxels, a label has the names of all regions that it belongs to.

    Returns:
        The file.

    Raises:
        OSError: the file could not be written; named.
    """
    rows = ['    0     0    0    0        0  0  0    "background"']
    for label in sorted({label for structure in structures.all for label in structure.labels}):
        owners = [structure for structure in structures.all if label in structure.labels]
        red, green, blue = structures.colour(min(owners, key=lambda owner: len(owner.labels)))
        name = " + ".join(" ".join(owner.name.split()).replace('"', "'") for owner in owners)
        rows.append(f'{label:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"')
    file = folder / ITK_SNAP_FILE
    write_atomically(file, _ITK_SNAP_HEADER + "\n".join(rows) + "\n")
    return file

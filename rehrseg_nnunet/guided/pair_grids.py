"""Do the channels of a raw dataset of pairs lie on one grid? Only headers are read.

nnU-Net puts the channels of a case on each other voxel by voxel, wherever their headers say that they lie: a keeper
would learn from two scans that do not show the same place. `rehrseg pair` compares them when it writes a dataset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import SimpleITK as sitk

from rehrseg_nnunet.nnunet.each_case import for_each_case
from rehrseg_nnunet.nnunet.nifti_headers import open_nifti
from rehrseg_nnunet.slices.grids import Grid, check_same_points, grid_from_properties

REMEDY = "register it and resample it onto that grid, then plan and preprocess again"


def check_grids(images: Mapping[str, Sequence[str]], *, by_nibabel: bool) -> list[str]:
    """Refuse cases whose channels lie on different grids.

    Args:
        images: files of every case, one for each channel.
        by_nibabel: whether headers are nibabel's to read, as the plans' reader does, or else SimpleITK's.

    Returns:
        Cases with a header that cannot be read so.

    Raises:
        ValueError: files of the first such case with both grids, and the names of other cases.
    """

    def is_compared(case: str) -> bool:
        first, *others = images[case]
        grids = [header_grid(file, by_nibabel=by_nibabel) for file in images[case]]
        reference = grids[0]
        for file, grid in zip(others, grids[1:], strict=True):
            if reference is not None and grid is not None:
                check_same_points(grid, reference, file=file, reference_file=first, remedy=REMEDY)
        return None not in grids

    compared = for_each_case(is_compared, list(images), processes=1, title="grids")
    return [case for case, known in compared.items() if not known]


def header_grid(file: str, *, by_nibabel: bool) -> Grid | None:
    """The grid of a file by its header, None where that cannot be read."""
    try:
        return _nibabel_grid(file) if by_nibabel else _sitk_grid(file)
    except Exception:  # every library has errors of its own; whatever it is, nnU-Net has read the file
        return None


def _nibabel_grid(file: str) -> Grid:
    image = open_nifti(file)
    return grid_from_properties({"nibabel_stuff": {"original_affine": image.affine}}, image.shape[::-1])


def _sitk_grid(file: str) -> Grid:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    geometry = {"spacing": reader.GetSpacing(), "origin": reader.GetOrigin(), "direction": reader.GetDirection()}
    size = reader.GetSize()[::-1]
    return grid_from_properties({"sitk_stuff": geometry}, (*(1,) * (3 - len(size)), *size))

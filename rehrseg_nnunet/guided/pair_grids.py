"""Do the channels of a raw dataset of pairs lie on one grid? Only headers are read.

nnU-Net puts the channels of a case on each other voxel by voxel, wherever their headers say that they lie: a keeper
would learn from two scans that do not show the same place. `rehrseg pair` compares them when it writes a dataset.

*Convention* Grids are compared as nnU-Net's reader class hands the arrays over: after it has turned their axes to RAS,
if it does. Formats without positions have no grid to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import SimpleITK as sitk
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.nnunet.each_case import for_each_case
from rehrseg_nnunet.nnunet.nifti_headers import open_nifti
from rehrseg_nnunet.slices.grids import LPS_RAS, Grid, check_same_points, grid_from_properties

REMEDY = "register it and resample it onto that grid, then plan and preprocess again"
WITHOUT_POSITIONS = (Tiff3DIO, NaturalImage2DIO)  # nnU-Net compares the shapes of their files itself


def check_grids(images: Mapping[str, Sequence[str]], *, reader: type[BaseReaderWriter]) -> list[str]:
    """Refuse cases whose channels lie on different grids.

    Args:
        images: files of every case, one for each channel.
        reader: nnU-Net's class that reads them, the plans' one.

    Returns:
        Cases with a header that cannot be read so.

    Raises:
        ValueError: files of the first such case with both grids, and the names of other cases.
    """
    if issubclass(reader, WITHOUT_POSITIONS):
        return []

    def is_compared(case: str) -> bool:
        first, *others = images[case]
        grids = [header_grid(file, reader=reader) for file in images[case]]
        reference = grids[0]
        for file, grid in zip(others, grids[1:], strict=True):
            if reference is not None and grid is not None:
                check_same_points(grid, reference, file=file, reference_file=first, remedy=REMEDY)
        return None not in grids

    compared = for_each_case(is_compared, list(images), processes=1, title="grids")
    return [case for case, known in compared.items() if not known]


def header_grid(file: str, *, reader: type[BaseReaderWriter]) -> Grid | None:
    """The grid of the array that a reader returns, by the file's header; None where that cannot be told."""
    try:
        if issubclass(reader, (NibabelIO, NibabelIOWithReorient)):
            return _nibabel_grid(file, turned=issubclass(reader, NibabelIOWithReorient))
        if issubclass(reader, SimpleITKIOWithReorient):
            return _turned_sitk_grid(_sitk_header(file))
        if issubclass(reader, SimpleITKIO):
            return _sitk_grid(_sitk_header(file))
        return None
    except Exception:  # every library has errors of its own; whatever it is, nnU-Net has read the file
        return None


def _nibabel_grid(file: str, *, turned: bool) -> Grid:
    image = open_nifti(file)
    if turned:
        return _turned_grid(image.affine, image.shape, io_orientation(image.affine))
    return grid_from_properties({"nibabel_stuff": {"original_affine": image.affine}}, image.shape[::-1])


def _turned_grid(affine: np.ndarray, shape: Sequence[int], orientation: np.ndarray) -> Grid:
    """The grid after the axes are turned to RAS.

    Args:
        affine: from indices, fastest axis first, to RAS positions in mm.
        shape: fastest axis first.
        orientation: nibabel's, of the axes as they are stored.
    """
    turned = affine @ inv_ornt_aff(orientation, shape)
    size = np.asarray(apply_orientation(np.broadcast_to(np.uint8(0), shape), orientation)).shape
    return grid_from_properties({"nibabel_stuff": {"original_affine": turned}}, size[::-1])


def _sitk_header(file: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return reader


def _sitk_grid(header: sitk.ImageFileReader) -> Grid:
    geometry = {"spacing": header.GetSpacing(), "origin": header.GetOrigin(), "direction": header.GetDirection()}
    size = header.GetSize()[::-1]
    return grid_from_properties({"sitk_stuff": geometry}, (*(1,) * (3 - len(size)), *size))


def _turned_sitk_grid(header: sitk.ImageFileReader) -> Grid:
    grid = _sitk_grid(header)
    letters = sitk.DICOMOrientImageFilter_GetOrientationFromDirectionCosines(header.GetDirection())
    return _turned_grid(LPS_RAS @ grid.affine[:, [2, 1, 0, 3]], grid.shape[::-1], axcodes2ornt(letters))

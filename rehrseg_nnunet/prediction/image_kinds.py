"""Images in memory, of several libraries, as nnU-Net's arrays and back.

Convention:
    A `Volume` has the array axes (x, y, z) and an affine from their indices to RAS in mm, as nibabel has them.
    SimpleITK's images have LPS positions. nnU-Net's arrays have the axes (z, y, x); those of a model whose reader
    reorients them run to R, A and S.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeAlias

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import SpatialImage
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.slices.grids import LPS_RAS, Grid, check_same_points, grid_from_properties

ArrayImage: TypeAlias = tuple[np.ndarray, np.ndarray]  # (x, y, z) array and (4, 4) affine to RAS in mm

_REORIENTING = (NibabelIOWithReorient, SimpleITKIOWithReorient)
_WITH_GEOMETRY = (NibabelIO, NibabelIOWithReorient, SimpleITKIO)


@dataclass(frozen=True, eq=False)
class Volume:
    """An array with its place.

    Attributes:
        values: (x, y, z).
        affine: (4, 4), from indices to RAS in mm.
    """

    values: np.ndarray
    affine: np.ndarray

    @property
    def grid(self) -> Grid:
        """Its grid in the order of nnU-Net's arrays, in LPS."""
        x, y, z = self.values.shape
        return Grid((z, y, x), (LPS_RAS @ self.affine)[:, [2, 1, 0, 3]])


def to_volume(image: Any, name: str = "image") -> Volume:
    """A nibabel or SimpleITK image, or an array with its affine, as a `Volume`.

    Args:
        image: the image.
        name: what messages call it.

    Raises:
        TypeError: another kind.
        UnusableImageError: not three axes, or a geometry that no scan has.
    """
    if isinstance(image, SpatialImage):
        values, affine = np.asanyarray(image.dataobj), image.affine
        if set(values.shape[3:]) == {1}:  # as SimpleITK, and so nnU-Net's training, reads such a file
            values = values.reshape(values.shape[:3])
    elif isinstance(image, sitk.Image):
        _require(image.GetDimension() == 3 and image.GetNumberOfComponentsPerPixel() == 1, name, "another")
        values, affine = sitk.GetArrayFromImage(image).transpose(2, 1, 0), _affine_of(image)
    elif isinstance(image, tuple) and len(image) == 2 and not any(isinstance(part, (str, PathLike)) for part in image):
        values, affine = (np.asarray(part) for part in image)
    else:
        raise TypeError(
            f"{name} must be a path, a nibabel or SimpleITK image, or (array, affine), got {type(image).__name__}; a "
            "list holds the channels of one case"
        )
    affine = np.array(affine, dtype=np.float64)
    _require(values.ndim == 3 and values.dtype.kind in "biuf", name, f"shape {values.shape}, {values.dtype}")
    if affine.shape != (4, 4) or not _is_placed(affine):
        raise UnusableImageError(f"{name} must have a (4, 4) affine of full rank, finite, in mm, got {affine.tolist()}")
    return Volume(values, affine)


def _is_placed(affine: np.ndarray) -> bool:
    """Whether a (4, 4) matrix puts voxels somewhere, each in a place of its own."""
    finite = bool(np.isfinite(affine).all()) and np.allclose(affine[3], (0, 0, 0, 1))
    return finite and abs(np.linalg.det(affine[:3, :3])) > 0


def _require(holds: bool, name: str, got: str) -> None:
    if not holds:
        raise UnusableImageError(
            f"{name} must be 3D with one real value per voxel, got {got}; a list holds the channels of one case"
        )


def _affine_of(image: sitk.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return LPS_RAS @ affine


def like(volume: Volume, image: Any) -> Any:
    """A volume as the same kind of image as another.

    Args:
        volume: the new image.
        image: a nibabel image gives a Nifti1Image, a SimpleITK image one, an array with its affine both.
    """
    if isinstance(image, sitk.Image):
        return _to_sitk(volume)
    return (volume.values, volume.affine) if isinstance(image, tuple) else to_nifti(volume)


def to_nifti(volume: Volume) -> nibabel.Nifti1Image:
    """A volume as nibabel's image."""
    return nibabel.Nifti1Image(np.ascontiguousarray(volume.values), volume.affine)


def _to_sitk(volume: Volume) -> sitk.Image:
    affine = LPS_RAS @ volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.values.transpose(2, 1, 0)))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def to_case(
    volumes: Sequence[Volume], reader: type[BaseReaderWriter], names: Sequence[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Channels as a model's reader would read them from files.

    Args:
        volumes: channels on one grid.
        reader: the model's.
        names: the channels', for messages.

    Returns:
        (C, D, H, W) float32 and properties.

    Raises:
        NotImplementedError: the reader keeps no geometry (tif, png).
        UnusableImageError: the channels lie on different grids.
    """
    if not issubclass(reader, _WITH_GEOMETRY):
        raise NotImplementedError(
            f"images in memory need a model of 3D files with geometry, got one of {reader.__name__}"
        )
    first = volumes[0]
    for volume, name in zip(volumes[1:], names[1:], strict=True):
        remedy = "the channels of a case must be resampled to one grid"
        try:
            check_same_points(volume.grid, first.grid, file=name, reference_file=names[0], remedy=remedy)
        except ValueError as error:
            raise UnusableImageError(str(error)) from None
    stuff = {"original_affine": first.affine}
    if issubclass(reader, _REORIENTING):
        volumes = [reoriented(volume, axcodes2ornt(("R", "A", "S"))) for volume in volumes]
        stuff["reoriented_affine"] = volumes[0].affine
    # headers hold float32, and nnU-Net compares spacings with limits
    spacing_mm = np.linalg.norm(volumes[0].affine[:3, :3], axis=0).astype(np.float32)[::-1]
    arrays = [volume.values.transpose(2, 1, 0).astype(np.float32) for volume in volumes]
    return np.stack(arrays), {"nibabel_stuff": stuff, "spacing": [float(length) for length in spacing_mm]}


def from_case(array: np.ndarray, properties: Mapping[str, Any]) -> Volume:
    """A result in a reader's array order, with the properties of its file, in the axes that the file has.

    Args:
        array: (D, H, W).
        properties: a reader's, or those of `to_case`, after the output grid has changed them.
    """
    grid = grid_from_properties(properties, array.shape)
    volume = Volume(array.transpose(2, 1, 0), LPS_RAS @ grid.affine[:, [2, 1, 0, 3]])
    return reoriented(volume, _file_orientation(volume, properties))


def _file_orientation(volume: Volume, properties: Mapping[str, Any]) -> np.ndarray:
    """Orientation of the file's axes, which readers that reorient turn to R, A, S."""
    if "reoriented_affine" in properties.get("nibabel_stuff", {}):
        return io_orientation(properties["nibabel_stuff"]["original_affine"])
    if "original_orientation" in properties.get("sitk_stuff", {}):
        return axcodes2ornt(tuple(properties["sitk_stuff"]["original_orientation"]))
    return io_orientation(volume.affine)


def reoriented(volume: Volume, orientation: np.ndarray) -> Volume:
    """A volume with its axes permuted and turned, at the same place.

    Args:
        volume: the volume.
        orientation: nibabel's, (3, 2), of the axes to have.
    """
    transform = ornt_transform(io_orientation(volume.affine), orientation)
    affine = volume.affine @ inv_ornt_aff(transform, volume.values.shape)
    return Volume(apply_orientation(volume.values, transform), affine)

"""Images of real values written in the format of any of nnU-Net's reader-writers, which write label maps alone.

Convention:
    Arrays are (D, H, W) in the order in which the reader returns them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

DARKEST, BRIGHTEST = 0.5, 99.5  # percentiles, of formats with 256 grey values
GREY_VALUES = 255


def image_to_write(
    image: np.ndarray, properties: Mapping[str, Any], reader: type[BaseReaderWriter]
) -> tuple[np.ndarray, Callable[[str], None]]:
    """What of an image a format holds, and how it is written.

    Args:
        image: (D, H, W).
        properties: a reader's, of a file on the same grid.
        reader: nnU-Net's class that returned them.

    Returns:
        The values as a reader will return them: float32, but 256 grey values between the 0.5th and the 99.5th
        percentile for formats that hold no others (png, bmp); and a function that writes them to a file.

    Raises:
        NotImplementedError: properties without geometry, of a reader that keeps one.
    """
    values = image.astype(np.float32, copy=False)
    if "sitk_stuff" in properties:
        return values, lambda file: _write_sitk(values, file, properties["sitk_stuff"])
    if "nibabel_stuff" in properties:
        return values, lambda file: _write_nibabel(values, file, properties["nibabel_stuff"])
    if issubclass(reader, Tiff3DIO):
        return values, lambda file: _write_tif(values, file, properties["spacing"])
    if issubclass(reader, NaturalImage2DIO):
        grey = _grey_values(values)
        return grey, lambda file: _write_with_skimage(grey[0], file)
    raise NotImplementedError(f"images can be written where the reader keeps their geometry, got {reader.__name__}'s")


def _write_sitk(image: np.ndarray, file: str, geometry: Mapping[str, Any]) -> None:
    volume = sitk.GetImageFromArray(image[0] if len(geometry["spacing"]) == 2 else image)
    volume.SetSpacing(geometry["spacing"])
    volume.SetOrigin(geometry["origin"])
    volume.SetDirection(geometry["direction"])
    if "original_orientation" in geometry:  # of a reader that turns axes
        volume = sitk.DICOMOrient(volume, geometry["original_orientation"])
    sitk.WriteImage(volume, file, True)


def _write_nibabel(image: np.ndarray, file: str, geometry: Mapping[str, Any]) -> None:
    original = geometry["original_affine"]
    volume = nibabel.Nifti1Image(image.transpose(2, 1, 0), geometry.get("reoriented_affine", original))
    if "reoriented_affine" in geometry:
        to_file = ornt_transform(axcodes2ornt("RAS"), io_orientation(original))
        volume = volume.as_reoriented(to_file)  # pyright: ignore[reportArgumentType] # nibabel's own kind of array
    nibabel.save(volume, file)


def _write_tif(image: np.ndarray, file: str, spacing: Any) -> None:
    _write_with_skimage(image, file)
    lengths = {"spacing": [float(length) for length in spacing]}
    Path(file).with_suffix(".json").write_text(json.dumps(lengths))


def _grey_values(image: np.ndarray) -> np.ndarray:
    low, high = np.percentile(image, (DARKEST, BRIGHTEST))
    share = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.round(GREY_VALUES * share.clip(0, 1)).astype(np.uint8)


def _write_with_skimage(image: np.ndarray, file: str) -> None:
    from skimage import io

    io.imsave(file, image, check_contrast=False)

"""What NIfTI headers and values hold that readers make different things of, or hide."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from rehrseg_nnunet.slices.grids import LPS_RAS, Grid, corner_distance_mm, tolerance_mm

logger = logging.getLogger(__name__)


def open_nifti(file: str | Path) -> Any:
    """Header and lazy values of a NIfTI file; nibabel declares what it returns as an image of any format."""
    return nibabel.load(file)


def say_other_unit(file: str, header: Any, reader: str) -> None:
    """SimpleITK converts lengths to mm by the header's unit, nnU-Net's nibabel readers do not."""
    unit = header.header.get_xyzt_units()[0]
    if unit in ("meter", "micron"):
        logger.warning("%s: its header gives lengths in %ss, which nnU-Net's %s takes for mm", file, unit, reader)


def say_two_positions(file: str, image: Any) -> None:
    """A NIfTI header can say twice where the image lies; each program takes the one or the other."""
    try:
        (qform, has_qform), (sform, has_sform) = (get(coded=True) for get in (image.get_qform, image.get_sform))
    except ValueError:  # a quaternion that is a hair too long, which SimpleITK mends
        return
    if not (has_qform and has_sform):
        return
    by_qform, by_sform = (Grid(image.shape[:3], LPS_RAS @ affine) for affine in (qform, sform))
    distance = corner_distance_mm(by_qform, by_sform)
    if distance > tolerance_mm(by_sform):
        logger.warning(
            "%s: its header says twice where it lies, and qform and sform are %.3g mm apart: other programs may show "
            "the result beside the scan; make them equal, e.g. by fslorient -copysform2qform",
            file,
            distance,
        )


def is_finite(file: str) -> bool:
    """Whether no value is NaN or infinite; SimpleITK reads these as 0."""
    values = open_nifti(file).dataobj.get_unscaled()
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())

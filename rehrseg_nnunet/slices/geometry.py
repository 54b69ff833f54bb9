"""Grids of thick-slice (LR) and thin-slice (HR) volumes: the factor r, slice positions and file geometry.

Convention:
    The through-plane axis of a preprocessed nnU-Net case is array axis 0 (z), because nnU-Net transposes the axis with
    the largest target spacing to the front. An HR volume covers exactly the field of view of its LR volume: LR slices
    0..D-1 become HR slices 0..r*D-1, and HR slice j has its centre at LR coordinate (j + 1/2)/r - 1/2 (half-pixel
    convention). LR slice k is centred at HR coordinate r*k + (r - 1)/2. Coordinates count voxel centres from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

InterpolationKind = Literal["spline", "smooth"]  # of images along z
MIN_ANISOTROPY = 1.5
MAX_IN_PLANE_RATIO = 1.5


def check_thick_slices(spacing_mm: Sequence[float]) -> None:
    """Refuse target spacings that are not thick slices along axis 0.

    Args:
        spacing_mm: (c, a_y, a_x) of a preprocessed case, mm.

    Raises:
        NotImplementedError: 2D spacing.
        ValueError: slices are not at least 1.5 times the larger in-plane spacing, or there are two thick axes.
    """
    if len(spacing_mm) != 3:
        raise NotImplementedError(
            "REHRSeg needs a 3d configuration (it resolves the slice axis); 2d configurations are not supported"
        )
    c, *in_plane = spacing_mm
    shown = " x ".join(f"{s:.4g}" for s in spacing_mm)
    remedy = "if your scans do have thick slices, plan again with nnUNetv2_plan_experiment -overwrite_target_spacing"
    if c / max(in_plane) < MIN_ANISOTROPY:
        raise ValueError(
            f"spacing must have slices at least {MIN_ANISOTROPY} times as thick as the pixels along its first axis, "
            f"got {shown} mm; REHRSeg has nothing to resolve there; {remedy}"
        )
    if max(in_plane) / min(in_plane) > MAX_IN_PLANE_RATIO:
        raise ValueError(
            f"spacing must have in-plane spacings within a ratio of {MAX_IN_PLANE_RATIO}, got {shown} mm "
            f"(two thick axes); {remedy}"
        )


def sr_factor(spacing_mm: Sequence[float]) -> int:
    """Return r = max(2, round(c / sqrt(a_y a_x))), the integer factor that brings slices closest to isotropic.

    Args:
        spacing_mm: (c, a_y, a_x), mm.

    Example:
        >>> sr_factor((4.0, 1.0, 1.0))  # 4 mm slices, 1 mm pixels
        4
    """
    c, a_y, a_x = spacing_mm
    return max(2, math.floor(c / math.sqrt(a_y * a_x) + 0.5))


def hr_patch_size(patch_size: Sequence[int], factor: int) -> tuple[int, int, int]:
    """An LR patch (D, H, W) in HR voxels, (r*D, H, W).

    Example:
        >>> hr_patch_size((8, 64, 64), factor=4)
        (32, 64, 64)
    """
    slices, height, width = patch_size
    return slices * factor, height, width


def hr_slice_positions(lr_slices: int, factor: int) -> np.ndarray:
    """Centres of the r*D HR slices in LR slice coordinates, shape (factor * lr_slices,), float64.

    Example:
        >>> hr_slice_positions(2, factor=4)  # four HR slices around each of the LR slices 0 and 1
        array([-0.375, -0.125,  0.125,  0.375,  0.625,  0.875,  1.125,  1.375])
    """
    return (np.arange(lr_slices * factor) + 0.5) / factor - 0.5


def scale_affine(affine: np.ndarray, axis: int, scale: float, *, before: float = 0.0) -> np.ndarray:
    """Affine of a grid whose voxels along one axis are `scale` times as long, over the same field of view.

    Args:
        affine: (4, 4), voxel index to mm.
        axis: index axis (column of the affine) that is rescaled.
        scale: 1/r from LR to HR, r from HR to LR. The origin moves by (scale - 1)/2 old voxels along that axis.
        before: old voxels by which the new grid begins before the old one.

    Example:
        The first of four 1 mm slices lies 1.5 mm before the centre of the 4 mm slice that they make up:

        >>> thin = scale_affine(np.diag([1.0, 1.0, 4.0, 1.0]), axis=2, scale=1 / 4)
        >>> thin[2]
        array([ 0. ,  0. ,  1. , -1.5])
    """
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3, 3] += affine[:3, axis] * ((scale - 1) / 2 - before)
    scaled[:3, axis] *= scale
    return scaled


def scale_slice_geometry(properties: dict[str, Any], axis: int, scale: float, *, before: float = 0.0) -> dict[str, Any]:
    """File geometry for nnU-Net's readers and writers after the slices along one axis were split or merged.

    Args:
        properties: what `read_images` of an nnU-Net reader returned: `spacing` in array order and `sitk_stuff` or
            `nibabel_stuff`. Other entries are kept.
        axis: array axis (0, 1, 2) of the array that the reader returned.
        scale: new slice spacing over the old one: 1/r from LR to HR, r from HR to LR.
        before: old slices by which the new field of view begins before the old one.

    Returns:
        A copy of `properties` with new `spacing`, origin and affines; the field of view begins where it did.

    Raises:
        NotImplementedError: the reader keeps no 3D geometry that this function knows.
    """
    scaled = dict(properties)
    spacing = [float(s) for s in properties["spacing"]]
    spacing[axis] *= scale
    scaled["spacing"] = spacing
    index_axis = 2 - axis  # arrays are (z, y, x), file indices (i, j, k) = (x, y, z)
    if "sitk_stuff" in properties:
        scaled["sitk_stuff"] = _scale_sitk(properties["sitk_stuff"], index_axis, scale, before)
    elif "nibabel_stuff" in properties:
        scaled["nibabel_stuff"] = _scale_nibabel(properties["nibabel_stuff"], index_axis, scale, before)
    else:
        raise NotImplementedError(
            f"properties must come from one of nnU-Net's SimpleITK or nibabel readers, got keys {sorted(properties)}"
        )
    return scaled


def _scale_sitk(sitk_stuff: dict[str, Any], index_axis: int, scale: float, before: float) -> dict[str, Any]:
    spacing = np.array(sitk_stuff["spacing"], dtype=np.float64)
    if len(spacing) != 3:
        raise NotImplementedError(f"images must be 3D files, got spacing {tuple(spacing)}")
    direction = np.array(sitk_stuff["direction"], dtype=np.float64).reshape(3, 3)
    shift_mm = ((scale - 1) / 2 - before) * spacing[index_axis] * direction[:, index_axis]
    spacing[index_axis] *= scale
    return {
        **sitk_stuff,
        "spacing": tuple(spacing.tolist()),
        "origin": tuple((np.array(sitk_stuff["origin"]) + shift_mm).tolist()),
    }


def _scale_nibabel(nibabel_stuff: dict[str, Any], index_axis: int, scale: float, before: float) -> dict[str, Any]:
    original = np.array(nibabel_stuff["original_affine"], dtype=np.float64)
    if "reoriented_affine" not in nibabel_stuff:
        return {**nibabel_stuff, "original_affine": scale_affine(original, index_axis, scale, before=before)}
    # the reorienting reader returns arrays in RAS order: find the same physical axis in the file's own order
    file_axis = _file_axis(original, index_axis)
    reoriented = scale_affine(np.array(nibabel_stuff["reoriented_affine"]), index_axis, scale, before=before)
    scaled = scale_affine(original, file_axis, scale, before=before)
    return {**nibabel_stuff, "original_affine": scaled, "reoriented_affine": reoriented}


def _file_axis(affine: np.ndarray, index_axis: int) -> int:
    """Axis of a file with this affine that is an axis in RAS order."""
    from nibabel.orientations import io_orientation

    return int(np.flatnonzero(io_orientation(affine)[:, 0] == index_axis)[0])


def file_axes(properties: dict[str, Any]) -> tuple[int, int, int]:
    """For each axis of the array that an nnU-Net reader returned, the axis of the file, its fastest first.

    Args:
        properties: what the reader returned.
    """
    sitk_stuff, nibabel_stuff = properties.get("sitk_stuff", {}), properties.get("nibabel_stuff", {})
    if "original_orientation" in sitk_stuff:  # three letters, such as LPS: where each axis of the file leads
        letters = str(sitk_stuff["original_orientation"])
        x, y, z = (next(i for i, letter in enumerate(letters) if letter in pair) for pair in ("RL", "AP", "SI"))
    elif "reoriented_affine" in nibabel_stuff:
        original = np.array(nibabel_stuff["original_affine"], dtype=np.float64)
        x, y, z = (_file_axis(original, index_axis) for index_axis in range(3))
    else:
        x, y, z = range(3)
    return z, y, x

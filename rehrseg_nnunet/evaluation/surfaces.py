"""Distances between the surfaces of two masks: HD95, average distance, and surface overlap at a tolerance.

*Convention* Arrays are volumes in any axis order, as long as reference, prediction and spacing share it; axes of length
1 are dropped, because in a one-slice volume every voxel would be surface. Both masks empty: ``nan``, "not defined".
Exactly one empty, a structure that is missed or made up, is a failure and gets the worst value: the diagonal of the
volume as a distance, 0 as an overlap. So it counts in every average, and a method cannot gain by missing a structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

# monai takes seconds to import and worker processes import this module, so the functions that need it import it.

HAUSDORFF_PERCENTILE = 95


def hd95(reference_mask: np.ndarray, prediction_mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance between the surfaces of two masks, in mm.

    The percentile is taken over the distances from each surface to the other, and the larger of the two counts
    (``monai.metrics.compute_hausdorff_distance``).

    *Convention* A surface is the centres of those voxels of a mask that have a face neighbour outside of it; outside
    the volume counts as outside the mask.

    Args:
        reference_mask: volume of any shape, true inside the structure.
        prediction_mask: the same shape, true inside the structure.
        spacing_mm: voxel spacing of each array axis.

    Returns:
        A distance >= 0; the volume's diagonal when exactly one mask is empty, nan when both are.

    Raises:
        ValueError: the shapes differ, or the spacing is not one positive number for each axis.

    Example:
        >>> reference, prediction = np.array([[0, 1, 0, 0]]), np.array([[0, 0, 0, 1]])  # two pixels of 0.5 mm apart
        >>> hd95(reference, prediction, spacing_mm=(4.0, 0.5))
        1.0
    """
    pair = _Pair(reference_mask, prediction_mask, spacing_mm)
    if pair.empty:
        return pair.diagonal_mm
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    distance = compute_hausdorff_distance(
        *pair.batches(), include_background=True, percentile=HAUSDORFF_PERCENTILE, spacing=pair.spacing_mm
    )
    return float(distance)


def assd(reference_mask: np.ndarray, prediction_mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """Average symmetric surface distance of two masks, in mm (``monai.metrics.compute_average_surface_distance``).

    *Convention* As in `hd95`; the mean is over the distances of both surfaces together.

    Args:
        reference_mask: volume of any shape, true inside the structure.
        prediction_mask: the same shape, true inside the structure.
        spacing_mm: voxel spacing of each array axis.

    Returns:
        A distance >= 0; the volume's diagonal when exactly one mask is empty, nan when both are.

    Raises:
        ValueError: as for :func:`hd95`.

    Example:
        >>> reference, prediction = np.array([[0, 1, 0, 0]]), np.array([[0, 0, 0, 1]])  # two pixels of 0.5 mm apart
        >>> assd(reference, prediction, spacing_mm=(4.0, 0.5))
        1.0
    """
    pair = _Pair(reference_mask, prediction_mask, spacing_mm)
    if pair.empty:
        return pair.diagonal_mm
    from monai.metrics.surface_distance import compute_average_surface_distance

    distance = compute_average_surface_distance(
        *pair.batches(), include_background=True, symmetric=True, spacing=pair.spacing_mm
    )
    return float(distance)


def nsd(
    reference_mask: np.ndarray,
    prediction_mask: np.ndarray,
    spacing_mm: Sequence[float],
    *,
    tolerance_mm: float | None = None,
) -> float:
    """Normalised surface Dice: share of both surfaces' area that lies within a tolerance of the other surface.

    *Convention* Areas are those of the surface that runs between voxel centres, by marching cubes, so a surface counts
    alike in thick and in thin slices (``monai.metrics.compute_surface_dice``).

    Args:
        reference_mask: volume with 2 or 3 axes that are longer than 1, true inside the structure.
        prediction_mask: the same shape, true inside the structure.
        spacing_mm: voxel spacing of each array axis.
        tolerance_mm: largest distance that counts as no difference; None: `in_plane_mm` of the spacing.

    Returns:
        A value in [0, 1]; 0 when exactly one mask is empty, nan when both are.

    Raises:
        ValueError: as for :func:`hd95`, or the tolerance is negative, or not finite.

    Example:
        >>> reference, prediction = np.zeros((2, 9, 9, 9), bool)
        >>> reference[2:6, 2:6, 2:6] = prediction[3:7, 2:6, 2:6] = True
        >>> nsd(reference, prediction, spacing_mm=(1, 1, 1))
        1.0
    """
    pair = _Pair(reference_mask, prediction_mask, spacing_mm)
    tolerance_mm = in_plane_mm(spacing_mm) if tolerance_mm is None else tolerance_mm
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise ValueError(f"tolerance_mm must be a finite number >= 0, got {tolerance_mm}")
    if pair.empty:
        return 0 * pair.diagonal_mm
    from monai.metrics.surface_dice import compute_surface_dice

    share = compute_surface_dice(
        *pair.batches(margin=1),
        class_thresholds=[float(tolerance_mm)],
        include_background=True,
        spacing=pair.spacing_mm,
        use_subvoxels=pair.axes in (2, 3),
    )
    return float(share)


def in_plane_mm(spacing_mm: Sequence[float]) -> float:
    """Spacing of the pixels within a slice, of the slices' larger one: the middle one of three spacings.

    Example:
        >>> in_plane_mm((4.0, 0.9, 1.1)), in_plane_mm((1.0, 1.0, 1.0))
        (1.1, 1.0)
    """
    ordered = sorted(map(float, spacing_mm))
    return ordered[len(ordered) // 2]


class _Pair:
    """Two masks that are checked, without axes of length 1, cut to their common box.

    Attributes:
        axes: number of axes that are left.
        spacing_mm: of these axes.
        empty: whether a mask is.
        diagonal_mm: worst distance, of the whole volume; nan when both masks are empty.
    """

    def __init__(self, reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]):
        self._masks = as_masks(reference, prediction)
        shape, spacing = self._masks[0].shape, np.asarray(spacing_mm, dtype=np.float64)
        if spacing.shape != (len(shape),) or not np.all(np.isfinite(spacing) & (spacing > 0)):
            raise ValueError(f"spacing_mm must be {len(shape)} positive numbers, one for each axis, got {spacing_mm}")
        filled = [bool(mask.any()) for mask in self._masks]
        self.empty = not all(filled)
        self.diagonal_mm = float(np.linalg.norm(np.array(shape) * spacing)) if any(filled) else math.nan
        long = [axis for axis, size in enumerate(shape) if size > 1]
        self._flat = tuple(axis for axis in range(len(shape)) if axis not in long) if len(long) >= 2 else ()
        self.spacing_mm = np.delete(spacing, self._flat).tolist()
        self.axes = len(self.spacing_mm)

    def batches(self, *, margin: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Prediction and reference (1, 1, ...) for monai, with a margin of background around the box."""
        reference, prediction = (mask.squeeze(self._flat) for mask in self._masks)
        # Everything outside the common bounding box is background: cropping changes nothing and saves most of the work.
        box = ndimage.find_objects((reference | prediction).astype(np.uint8))[0]
        reference, prediction = (np.pad(mask[box], margin) for mask in (reference, prediction))
        return as_batch(prediction), as_batch(reference)


def as_batch(array: np.ndarray) -> torch.Tensor:
    """(1, 1, ...) for monai."""
    # torch refuses the negative strides of flipped arrays.
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def as_masks(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as booleans, after `require_same_shape`."""
    masks = np.asarray(reference) != 0, np.asarray(prediction) != 0
    require_same_shape(*masks, name="prediction_mask")
    return masks


def require_same_shape(reference: np.ndarray, other: np.ndarray, *, name: str) -> None:
    """Refuse arrays of different shapes.

    Raises:
        ValueError: they differ.
    """
    if other.shape != reference.shape:
        raise ValueError(f"{name} must have the reference's shape {reference.shape}, got {other.shape}")

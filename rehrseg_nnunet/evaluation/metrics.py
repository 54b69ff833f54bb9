"""Metrics of one pair of arrays: Dice, 95th percentile Hausdorff distance, PSNR and SSIM.

*Convention* Arrays are volumes in any axis order, as long as reference, prediction and spacing share it. The reference
comes first. ``nan`` means "not defined for this pair", never "bad": averages leave it out and say how often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage

# monai takes seconds to import and worker processes import this module, so the functions that need it import it.

HAUSDORFF_PERCENTILE = 95
SSIM_WINDOW = 7
SSIM_SIGMA = 1.5


def dice(reference_mask: np.ndarray, prediction_mask: np.ndarray, *, valid: np.ndarray | None = None) -> float:
    """Dice overlap 2 |A and B| / (|A| + |B|), with nnU-Net's treatment of empty masks.

    Args:
        reference_mask: volume of any shape, true inside the structure.
        prediction_mask: the same shape, true inside the structure.
        valid: the same shape, true where voxels count; None counts all.

    Returns:
        A value in [0, 1]; 0 when exactly one mask is empty, nan when both are.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> dice(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0]))
        0.5
        >>> dice(np.zeros(4), np.zeros(4))
        nan
    """
    reference, prediction = _as_masks(reference_mask, prediction_mask)
    if valid is not None:
        _require_same_shape(reference, np.asarray(valid), name="valid")
        reference, prediction = reference & (valid != 0), prediction & (valid != 0)
    total = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / total if total else math.nan


def hd95(reference_mask: np.ndarray, prediction_mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
    """95th percentile Hausdorff distance between the surfaces of two masks, in mm.

    The percentile is taken over the distances from each surface to the other, and the larger of the two counts
    (``monai.metrics.compute_hausdorff_distance``).

    *Convention* A surface is the centres of those voxels of a mask that have a face neighbour outside of it; outside
    the volume counts as outside the mask. Axes of length 1 are dropped, because in a one-slice volume every voxel would
    be surface.

    Args:
        reference_mask: volume of any shape, true inside the structure.
        prediction_mask: the same shape, true inside the structure.
        spacing_mm: voxel spacing of each array axis.

    Returns:
        A distance >= 0, or nan when a mask is empty (one or both: there is no surface to measure to).

    Raises:
        ValueError: the shapes differ, or the spacing is not one positive number for each axis.

    Example:
        >>> reference, prediction = np.array([[0, 1, 0, 0]]), np.array([[0, 0, 0, 1]])  # two pixels of 0.5 mm apart
        >>> hd95(reference, prediction, spacing_mm=(4.0, 0.5))
        1.0
    """
    reference, prediction = _as_masks(reference_mask, prediction_mask)
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (reference.ndim,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ValueError(f"spacing_mm must be {reference.ndim} positive numbers, one for each axis, got {spacing_mm}")
    if not (reference.any() and prediction.any()):
        return math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    thick = [axis for axis, size in enumerate(reference.shape) if size > 1]
    if len(thick) >= 2:
        flat = tuple(axis for axis in range(reference.ndim) if axis not in thick)
        reference, prediction, spacing = reference.squeeze(flat), prediction.squeeze(flat), spacing[thick]
    # Everything outside the common bounding box is background: cropping changes nothing and saves most of the memory.
    box = ndimage.find_objects((reference | prediction).astype(np.uint8))[0]
    distance = compute_hausdorff_distance(
        _as_batch(prediction[box]),
        _as_batch(reference[box]),
        include_background=True,
        percentile=HAUSDORFF_PERCENTILE,
        spacing=spacing.tolist(),
    )
    return float(distance)


def psnr(reference: np.ndarray, prediction: np.ndarray, *, data_range: float) -> float:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mean squared error), in dB.

    Args:
        reference: image of any shape.
        prediction: the same shape.
        data_range: largest minus smallest possible value, >= 0.

    Returns:
        The ratio in dB: inf for equal images, nan for ``data_range`` 0 (a constant reference has no peak).

    Raises:
        ValueError: the shapes differ, a value is not finite, or ``data_range`` is negative or not finite.

    Example:
        >>> reference = np.array([0.0, 10.0])
        >>> psnr(reference, reference + 1, data_range=10.0)
        20.0
        >>> psnr(reference, reference, data_range=10.0)
        inf
    """
    reference, prediction = _as_images(reference, prediction, data_range=data_range)
    if data_range == 0:
        return math.nan
    from monai.metrics.regression import PSNRMetric

    return _as_number(PSNRMetric(max_val=float(data_range))(_as_batch(prediction), _as_batch(reference)))


def ssim(reference: np.ndarray, prediction: np.ndarray, *, data_range: float) -> float:
    """Mean structural similarity in a Gaussian window (Wang et al. 2004; ``monai.metrics``), k1 = 0.01, k2 = 0.03.

    *Convention* SSIM's luminance term is made for values in [0, data_range], which CT numbers and z-scores are not.
    Both images are therefore mapped by (value - reference.min()) / data_range first, so the result does not depend on
    the intensity unit. The window has sigma 1.5 voxels and 7 voxels along each axis, or the largest odd number that
    fits where the volume is thinner; only windows inside the volume count.

    Args:
        reference: image of shape (H, W) or (D, H, W).
        prediction: the same shape.
        data_range: largest minus smallest possible value, >= 0.

    Returns:
        A value in [-1, 1]; nan for ``data_range`` 0.

    Raises:
        ValueError: as for :func:`psnr`, or the images are not 2D or 3D.
    """
    reference, prediction = _as_images(reference, prediction, data_range=data_range)
    if reference.ndim not in (2, 3):
        raise ValueError(f"reference must have 2 or 3 axes, got shape {reference.shape}")
    if data_range == 0:
        return math.nan
    from monai.metrics.regression import SSIMMetric

    window = [min(SSIM_WINDOW, size - 1 + size % 2) for size in reference.shape]
    lowest = reference.min()
    pair = [_as_batch((image - lowest) / data_range) for image in (prediction, reference)]
    metric = SSIMMetric(reference.ndim, data_range=1.0, win_size=window, kernel_sigma=SSIM_SIGMA)
    return _as_number(metric(*pair))


def _require_same_shape(reference: np.ndarray, other: np.ndarray, *, name: str) -> None:
    if other.shape != reference.shape:
        raise ValueError(f"{name} must have the reference's shape {reference.shape}, got {other.shape}")


def _as_batch(array: np.ndarray) -> torch.Tensor:
    # torch refuses the negative strides of flipped arrays.
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def _as_number(result: torch.Tensor | Sequence[Any]) -> float:
    # monai's metrics may give a list of tensors; those of one image give one value.
    return float(torch.as_tensor(result))


def _as_masks(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    masks = np.asarray(reference) != 0, np.asarray(prediction) != 0
    _require_same_shape(*masks, name="prediction_mask")
    return masks


def _as_images(reference: np.ndarray, prediction: np.ndarray, *, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(reference, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    _require_same_shape(*images, name="prediction")
    for name, image in zip(("reference", "prediction"), images, strict=True):
        if not np.isfinite(image).all():
            raise ValueError(f"{name} must be finite everywhere, got nan or inf in it")
    if not (math.isfinite(data_range) and data_range >= 0):
        raise ValueError(f"data_range must be a finite number >= 0, got {data_range}")
    return images

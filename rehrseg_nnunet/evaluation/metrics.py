"""Metrics of one pair of arrays: Dice, volume bias, PSNR and SSIM; distances of surfaces are in ``surfaces``.

*Convention* Arrays are volumes in any axis order, as long as reference, prediction and spacing share it. The reference
comes first. ``nan`` means "not defined for this pair", never "bad": averages leave it out and say how often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from rehrseg_nnunet.evaluation.surfaces import as_batch, as_masks, require_same_shape

# monai takes seconds to import and worker processes import this module, so the functions that need it import it.

SSIM_WINDOW = 7
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


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
    reference, prediction = as_masks(reference_mask, prediction_mask)
    if valid is not None:
        require_same_shape(reference, np.asarray(valid), name="valid")
        reference, prediction = reference & (valid != 0), prediction & (valid != 0)
    total = int(reference.sum()) + int(prediction.sum())
    return 2 * int((reference & prediction).sum()) / total if total else math.nan


def volume_bias(reference_mask: np.ndarray, prediction_mask: np.ndarray) -> float:
    """How much larger the prediction's volume is, in percent of the reference's.

    Args:
        reference_mask: volume of any shape, true inside the structure.
        prediction_mask: the same shape, true inside the structure.

    Returns:
        A percentage >= -100, which a missed structure has; nan when the reference is empty.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> volume_bias(np.array([1, 1, 1, 1]), np.array([1, 1, 1, 0]))
        -25.0
    """
    reference, prediction = as_masks(reference_mask, prediction_mask)
    wanted = int(reference.sum())
    return 100 * (int(prediction.sum()) - wanted) / wanted if wanted else math.nan


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

    return _as_number(PSNRMetric(max_val=float(data_range))(as_batch(prediction), as_batch(reference)))


def ssim(
    reference: np.ndarray, prediction: np.ndarray, *, data_range: float, inside: np.ndarray | None = None
) -> float:
    """Mean structural similarity in a Gaussian window (Wang et al. 2004), k1 = 0.01, k2 = 0.03.

    *Convention* SSIM's luminance term is made for values in [0, data_range], which CT numbers and z-scores are not.
    Both images are therefore mapped by (value - reference.min()) / data_range first, so the result does not depend on
    the intensity unit. The window has sigma 1.5 voxels and 7 voxels along each axis, or the largest odd number that
    fits where the volume is thinner; only windows inside the volume count.

    Args:
        reference: image of shape (H, W) or (D, H, W).
        prediction: the same shape.
        data_range: largest minus smallest possible value, >= 0.
        inside: the same shape, true at the centres of the windows that count; None counts all.

    Returns:
        A value in [-1, 1]; nan for ``data_range`` 0 or if no window counts.

    Raises:
        ValueError: as for :func:`psnr`, or the images are not 2D or 3D.
    """
    reference, prediction = _as_images(reference, prediction, data_range=data_range)
    if reference.ndim not in (2, 3):
        raise ValueError(f"reference must have 2 or 3 axes, got shape {reference.shape}")
    if data_range == 0:
        return math.nan
    window = [min(SSIM_WINDOW, size - 1 + size % 2) for size in reference.shape]
    lowest = reference.min()
    values = _ssim_map((reference - lowest) / data_range, (prediction - lowest) / data_range, window)
    if inside is not None:
        require_same_shape(reference, np.asarray(inside), name="inside")
        values = values[_whole_windows(np.asarray(inside), window) != 0]
    return float(values.mean()) if values.size else math.nan


def _ssim_map(first: np.ndarray, second: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """SSIM of every window inside images with a data range of 1."""

    def mean(values: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter(values, SSIM_SIGMA, radius=[size // 2 for size in window])
        return _whole_windows(smooth, window)

    mean_1, mean_2 = mean(first), mean(second)
    variances = mean(first**2) - mean_1**2 + mean(second**2) - mean_2**2
    covariance = mean(first * second) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + SSIM_K1**2) / (mean_1**2 + mean_2**2 + SSIM_K1**2)
    return luminance * (2 * covariance + SSIM_K2**2) / (variances + SSIM_K2**2)


def _whole_windows(values: np.ndarray, window: Sequence[int]) -> np.ndarray:
    """The voxels whose window lies inside the volume."""
    return values[tuple(slice(size // 2, n - size // 2) for size, n in zip(window, values.shape, strict=True))]


def _as_number(result: torch.Tensor | Sequence[Any]) -> float:
    # monai's metrics may give a list of tensors; those of one image give one value.
    return float(torch.as_tensor(result))


def _as_images(reference: np.ndarray, prediction: np.ndarray, *, data_range: float) -> tuple[np.ndarray, np.ndarray]:
    images = np.asarray(reference, dtype=np.float64), np.asarray(prediction, dtype=np.float64)
    require_same_shape(*images, name="prediction")
    for name, image in zip(("reference", "prediction"), images, strict=True):
        if not np.isfinite(image).all():
            raise ValueError(f"{name} must be finite everywhere, got nan or inf in it")
    if not (math.isfinite(data_range) and data_range >= 0):
        raise ValueError(f"data_range must be a finite number >= 0, got {data_range}")
    return images

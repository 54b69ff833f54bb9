"""Where there is a head in a scan: what patches are drawn from where no labels exist."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes

MASKED_SHARE = 0.1  # of exact zeros, which no scanner gives: a mask was laid over the image


def is_masked(image: np.ndarray) -> bool:
    """Whether a mask was laid over an image, as by skull-stripping: what is outside is exactly 0.

    Example:
        >>> is_masked(np.array([0, 0, 0, 5, 7])), is_masked(np.arange(1, 20))
        (True, False)
    """
    return float(np.mean(image == 0)) >= MASKED_SHARE


def foreground(channels: np.ndarray) -> np.ndarray:
    """The head in the channels of a case: inside the masks if there are any, else what Otsu's threshold finds bright.

    Args:
        channels: (C, D, H, W).

    Returns:
        (D, H, W) bool, never all false: a case in which nothing stands out is foreground everywhere.
    """
    inside = np.ones(channels.shape[1:], dtype=bool)
    masked = [channel for channel in channels if is_masked(channel)]
    for channel in masked:
        inside &= binary_fill_holes(channel != 0)
    if not masked:
        inside = _bright(channels)
    return inside if inside.any() else np.ones_like(inside)


def _bright(channels: np.ndarray) -> np.ndarray:
    """Otsu's threshold on the mean of the channels, each in units of its robust range."""
    low, high = np.percentile(channels, (0.5, 99.5), axis=(1, 2, 3), keepdims=True)
    width = np.where(high > low, high - low, 1)
    mean = np.clip((channels - low) / width, 0, 1).mean(axis=0, dtype=np.float32)
    return sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(mean), 0, 1)).astype(bool)

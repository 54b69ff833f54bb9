"""Where there is a head in a scan: what patches are drawn from where no labels exist."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes

FOREGROUND = "foreground"  # name of the label that a dataset of pairs has where people gave none
MASKED_SHARE = 0.1  # of exact zeros, which no scanner gives: a mask was laid over the image
AIR = 0.25  # of the bright voxels' mean: dark voxels that are brighter than that are no air


def is_masked(image: np.ndarray) -> bool:
    """Whether a mask was laid over an image, as by skull-stripping: what is outside is exactly 0.

    Example:
        >>> is_masked(np.array([0, 0, 0, 5, 7])), is_masked(np.arange(1, 20))
        (True, False)
    """
    return float(np.mean(image == 0)) >= MASKED_SHARE


def inside_masks(channels: np.ndarray) -> np.ndarray:
    """Where no channel was masked out; everywhere if no channel was masked, or nothing is left.

    Args:
        channels: (C, D, H, W).

    Returns:
        (D, H, W) bool.
    """
    inside = np.ones(channels.shape[1:], dtype=bool)
    for channel in channels:
        if is_masked(channel):
            inside &= binary_fill_holes(channel != 0)
    return inside if inside.any() else np.ones_like(inside)


def foreground(channels: np.ndarray) -> np.ndarray:
    """The head in the channels of a case: inside the masks if there are any, else what is no air.

    Air is below Otsu's threshold, unless that parts bright from dark tissue, as in a crop without air.

    Args:
        channels: (C, D, H, W).

    Returns:
        (D, H, W) bool, never all false.
    """
    if any(is_masked(channel) for channel in channels):
        return inside_masks(channels)
    low = np.minimum(np.percentile(channels, 0.5, axis=(1, 2, 3), keepdims=True), 0)  # MRI begins at 0, CT at -1000
    high = np.percentile(channels, 99.5, axis=(1, 2, 3), keepdims=True)
    shares = np.clip((channels - low) / np.where(high > low, high - low, 1), 0, 1)
    mean = shares.mean(axis=0, dtype=np.float32)
    bright = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(mean), 0, 1)).astype(bool)
    if bright.all() or not bright.any() or mean[~bright].mean() > AIR * mean[bright].mean():
        return np.ones_like(bright)
    return bright

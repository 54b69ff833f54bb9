"""Shape-based interpolation of label maps between thick slices, by signed distances.

Convention:
    Grids as in `rehrseg_nnunet.slices.geometry`: D slices become r*D over the same field of view. Signed distances are
    positive inside, in mm, from voxel centre to the label's boundary half way to the nearest voxel of the other side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt

from rehrseg_nnunet.slices.slice_profile import interpolate


def signed_distance(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Signed Euclidean distance of a 3D mask, mm, positive inside, float32.

    Args:
        mask: (D, H, W) boolean.
        spacing_mm: voxel size, mm, in array order.

    Returns:
        (D, H, W); a mask that is empty or full gives minus or plus the volume's diagonal everywhere.

    Example:
        >>> signed_distance(np.array([[[False, True, True, False]]]), (4.0, 1.0, 1.0))
        array([[[-1.,  1.,  1., -1.]]], dtype=float32)
    """
    far = float(np.linalg.norm(np.array(mask.shape) * np.array(spacing_mm)))
    if not mask.any():
        return np.full(mask.shape, -far, dtype=np.float32)
    if mask.all():
        return np.full(mask.shape, far, dtype=np.float32)
    inside = np.asarray(distance_transform_edt(mask, sampling=spacing_mm))
    outside = np.asarray(distance_transform_edt(~mask, sampling=spacing_mm))
    return (inside - outside).astype(np.float32)


def interpolated_distance(mask: np.ndarray, factor: int, axis: int, *, spacing_mm: Sequence[float]) -> torch.Tensor:
    """Cubic B-spline of a thick-slice mask's signed distance at r times as many slices, mm, float32.

    Args:
        mask: (D, H, W) boolean.
        factor: r.
        axis: slice axis.
        spacing_mm: voxel size of the thick-slice grid, mm, in array order.
    """
    return interpolate(torch.from_numpy(signed_distance(mask, spacing_mm)), factor, axis, order=3)


def interpolate_labels(labels: np.ndarray, factor: int, axis: int, *, spacing_mm: Sequence[float]) -> np.ndarray:
    """Interpolate a label map to r times as many slices: cubic B-spline of each value's signed distance, then argmax.

    Every value that occurs takes part alike (background, ignore label, nnU-Net's -1), so nothing is lost between them.

    Args:
        labels: (D, H, W) integer label map.
        factor: r.
        axis: slice axis.
        spacing_mm: voxel size of the thick-slice grid, mm, in array order.

    Returns:
        Label map with r times as many slices, same dtype. Ties go to the smaller value.

    Example:
        The edge of a structure moves from slice to slice, where repeated slices would make one step:

        >>> thick = np.array([[[1, 0, 0, 0, 0, 0]], [[1, 1, 1, 1, 1, 0]]])  # 1 and 5 pixels wide
        >>> interpolate_labels(thick, 4, axis=0, spacing_mm=(4.0, 1.0, 1.0)).sum(axis=(1, 2))
        array([0, 1, 1, 2, 4, 5, 5, 6])
    """
    smallest, *others = np.unique(labels)
    best = interpolated_distance(labels == smallest, factor, axis, spacing_mm=spacing_mm).numpy()
    result = np.full(best.shape, smallest, dtype=labels.dtype)
    for value in others:
        score = interpolated_distance(labels == value, factor, axis, spacing_mm=spacing_mm).numpy()
        result[score > best] = value
        np.maximum(best, score, out=best)
    return result

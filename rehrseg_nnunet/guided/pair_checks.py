"""Do the two scans of a pair show the same head at the same place? Doubts are warnings, never refusals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_gradient_magnitude

from rehrseg_nnunet.guided.foreground import is_masked

SMOOTHING_VOXELS = 1.5
FAR_UNDER = 0.7  # of the median of the other pairs
FEWEST_PAIRS = 4  # fewer have no median to speak of
# Of the voxels of both masks. Where a head's mean is 4 times its spread, z-scores from -2 to 2 move by up to 0.2 for
# 1 %, by 0.8 for 7 %. A tenth of a voxel, by which grids may differ, makes 0.2 % of a head of 140 mm.
OTHER_MASK = 0.01


def edge_correlation(source: np.ndarray, privileged: np.ndarray, inside: np.ndarray) -> float:
    """How well the edges of two images agree, whatever their contrasts.

    Args:
        source: (S, D, H, W).
        privileged: (P, D, H, W).
        inside: (D, H, W), true where voxels count.

    Returns:
        Pearson's correlation of the smoothed gradients' magnitudes, nan where either has none.
    """
    first, second = (_edges(channels)[inside] for channels in (source, privileged))
    first, second = first - first.mean(), second - second.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm else float("nan")


def _edges(channels: np.ndarray) -> np.ndarray:
    """(D, H, W) mean over the channels, each in units of its spread."""
    edges = np.zeros(channels.shape[1:])
    for channel in channels.astype(np.float64):
        spread = channel.std()
        if spread:
            edges += gaussian_gradient_magnitude(channel / spread, SMOOTHING_VOXELS)
    return edges


def mask_difference(source: np.ndarray, privileged: np.ndarray) -> float:
    """How much of two scans is masked out in one of them alone.

    nnU-Net crops and normalises within the masks of all channels together: of both scans in the training of teacher and
    keeper, of the usual scan alone in `rehrseg synthesize` and GuidedTrainer, so that masks must be the same.

    Args:
        source: (S, D, H, W).
        privileged: (P, D, H, W).

    Returns:
        The share of the voxels that either mask has; 0 if no channel is masked, or a scan is empty.

    Example:
        >>> scan = np.ones((1, 4, 4, 4))
        >>> cut = scan * (np.arange(4) < 3)
        >>> mask_difference(scan, cut)
        0.25
    """
    if not any(is_masked(channel) for channel in (*source, *privileged)):
        return 0.0
    ours, theirs = (np.asarray(binary_fill_holes((scan != 0).any(axis=0))) for scan in (source, privileged))
    if not (ours.any() and theirs.any()):
        return 0.0
    return float((ours ^ theirs).sum() / (ours | theirs).sum())


def doubtful_pairs(correlations: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Pairs whose edges agree far less than those of the others.

    Args:
        correlations: by case, from `edge_correlation`.

    Returns:
        For each such case its correlation and the median of the others.

    Example:
        >>> doubtful_pairs({"a": 0.8, "b": 0.7, "c": 0.2, "d": 0.9})
        {'c': (0.2, 0.8)}
    """
    known = {case: value for case, value in correlations.items() if not np.isnan(value)}
    if len(known) < FEWEST_PAIRS:
        return {}
    doubtful = {}
    for case, value in known.items():
        median = float(np.median([other for name, other in known.items() if name != case]))
        if value < FAR_UNDER * median:
            doubtful[case] = (value, median)
    return doubtful


def registration_doubts(correlations: Mapping[str, float]) -> list[str]:
    """A sentence on each of the `doubtful_pairs`."""
    return [
        f"{case}: the edges of its two scans agree by {value:.2f}, those of the other pairs by {median:.2f} (median); "
        "look at both in a viewer, and register them again if they do not lie on each other"
        for case, (value, median) in doubtful_pairs(correlations).items()
    ]

"""Do the two scans of a pair show the same head at the same place? Doubts are warnings, never refusals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import gaussian_gradient_magnitude

SMOOTHING_VOXELS = 1.5
FAR_UNDER = 0.7  # of the median of the other pairs
FEWEST_PAIRS = 4  # fewer have no median to speak of


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

"""Do the two scans of a pair show the same head at the same place? Doubts are warnings, never refusals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.ndimage import find_objects, gaussian_gradient_magnitude, label

from rehrseg_nnunet.guided.foreground import is_masked

SMOOTHING_VOXELS = 1.5
FAR_UNDER = 0.7  # of the median of the other pairs
FEWEST_PAIRS = 4  # fewer have no median to speak of
# Of the usual scan's voxels. Where a head's mean is 4 times its spread, z-scores from -2 to 2 move by up to 0.2 for
# 1 %, by 0.7 for 7 %. A tenth of a voxel, by which grids may differ, makes 0.2 % of a head of 140 mm.
TOO_MUCH_ADDED = 0.01
LARGE_BOX = 3 / 4  # of an image: nnU-Net normalises within boxes that are as large, or else within masks


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


def added_share(source: np.ndarray, privileged: np.ndarray) -> float:
    """How much the better scan adds to the voxels within which nnU-Net normalises the usual one.

    nnU-Net normalises within the voxels where any channel of a case is not 0, holes filled, or within their box, if
    that has three quarters of an image: of both scans in the training of teacher and keeper, of the usual scan alone in
    `rehrseg synthesize` and GuidedTrainer. Where only the better scan is 0, nothing changes for the usual one. (Its
    choice is by the median box of a dataset, here by the case's.)

    Args:
        source: (S, D, H, W).
        privileged: (P, D, H, W).

    Returns:
        Voxels that the better scan adds, as a share of the usual scan's; 0 if the usual scan is not masked, or empty.

    Example:
        >>> scan = np.ones((1, 4, 4, 4))
        >>> cut = scan * (np.arange(4) < 2)
        >>> added_share(cut, scan), added_share(scan, cut)
        (1.0, 0.0)
    """
    ours = (source != 0).any(axis=0)
    both = ours | (privileged != 0).any(axis=0)
    if not is_masked(ours) or not ours.any() or np.array_equal(ours, both):
        return 0.0
    (box,) = find_objects(both.view(np.uint8))
    if both[box].size >= LARGE_BOX * both.size:
        return both[box].size / ours[find_objects(ours.view(np.uint8))[0]].size - 1
    filled = _without_holes(ours[box])  # outside the box are no holes
    return float((_without_holes(both[box]) & ~filled).sum() / filled.sum())


def _without_holes(mask: np.ndarray) -> np.ndarray:
    """As scipy's `binary_fill_holes`, in a sixth of its time."""
    holes = np.empty(mask.shape, dtype=np.int32)
    label(~mask, output=holes)
    is_hole = np.ones(int(holes.max()) + 1, dtype=bool)
    for axis in range(mask.ndim):
        for end in (0, -1):
            is_hole[holes.take(end, axis)] = False
    is_hole[0] = False  # the mask itself
    return mask | is_hole[holes]


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

"""What the preprocessed pairs themselves say before a training: see `measure_pairs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.guided.pair_checks import edge_correlation
from rehrseg_nnunet.guided.paired_channels import PairedChannels

PERCENTILES = (0.5, 99.5)
VOXELS_PER_CASE = 50_000
COMPARED_EDGE = 96  # voxels of a case's middle: edges of a whole head take seconds


@dataclass(frozen=True)
class MeasuredPairs:
    """What the cases of a training are like.

    Attributes:
        widths: the robust intensity range of each privileged channel, the unit of image losses and scores; 1 where all
            cases are constant.
        constant: cases with a constant channel on either side.
        correlations: how well the edges of the two scans agree, by case, see `edge_correlation`.
    """

    widths: list[float]
    constant: list[str]
    correlations: dict[str, float]


def measure_pairs(dataset: Cases, identifiers: Sequence[str], channels: PairedChannels) -> MeasuredPairs:
    """Measure pairs of which each is loaded once.

    The range is from the 0.5th to the 99.5th percentile over all cases, of the voxels that have data.

    Args:
        dataset: preprocessed pairs.
        identifiers: cases that count.
        channels: which of their channels are which.
    """
    voxels: list[np.ndarray] = []
    constant: list[str] = []
    correlations: dict[str, float] = {}
    for identifier in identifiers:
        image, labels, _, _ = dataset.load_case(identifier)
        values, known = np.asarray(image[:], dtype=np.float32), np.asarray(labels[:])[0] >= 0
        inside = values[:, known]
        if inside.shape[1] == 0 or (np.ptp(inside, axis=1) == 0).any():
            constant.append(identifier)
        step = max(1, inside.shape[1] // VOXELS_PER_CASE)
        voxels.append(inside[list(channels.privileged), ::step])
        correlations[identifier] = _edges_agree(values, known, channels)
    low, high = np.percentile(np.concatenate(voxels, axis=1), PERCENTILES, axis=1)
    widths = [float(width) if width > 0 else 1.0 for width in high - low]
    return MeasuredPairs(widths, constant, correlations)


def _edges_agree(values: np.ndarray, known: np.ndarray, channels: PairedChannels) -> float:
    """`edge_correlation` in the middle of a case (C, D, H, W), where it has data (D, H, W) and is not masked out."""
    starts = [max(0, size - COMPARED_EDGE) // 2 for size in known.shape]
    middle = tuple(slice(start, start + COMPARED_EDGE) for start in starts)
    seen = values[(slice(None), *middle)]
    inside = (seen != 0).any(axis=0) & known[middle]
    if not inside.any():
        return float("nan")
    return edge_correlation(seen[list(channels.source)], seen[list(channels.privileged)], inside)

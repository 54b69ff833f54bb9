"""The robust intensity range of the privileged images: the unit of image losses and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.guided.paired_channels import PairedChannels

PERCENTILES = (0.5, 99.5)
VOXELS_PER_CASE = 50_000


def robust_range(dataset: Cases, identifiers: Sequence[str], channels: PairedChannels) -> tuple[list[float], list[str]]:
    """From the 0.5th to the 99.5th percentile over all cases, of the voxels that have data.

    Args:
        dataset: preprocessed pairs.
        identifiers: cases that count.
        channels: which of their channels are which.

    Returns:
        The width of each privileged channel's range, 1 where all cases are constant, and the cases with a constant
        channel on either side.
    """
    voxels: list[np.ndarray] = []
    constant: list[str] = []
    for identifier in identifiers:
        image, labels, _, _ = dataset.load_case(identifier)
        values = np.asarray(image[:], dtype=np.float32)
        inside = values[:, np.asarray(labels[:])[0] >= 0]
        if inside.shape[1] == 0 or (np.ptp(inside, axis=1) == 0).any():
            constant.append(identifier)
        step = max(1, inside.shape[1] // VOXELS_PER_CASE)
        voxels.append(inside[list(channels.privileged), ::step])
    low, high = np.percentile(np.concatenate(voxels, axis=1), PERCENTILES, axis=1)
    return [float(width) if width > 0 else 1.0 for width in high - low], constant

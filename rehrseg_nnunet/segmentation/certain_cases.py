"""Interpolated cases in place of pseudo-HR ones: the same cases with U = 0 everywhere (paper section 4.5.2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from rehrseg_nnunet.cases.case_dataset import Cases


class CertainImage:
    """A lazy (C + 1, z, y, x) view of a (C, z, y, x) array, its last channel 0.

    Args:
        array: numpy or blosc2 array, read when it is indexed.
    """

    def __init__(self, array: Any):
        self.array = array
        self.shape = (array.shape[0] + 1, *array.shape[1:])
        self.dtype = array.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        channels, *box = index
        image = np.asarray(self.array[(slice(None), *box)])
        return np.concatenate([image, np.zeros_like(image[:1])])[channels]


class CertainCases:
    """A dataset of cases without U as one of pseudo-HR cases, which have it.

    Args:
        dataset: cases with data (C, r*D, H, W) and labels (1, r*D, H, W).
    """

    def __init__(self, dataset: Cases):
        self.dataset = dataset
        self.identifiers = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[CertainImage, Any, Any, dict[str, Any]]:
        """Data (C + 1, r*D, H, W) with U = 0 last, and the rest as it is, in the order of nnU-Net's `load_case`."""
        data, labels, second_labels, properties = self.dataset.load_case(identifier)
        return CertainImage(data), labels, second_labels, properties

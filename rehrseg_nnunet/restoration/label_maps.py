"""From restored label logits to nnU-Net's label maps."""

from __future__ import annotations

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager


def to_label_map(logits: torch.Tensor, lr_labels: np.ndarray, factor: int, label_manager: LabelManager) -> np.ndarray:
    """HR label map from HR logits; where the nearest LR slice is -1 or ignored, so is the result.

    Args:
        logits: (K, r*D, H, W).
        lr_labels: (1, D, H, W).
        factor: r.
        label_manager: nnU-Net's.

    Returns:
        (1, r*D, H, W) int16.
    """
    nearest = np.repeat(lr_labels, factor, axis=1)
    unknown = nearest == -1
    if label_manager.has_ignore_label:
        unknown |= nearest == label_manager.ignore_label
    predicted = np.asarray(label_manager.convert_logits_to_segmentation(logits))
    return np.where(unknown, nearest, predicted[None]).astype(np.int16)

"""Label maps as channels: the one-hot (or region) form in which the self-SR network reads and predicts labels.

Convention:
    Channel i belongs to segmentation head i of nnU-Net's label manager: label i without regions, else region i.
    Voxels of the ignore label are zero in every channel; nnU-Net's -1 (outside the nonzero mask) counts as background.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

LabelGroup = tuple[int, ...]


def head_labels(label_manager: LabelManager) -> list[LabelGroup]:
    """Label values that belong to each segmentation head, background first where it has a head."""
    groups = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
    return [tuple(int(v) for v in group) if isinstance(group, Sequence) else (int(group),) for group in groups]


def to_channels(labels: torch.Tensor, groups: Sequence[LabelGroup]) -> torch.Tensor:
    """One channel per head.

    Args:
        labels: (...) integer label map.
        groups: see `head_labels`.

    Returns:
        (heads, ...) float32 of zeros and ones.
    """
    known = torch.where(labels == -1, torch.zeros_like(labels), labels)
    # compared with Python numbers: a tensor of the group would have to be copied to a GPU, which waits for it
    return torch.stack([reduce(or_, (known == label for label in group)) for group in groups]).float()


def masked_value(label_manager: LabelManager) -> int:
    """Label value that stands for "no label here": the dataset's ignore label, else one above all labels."""
    if label_manager.ignore_label is not None:
        return int(label_manager.ignore_label)
    return max(int(v) for v in label_manager.all_labels) + 1


def to_targets(labels: torch.Tensor, groups: Sequence[LabelGroup], masked: int, *, regions: bool) -> torch.Tensor:
    """Target in the layout of nnU-Net's losses.

    Args:
        labels: (...) integer label map.
        groups: see `head_labels`.
        masked: value that is left out of the loss, see `masked_value`.
        regions: whether heads are regions.

    Returns:
        (1, ...) int16 label map, or (regions + 1, ...) bool with the mask (true: left out) as last channel.
    """
    known = torch.where(labels == -1, torch.zeros_like(labels), labels)
    if not regions:
        return known[None].to(torch.int16)
    return torch.cat([to_channels(known, groups).bool(), (known == masked)[None]])


class ManyHeads:
    """A label manager with another number of heads: nnU-Net's sliding window asks it for the output channels."""

    def __init__(self, label_manager: Any, heads: int) -> None:
        self._label_manager = label_manager
        self.num_segmentation_heads = heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._label_manager, name)

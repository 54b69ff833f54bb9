"""The frozen self-SR encoder as the teacher of stage 2 (paper section 3.5)."""

from __future__ import annotations

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch.nn import functional

from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.nnunet.precision import at_least_float32
from rehrseg_nnunet.self_sr.flavr import SLICES
from rehrseg_nnunet.self_sr.network import SelfSRNetwork

MIDDLE = slice(1, 3)  # places of a window whose slices have both neighbours in it


class SelfSRTeacher:
    """Layer-1 features of LR patches and their labels.

    Args:
        network: trained stage-1 network on the training device; it is not part of what is trained.
        label_manager: nnU-Net's.
    """

    def __init__(self, network: SelfSRNetwork, label_manager: LabelManager):
        self.network = network
        self.groups = head_labels(label_manager)
        self.has_regions = label_manager.has_regions
        self.heads = label_manager.num_segmentation_heads

    def __call__(self, image: torch.Tensor, target: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Features (B, base_features, D, ceil(H/2), ceil(W/2)) of a patch, see `teacher_features`.

        Args:
            image: (B, C, D, H, W), in the cases' units.
            target: nnU-Net's LR target, a label map (B, 1, D, H, W), or region channels with the ignore channel last if
                there is one.
            inside: (B, 1, D, 1, 1) bool, False for slices that are padding alone.
        """
        return teacher_features(self.network, image, self._label_channels(target), inside)

    def _label_channels(self, target: torch.Tensor) -> torch.Tensor:
        if not self.has_regions:
            return to_channels(target[:, 0], self.groups).transpose(0, 1)
        if target.shape[1] == self.heads:  # no ignore channel
            return target.float()
        return (target[:, :-1].bool() & ~target[:, -1:].bool()).float()


def teacher_features(
    network: SelfSRNetwork, image: torch.Tensor, labels: torch.Tensor, inside: torch.Tensor
) -> torch.Tensor:
    """Layer-1 features of LR patches for the structural distillation (paper section 3.5).

    The encoder sees 4-slice windows as in training (its gates are means over a window, so one pass over all slices
    would be another function). Windows lie two slices apart and give their two middle slices, which have a neighbour on
    either side as in stage 1; beyond the volume the edge slice is repeated, as there too. What is left of a slice's
    place in its window is mostly a constant of each channel: the places' means are made equal.

    Those means are the batch's own. So nothing is carried from step to step, and a training that is resumed goes on
    exactly; over the many voxels of a batch the tissue at both places is the same but for a slice at either end.

    Args:
        network: trained stage-1 network, on the patches' device.
        image: (B, C, D, H, W), in the cases' units.
        labels: (B, K, D, H, W) label channels.
        inside: (B, 1, D, 1, 1) bool, False for slices that are padding alone; their features mean nothing.

    Returns:
        (B, base_features, D, ceil(H/2), ceil(W/2)), without gradient.
    """
    slices = image.shape[2]
    with torch.no_grad():
        volumes = torch.cat([image, labels], dim=1).movedim(2, 1)
        index = _windows(inside[:, 0, :, 0, 0])
        sample = torch.arange(len(index), device=index.device)[:, None, None]
        windows = volumes[sample, index].flatten(0, 1).movedim(1, 2)
        features = at_least_float32(network.layer1_features(windows)[:, :, MIDDLE])
        places = features.unflatten(0, index.shape[:2]).movedim(1, 2)  # (B, F, windows, 2, h, w)
        counts = functional.pad(inside, (0, 0, 0, 0, 0, slices % 2)).unflatten(2, (-1, 2))
        return _level_places(places, counts.to(places.dtype)).flatten(2, 3)[:, :, :slices]


def _windows(inside: torch.Tensor) -> torch.Tensor:
    """The slice at each place of the windows, (B, windows, 4), for the slices (B, D) that are no padding."""
    slices = inside.shape[1]
    first = inside.int().argmax(1)
    last = slices - 1 - inside.flip(1).int().argmax(1)
    starts = torch.arange(-1, slices - 1, 2, device=inside.device)
    index = starts[:, None] + torch.arange(SLICES, device=inside.device)
    return index.clamp(first[:, None, None], last[:, None, None])


def _level_places(features: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Give both places of (B, F, windows, 2, h, w) the mean of all, by channel; (B, 1, windows, 2, 1, 1) counts or not.

    The common mean stays: Eq. 8 compares features, not their deviations.
    """
    over = (0, 2, 4, 5)
    total = (features.mean((4, 5), keepdim=True) * counts).sum(over, keepdim=True)
    number = counts.sum(over, keepdim=True)
    common = total.sum(3, keepdim=True) / number.sum(3, keepdim=True).clamp_min(1)
    return features - total / number.clamp_min(1) + common

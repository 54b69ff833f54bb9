"""The frozen self-SR encoder as the teacher of stage 2 (paper section 3.5)."""

from __future__ import annotations

from functools import lru_cache

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.self_sr.flavr import SLICES
from rehrseg_nnunet.self_sr.network import SelfSRNetwork


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
        self.has_ignore_label = label_manager.has_ignore_label

    def __call__(self, image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Features (B, base_features, D, ceil(H/2), ceil(W/2)) of image (B, C, D, H, W) and nnU-Net's LR target.

        The target is a label map (B, 1, D, H, W), or region channels with the ignore channel last if there is one.
        """
        return teacher_features(self.network, image, self._label_channels(target))

    def _label_channels(self, target: torch.Tensor) -> torch.Tensor:
        if not self.has_regions:
            return to_channels(target[:, 0], self.groups).transpose(0, 1)
        if not self.has_ignore_label:
            return target.float()
        return (target[:, :-1].bool() & ~target[:, -1:].bool()).float()


def teacher_features(network: SelfSRNetwork, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Layer-1 features of LR patches for the structural distillation (paper section 3.5).

    The encoder sees 4-slice windows as in training (its gates are means over a window, so one pass over all slices
    would be another function). Windows lie side by side, so that each slice is computed once; where the number of
    slices is no multiple of 4 the last window is moved back, and below 4 slices the last slice is repeated.

    Args:
        network: trained stage-1 network, on the patches' device.
        image: (B, C, D, H, W).
        labels: (B, K, D, H, W) label channels.

    Returns:
        (B, base_features, D, ceil(H/2), ceil(W/2)), without gradient.
    """
    volumes = torch.cat([image, labels], dim=1)
    index, first_place = _windows_side_by_side(volumes.shape[2], volumes.device)
    with torch.no_grad():
        windows = volumes[:, :, index].movedim(2, 1).flatten(0, 1)
        features = network.layer1_features(windows).unflatten(0, (image.shape[0], -1)).movedim(1, 2)
    return features.flatten(2, 3)[:, :, first_place]


@lru_cache(maxsize=16)  # a training has one patch size; a copy to a GPU in every step would wait for it
def _windows_side_by_side(slices: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The slice at each place of the windows, (windows, 4), and the first place of each slice, (slices,)."""
    starts = torch.tensor([max(0, min(start, slices - SLICES)) for start in range(0, slices, SLICES)])
    index = (starts[:, None] + torch.arange(SLICES)).clamp(max=slices - 1)
    flat = index.flatten().tolist()
    first_place = torch.tensor([flat.index(k) for k in range(slices)])
    return index.to(device), first_place.to(device)

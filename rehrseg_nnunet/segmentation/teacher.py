"""The frozen self-SR encoder as the teacher of stage 2 (paper section 3.5)."""

from __future__ import annotations

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.super_resolve import teacher_features


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

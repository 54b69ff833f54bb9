"""Training transforms of pairs: source and privileged image move together, only the source's intensities change.

Convention:
    Tensors are (C, *size). Of the loader's image channels some are the source's and some privileged; its labels are -1
    where there is no data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform

from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.nnunet.augmentation import StockTransforms, TakeChannelsOut


class PackPair(BasicTransform):
    """Put the privileged image and the mask of what has data where nnU-Net's loader batches its targets.

    Args:
        masked: privileged channels, counted among these, that are 0 outside the mask.
    """

    def __init__(self, masked: Sequence[int]):
        super().__init__()
        self.masked = tuple(masked)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return `image`, the source, and `segmentation` = [privileged float32, inside (1, *size) bool]."""
        inside = data_dict["segmentation"][:1] >= 0
        privileged = data_dict["regression_target"].clone()
        for channel in self.masked:
            privileged[channel].masked_fill_(~inside[0], 0)
        return {"image": data_dict["image"].contiguous(), "segmentation": [privileged, inside]}


def training_transforms(
    stock: ComposeTransforms, channels: PairedChannels, *, masked: Sequence[bool], intensities: bool
) -> ComposeTransforms:
    """nnU-Net's training transforms for pairs.

    Args:
        stock: `nnUNetTrainer.get_training_transforms(...)` with `use_mask_for_norm` of the source channels, without
            regions and deep supervision; it is not changed.
        channels: which of the loader's channels are which.
        masked: nnU-Net's `use_mask_for_norm` of all channels.
        intensities: augment the source's intensities.

    Raises:
        NotImplementedError: a transform in the list that would not keep the pair together.
    """
    parts = StockTransforms.of(stock)
    return ComposeTransforms(
        [
            TakeChannelsOut(channels.privileged),
            *parts.spatial,
            *parts.mirrors,
            *(parts.intensity if intensities else []),
            *(t for t in parts.labels if isinstance(t, MaskImageTransform)),
            _pack(channels, masked),
        ]
    )


def validation_transforms(channels: PairedChannels, *, masked: Sequence[bool]) -> ComposeTransforms:
    """The same without augmentation."""
    return ComposeTransforms([TakeChannelsOut(channels.privileged), _pack(channels, masked)])


def _pack(channels: PairedChannels, masked: Sequence[bool]) -> PackPair:
    return PackPair([number for number, channel in enumerate(channels.privileged) if masked[channel]])


def split_channels(image: Any, channels: PairedChannels) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and privileged channels of a preprocessed case (C, D, H, W), as float32 tensors of their own."""
    source, privileged = (torch.as_tensor(image[list(part)]).float() for part in (channels.source, channels.privileged))
    return source, privileged

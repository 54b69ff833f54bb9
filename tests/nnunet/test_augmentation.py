"""nnU-Net's transforms taken apart."""

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.augmentation import StockTransforms, TakeChannelsOut


def stock(*, dummy_2d=False, masked=(False,)):
    return nnUNetTrainer.get_training_transforms(
        (4, 8, 8), (-0.5, 0.5), None, (0, 1, 2), dummy_2d, use_mask_for_norm=list(masked)
    )


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_every_transform_is_in_one_part(dummy_2d):
    whole = stock(dummy_2d=dummy_2d, masked=(True,))
    parts = StockTransforms.of(whole)
    names = [type(t).__name__ for t in (*parts.spatial, *parts.intensity, *parts.mirrors, *parts.labels)]
    assert names == [type(t).__name__ for t in whole.transforms]
    assert [type(t).__name__ for t in parts.labels] == ["MaskImageTransform", "RemoveLabelTransform"]
    assert [type(t) for t in parts.mirrors] == [MirrorTransform]
    assert len(parts.spatial) == (3 if dummy_2d else 1)
    assert parts.in_plane == dummy_2d


def test_a_transform_that_would_drop_targets_is_refused():
    unknown = ComposeTransforms([*stock().transforms, DownsampleSegForDSTransform([[1, 1, 1]])])
    with pytest.raises(NotImplementedError, match=r"nnUNetTrainer, got DownsampleSegForDSTransform, which"):
        StockTransforms.of(unknown)


@pytest.mark.parametrize(("channels", "kept"), [([2], [0, 1]), ([-1], [0, 1]), ([0, 2], [1]), ([2, 0], [1])])
def test_channels_are_taken_out(channels, kept):
    image = torch.arange(3.0)[:, None, None].expand(3, 2, 2)
    out = TakeChannelsOut(channels)(image=image, segmentation=image)
    assert out["image"][:, 0, 0].tolist() == kept
    assert out["regression_target"][:, 0, 0].tolist() == [channel % 3 for channel in channels]
    assert out["segmentation"] is image

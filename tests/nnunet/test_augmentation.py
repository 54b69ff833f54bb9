"""nnU-Net's transforms taken apart."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.augmentation import StockTransforms, TakeChannelsOut, as_on_thin_slices


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


REACHING = ["GaussianBlurTransform", "SimulateLowResolutionTransform"]


def always(name):
    """One of nnU-Net's intensity transforms, applied to every patch and channel."""
    (random,) = [t for t in StockTransforms.of(stock()).intensity if type(t.transform).__name__ == name]
    random.apply_probability = random.transform.p_per_channel = 1
    return random


def change(transform, axis):
    """Mean change of an image that varies along one axis alone, from voxel to voxel."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (what nnU-Net draws from)
    shape = [1, 1, 1, 1]
    shape[axis] = 12
    image = torch.randn(shape).expand(1, 12, 12, 12).contiguous()
    return float((transform(image=image.clone())["image"] - image).abs().mean())


@pytest.mark.parametrize("name", REACHING)
def test_on_thin_slices_thick_ones_hardly_change_along_z(name):
    before, thin = always(name), as_on_thin_slices(always(name), 4)
    assert change(before, 1) > 0.1
    assert change(thin, 1) < 0.02
    for axis in (2, 3):
        assert change(thin, axis) > 0.1
    assert thin.apply_probability == before.apply_probability


def test_blur_of_thin_slices_is_as_wide_in_millimetres():
    blur = as_on_thin_slices(always("GaussianBlurTransform"), 4).transform
    sigmas = np.array([blur.get_parameters(image=torch.zeros(1, 6, 8, 8))["sigmas"][0] for _ in range(200)])
    for axis, unit in enumerate((4, 1, 1)):
        assert 0.5 <= sigmas[:, axis].min() * unit < 0.55
        assert 0.95 < sigmas[:, axis].max() * unit <= 1


def test_what_does_not_reach_over_voxels_stays_and_nothing_is_changed_in_place():
    for transform in StockTransforms.of(stock()).intensity:
        before = dict(vars(transform.transform))
        thin = as_on_thin_slices(transform, 4)
        assert vars(transform.transform) == before
        assert (thin.transform is transform.transform) == (type(transform.transform).__name__ not in REACHING)

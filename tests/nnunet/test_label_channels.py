"""Label maps as channels and as loss targets, for plain labels, regions and the ignore label."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_channels import head_labels, masked_value, to_channels, to_targets

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2, 3), "core": (2, 3), "tip": 3, "ignore": 4}, [1, 2, 3])
MANAGERS = [PLAIN, IGNORE, REGIONS]


def label_map(highest, dtype=torch.int16):
    return torch.from_numpy(np.random.default_rng(0).integers(-1, highest + 1, size=(4, 5, 6))).to(dtype)


@pytest.mark.parametrize("manager", MANAGERS)
def test_one_channel_per_head(manager):
    assert len(head_labels(manager)) == manager.num_segmentation_heads
    assert all(isinstance(value, int) for group in head_labels(manager) for value in group)


def test_heads_of_labels_and_regions():
    assert head_labels(PLAIN) == head_labels(IGNORE) == [(0,), (1,), (2,)]
    assert head_labels(REGIONS) == [(1, 2, 3), (2, 3), (3,)]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int64])
@pytest.mark.parametrize("manager", MANAGERS)
def test_channels_by_a_loop_over_voxels(manager, dtype):
    labels = label_map(4, dtype)
    groups = head_labels(manager)
    channels = to_channels(labels, groups)
    assert channels.dtype == torch.float32
    for voxel in np.ndindex(*labels.shape):
        value = max(int(labels[voxel]), 0)  # -1 counts as background
        assert channels[(slice(None), *voxel)].tolist() == [float(value in group) for group in groups]


def test_plain_labels_are_one_hot_and_ignored_voxels_are_empty():
    labels = label_map(3)
    total = to_channels(labels, head_labels(IGNORE)).sum(0)
    assert torch.equal(total, (labels != 3).float())


@pytest.mark.parametrize("manager", MANAGERS)
def test_the_masked_value_is_no_label_and_has_no_channel(manager):
    value = masked_value(manager)
    assert value not in manager.all_labels
    assert to_channels(torch.tensor([value]), head_labels(manager)).sum() == 0


def test_the_masked_value_is_the_ignore_label_if_there_is_one():
    assert (masked_value(PLAIN), masked_value(IGNORE), masked_value(REGIONS)) == (3, 3, 4)


def test_targets_of_plain_labels():
    labels = label_map(3)
    before = labels.clone()
    target = to_targets(labels, head_labels(IGNORE), 3, regions=False)
    assert target.shape == (1, *labels.shape)
    assert target.dtype == torch.int16
    assert torch.equal(target[0], labels.clamp(min=0))
    assert torch.equal(labels, before)


def test_targets_of_regions_have_the_mask_last():
    labels = label_map(4)
    target = to_targets(labels, head_labels(REGIONS), 4, regions=True)
    assert target.shape == (4, *labels.shape)
    assert target.dtype == torch.bool
    assert torch.equal(target[3], labels == 4)
    assert torch.equal(target[:3], to_channels(labels, head_labels(REGIONS)).bool())
    assert not (target[:3] & target[3]).any()


def test_targets_of_regions_are_nnunets():
    from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

    labels = label_map(4).clamp(min=0)
    transform = ConvertSegmentationToRegionsTransform(regions=[*REGIONS.foreground_regions, 4], channel_in_seg=0)
    expected = transform(segmentation=labels[None])["segmentation"]
    assert torch.equal(to_targets(labels, head_labels(REGIONS), 4, regions=True), expected.bool())

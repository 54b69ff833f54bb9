"""The teacher sees the labels of nnU-Net's LR target in the form in which stage 1 was trained."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher, teacher_features
from rehrseg_nnunet.self_sr.network import SelfSRNetwork

MANAGERS = {
    "plain": LabelManager({"background": 0, "a": 1, "b": 2}, None),
    "ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
    "regions": LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2]),
    "regions and ignore": LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2]),
}


def lr_batch(manager):
    """Label maps, and the target that nnU-Net's transforms make of them."""
    rng = np.random.default_rng(0)
    highest = 3 if manager.has_ignore_label else 2
    labels = torch.from_numpy(rng.integers(0, highest + 1, size=(2, 3, 6, 7)).astype(np.int16))
    if not manager.has_regions:
        return labels, labels[:, None]
    regions = [*manager.foreground_regions, *([3] if manager.has_ignore_label else [])]
    transform = ConvertSegmentationToRegionsTransform(regions=regions, channel_in_seg=0)
    return labels, torch.stack([transform(segmentation=sample[None])["segmentation"] for sample in labels])


@pytest.mark.parametrize("kind", MANAGERS)
@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_features_are_those_of_the_label_channels(kind, dtype):
    manager = MANAGERS[kind]
    torch.manual_seed(0)
    network = SelfSRNetwork(1, manager.num_segmentation_heads, 2, base_features=4, candidates=2).eval()
    labels, target = lr_batch(manager)
    image = torch.randn(2, 1, 3, 6, 7)
    before = target.clone()
    features = SelfSRTeacher(network, manager)(image, target.to(dtype))
    channels = torch.stack([to_channels(sample, head_labels(manager)) for sample in labels])
    torch.testing.assert_close(features, teacher_features(network, image, channels), rtol=0, atol=1e-6)
    assert features.shape == (2, 4, 3, 3, 4)
    assert not features.requires_grad
    assert torch.equal(target, before)
    other = SelfSRTeacher(network, manager)(image, target.flip(0).to(dtype))
    assert not torch.allclose(features, other)


def case(slices, seed, plane=(7, 9), heads=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, heads, (slices, *plane), generator=generator)
    one_hot = torch.stack([labels == head for head in range(heads)]).float()
    return torch.randn(1, slices, *plane, generator=generator), one_hot


@pytest.mark.parametrize(
    ("slices", "windows"),
    [
        (1, [(0, 0, 0, 0)]),
        (2, [(0, 1, 1, 1)]),
        (4, [(0, 1, 2, 3)]),
        (6, [(0, 1, 2, 3), (2, 3, 4, 5)]),
        (8, [(0, 1, 2, 3), (4, 5, 6, 7)]),
    ],
)
def test_teacher_features_are_those_of_windows_side_by_side(slices, windows):
    torch.manual_seed(0)
    model = SelfSRNetwork(1, 2, 2, base_features=4, candidates=2).eval()
    image, labels = (torch.stack(p) for p in zip(*(case(slices, seed) for seed in (1, 2)), strict=True))
    features = teacher_features(model, image, labels)
    assert features.shape == (2, 4, slices, 4, 5)
    assert not features.requires_grad
    for b, volume in enumerate(torch.cat([image, labels], dim=1)):
        seen = set()
        for window in windows:
            with torch.no_grad():
                expected = model.layer1_features(volume[:, list(window)][None])[0]
            for place, k in enumerate(window):
                if k not in seen:  # a slice in two windows comes from the first
                    torch.testing.assert_close(features[b, :, k], expected[:, place], rtol=0, atol=1e-5)
                seen.add(k)
        assert seen == set(range(slices))

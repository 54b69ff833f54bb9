"""The teacher sees the labels of nnU-Net's LR target in the form in which stage 1 was trained."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch.nn import functional

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
    inside = torch.ones(2, 1, 3, 1, 1, dtype=torch.bool)
    features = SelfSRTeacher(network, manager)(image, target.to(dtype), inside)
    channels = torch.stack([to_channels(sample, head_labels(manager)) for sample in labels])
    torch.testing.assert_close(features, teacher_features(network, image, channels, inside), rtol=0, atol=1e-6)
    assert features.shape == (2, 4, 3, 3, 4)
    assert not features.requires_grad
    assert torch.equal(target, before)
    other = SelfSRTeacher(network, manager)(image, target.flip(0).to(dtype), inside)
    assert not torch.allclose(features, other)


def case(slices, seed, plane=(7, 9), heads=2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, heads, (slices, *plane), generator=generator)
    one_hot = torch.stack([labels == head for head in range(heads)]).float()
    return torch.randn(1, slices, *plane, generator=generator), one_hot


def naive_features(model, volume, first, last):
    """Each slice's features from the window that has it in the middle, and its place there (1 or 2)."""
    features, places = [], []
    for k in range(volume.shape[1]):
        place = 1 if k % 2 == 0 else 2
        window = [min(max(k - place + offset, first), last) for offset in range(4)]
        with torch.no_grad():
            features.append(model.layer1_features(volume[:, window][None])[0, :, place])
        places.append(place)
    return torch.stack(features, dim=1), places


@pytest.mark.parametrize(
    ("slices", "padding"), [(1, (0, 0)), (2, (0, 0)), (3, (0, 0)), (4, (0, 0)), (7, (0, 0)), (8, (2, 1)), (7, (1, 3))]
)
def test_features_are_those_of_the_middle_of_a_window_and_edge_slices_repeat(slices, padding):
    """Also where the volume ends inside the patch; the places' means are levelled over what is no padding."""
    torch.manual_seed(0)
    model = SelfSRNetwork(1, 2, 2, base_features=4, candidates=2).eval()
    image, labels = (torch.stack(p) for p in zip(*(case(slices, seed) for seed in (1, 2)), strict=True))
    real = [range(slices), range(padding[0], slices - padding[1])]  # of the two samples
    inside = torch.tensor([[k in r for k in range(slices)] for r in real])[:, None, :, None, None]
    found = teacher_features(model, image, labels, inside)
    assert found.shape == (2, 4, slices, 4, 5)
    assert not found.requires_grad
    volumes = torch.cat([image, labels], dim=1)
    naive = [naive_features(model, v, r[0], r[-1]) for v, r in zip(volumes, real, strict=True)]
    counted = [(p, f[:, k]) for (f, places), r in zip(naive, real, strict=True) for k, p in enumerate(places) if k in r]
    mean = {
        place: torch.stack([f.mean((1, 2)) for p, f in counted if place in (p, "all")]).mean(0)
        for place in {p for p, _ in counted} | {"all"}
    }
    for sample, ((features, places), r) in enumerate(zip(naive, real, strict=True)):
        for k in r:
            expected = features[:, k] - (mean[places[k]] - mean["all"])[:, None, None]
            torch.testing.assert_close(found[sample, :, k], expected, rtol=0, atol=1e-5)


def textured(samples, slices, plane, seed):
    """HR and LR volumes (r = 2) of smooth noise that is the same everywhere, and label channels of its bright parts."""
    hr = torch.randn(samples, 1, 2 * slices, plane, plane, generator=torch.Generator().manual_seed(seed))
    for _ in range(2):
        hr = functional.avg_pool3d(functional.pad(hr, (1,) * 6, mode="replicate"), 3, stride=1)
    hr = hr / hr.std() / 5
    lr = hr.unflatten(2, (-1, 2)).mean(3)
    return hr, lr, torch.cat([lr <= 0.1, lr > 0.1], dim=1).float()


def a_little_trained():
    """A network after some steps of super-resolution from four slices of an HR volume."""
    torch.manual_seed(0)
    network = SelfSRNetwork(1, 2, 2, base_features=8, candidates=2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(40):
        hr, lr, labels = textured(4, 4, 16, seed=step)
        output = network(torch.cat([lr, labels], dim=1))
        loss = functional.l1_loss(output.image, hr[:, :, 3:5])
        loss = loss + functional.cross_entropy(output.labels, (hr[:, 0, 3:5] > 0.1).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def explained(features, period):
    """Share of the features' variance that the slice index modulo a period explains."""
    over = (0, 2, 3, 4)
    mean = features.mean(over, keepdim=True)
    groups = [features[:, :, first::period] for first in range(period)]
    between = sum((group.mean(over, keepdim=True) - mean).square() * group[:, 0].numel() for group in groups)
    return (between.sum() / (features - mean).square().sum()).item()


def test_a_slice_does_not_show_its_place_in_a_window():
    network = a_little_trained()
    _, image, labels = textured(2, 32, 16, seed=99)
    features = teacher_features(network, image, labels, torch.ones(2, 1, 32, 1, 1, dtype=torch.bool))
    side_by_side = torch.cat([image, labels], dim=1).unflatten(2, (-1, 4)).movedim(2, 1).flatten(0, 1)
    with torch.no_grad():
        shown = network.layer1_features(side_by_side).unflatten(0, (2, -1)).movedim(1, 2).flatten(2, 3)
    assert explained(shown, 4) > 0.03  # what there is to be removed
    assert explained(features, 2) < 0.001
    assert explained(features, 4) < 0.01
    # tissue is still there, at the features' own level
    torch.testing.assert_close(features.mean(), shown[:, :, 1:3].mean(), rtol=0.3, atol=0)
    assert features.std() > 0.5 * shown.std()

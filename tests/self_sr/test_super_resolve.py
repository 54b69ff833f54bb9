"""Whole cases from windows: positions, ends, and independence of the batching."""

import numpy as np
import pytest
import torch
from torch import nn

from rehrseg_nnunet.self_sr.network import SelfSRNetwork, SelfSROutput
from rehrseg_nnunet.self_sr.pairs import WindowSpec, make_pair
from rehrseg_nnunet.self_sr.super_resolve import super_resolve, windows_of
from rehrseg_nnunet.slices.geometry import hr_slice_positions
from rehrseg_nnunet.slices.slice_profile import degrade, interpolate

FACTORS = (2, 3, 4, 5)


def network(factor=2, image_channels=1, label_channels=2, seed=0):
    torch.manual_seed(seed)
    return SelfSRNetwork(image_channels, label_channels, factor, base_features=4, candidates=2).eval()


def without_image_branch(factor, **options):
    """The image is then the linear interpolation of the two middle slices."""
    result = network(factor, **options)
    nn.init.zeros_(result.head.image_branch.weight)
    nn.init.zeros_(result.head.image_branch.bias)
    return result


def case(slices=5, plane=(7, 9), channels=1, heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, heads, (slices, *plane), generator=generator)
    one_hot = torch.stack([labels == head for head in range(heads)]).float()
    return torch.randn(channels, slices, *plane, generator=generator), one_hot


class Counter(nn.Module):
    """Stands in for a network: returns the LR slice number of every middle slice and each target's place."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, window):
        first = window[:, :1, 1:2]
        place = torch.arange(self.factor).view(1, 1, -1, 1, 1).expand(len(window), 1, -1, *window.shape[3:])
        return SelfSROutput(first.expand_as(place) * 100 + place, first.expand_as(place), first.expand_as(place))


def test_windows_repeat_the_edge_slices():
    volume = torch.arange(3.0).view(1, 3, 1, 1)
    windows = windows_of(volume, -1, 3)[:, 0, :, 0, 0]
    assert windows.tolist() == [[0, 0, 0, 1], [0, 0, 1, 2], [0, 1, 2, 2], [1, 2, 2, 2]]
    assert windows_of(volume.expand(2, 3, 4, 5), 0, 2).shape == (2, 2, 4, 4, 5)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_without_a_residual_it_is_linear_interpolation_at_the_hr_positions(factor, slices):
    image, labels = case(slices, channels=2)
    output = super_resolve(without_image_branch(factor, image_channels=2), image, labels)
    lines = image.flatten(2).numpy()
    positions = hr_slice_positions(slices, factor)
    expected = (
        np.stack([[np.interp(positions, np.arange(slices), line) for line in channel.T] for channel in lines])
        .transpose(0, 2, 1)
        .reshape(2, factor * slices, *image.shape[2:])
    )  # repeats the edge beyond the centres
    np.testing.assert_allclose(output.image.numpy(), expected, atol=1e-5)
    if slices > 1:
        inner = (positions >= 0) & (positions <= slices - 1)
        ours = interpolate(image, factor, 1, order=1)[:, inner]
        torch.testing.assert_close(output.image[:, inner], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_degraded_ramp_is_restored(factor):
    """Exact where profile and interpolation see no end of the volume."""
    slices = 8
    truth = torch.arange(factor * slices, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 4, 4)
    lr = degrade(truth, factor, 1)
    restored = super_resolve(without_image_branch(factor), lr, torch.zeros(2, slices, 4, 4)).image
    inner = slice(3 * factor, -3 * factor)
    torch.testing.assert_close(restored[:, inner], truth[:, inner], rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", FACTORS)
def test_targets_lie_where_training_puts_them(factor):
    """A network that returns its training targets returns the HR volume."""
    slices = 4
    hr = torch.randn(1, factor * slices, 2, 3, generator=torch.Generator().manual_seed(0))
    no_labels = torch.zeros(factor * slices, 2, 3, dtype=torch.int16)
    number = torch.arange(slices, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 2, 3)
    marks = super_resolve(Counter(factor), number, torch.zeros(1, slices, 2, 3)).image
    truth = {}
    for window in range(-1, slices):
        spec = WindowSpec(factor * slices, factor, 0, window, flip=False)
        block = slice(*spec.stored_block)
        pair = make_pair(hr[:, block], no_labels[block], spec)
        for place in range(factor):
            if pair.mask[0, place, 0, 0]:
                truth.setdefault((max(window, 0), place), []).append(pair.hr_image[0, place])
    for index in range(factor * slices):
        window, place = divmod(int(marks[0, index, 0, 0]), 100)
        assert any(torch.equal(candidate, hr[0, index]) for candidate in truth[window, place])


@pytest.mark.parametrize("factor", [2, 3])
def test_every_window_is_the_networks(factor):
    model = network(factor)
    image, labels = case(3)
    output = super_resolve(model, image, labels)
    assert [tuple(part.shape) for part in output] == [(c, 3 * factor, 7, 9) for c in (1, 2, 1)]
    volume = torch.cat([image, labels])
    for window in range(-1, 3):
        index = [min(max(window + i, 0), 2) for i in (-1, 0, 1, 2)]
        with torch.no_grad():
            expected = model(volume[:, index][None])
        first = factor * window + factor // 2
        for place in range(factor):
            if 0 <= first + place < 3 * factor:
                for ours, theirs in zip(output, expected, strict=True):
                    torch.testing.assert_close(ours[:, first + place], theirs[0, :, place], rtol=0, atol=1e-5)


def test_the_batching_changes_nothing():
    model, (image, labels) = network(), case()
    whole = super_resolve(model, image, labels, windows_per_batch=100)
    for windows in (1, 4):
        for ours, theirs in zip(super_resolve(model, image, labels, windows_per_batch=windows), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_results_are_plain_float32_and_the_network_is_left_alone():
    model, (image, labels) = network().train(), case(2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    inputs = image.clone(), labels.clone()
    output = super_resolve(model, image, labels)
    assert model.training
    for part in output:
        assert part.dtype == torch.float32
        assert part.device.type == "cpu"
        assert part.is_contiguous()
        assert not part.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(inputs[0], image)
    assert torch.equal(inputs[1], labels)

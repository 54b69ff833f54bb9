"""Levels that go around the network."""

import pytest
import torch

from rehrseg_nnunet.guided.level_restoration import PatchLevelMap, patch_level, restore, standardise


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def patches(channels=2):
    scale = torch.tensor([0.1, 50.0])[:channels].view(1, -1, 1, 1)
    return (torch.randn(3, channels, 8, 9) * scale + 7).double()


def test_standardised_patches_have_mean_0_and_variance_1():
    image = patches()
    unit = standardise(image, patch_level(image))
    for sample in unit.flatten(0, 1):
        assert sample.mean().item() == pytest.approx(0, abs=1e-12)
        assert sample.square().mean().item() == pytest.approx(1)


def test_restoring_undoes_it():
    image = patches()
    level = patch_level(image)
    torch.testing.assert_close(restore(standardise(image, level), level), image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, -1.5, 1000.0])
def test_constant_patches_are_finite_and_come_back(value, dtype):
    image = torch.full((2, 1, 8, 8), value, dtype=dtype)
    level = patch_level(image)
    assert standardise(image, level).isfinite().all()
    torch.testing.assert_close(restore(torch.randn(2, 1, 8, 8), level), image.float(), rtol=1e-6, atol=1e-6)


def test_statistics_are_of_full_precision():
    image = (torch.randn(1, 1, 64, 64) + 300).half()
    level = patch_level(image)
    torch.testing.assert_close(level.mean.double(), image.double().mean((2, 3), keepdim=True), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        level.std.double(), image.double().std((2, 3), correction=0, keepdim=True), rtol=1e-5, atol=0
    )


def test_the_level_has_no_gradient():
    image = patches().requires_grad_()
    assert not any(part.requires_grad for part in patch_level(image))


def test_the_map_starts_as_the_identity_and_has_four_numbers():
    level = patch_level(patches(1))
    network = PatchLevelMap(1, 1)
    for before, after in zip(level, network(level), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == 4


def test_several_source_channels_start_as_their_mean():
    level = patch_level(patches())
    mapped = PatchLevelMap(2, 3)(level)
    assert mapped.mean.shape == mapped.std.shape == (3, 3, 1, 1)
    for channel in range(3):
        torch.testing.assert_close(mapped.mean[:, channel], level.mean.mean(1))
        torch.testing.assert_close(mapped.std[:, channel], (level.std[:, 0] * level.std[:, 1]).sqrt())


def test_the_map_is_that_of_its_formula():
    network = PatchLevelMap(2, 1).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    level = patch_level(patches())
    mapped = network(level)
    a, b, c, d = (parameter.flatten() for parameter in network.parameters())
    for sample in range(3):
        mean, std = level.mean[sample].flatten(), level.std[sample].flatten()
        torch.testing.assert_close(mapped.mean[sample].flatten(), (a * mean).sum() + b)
        torch.testing.assert_close(mapped.std[sample].flatten(), torch.exp((c * std.log()).sum() + d))


def test_the_map_keeps_its_precision_in_mixed_training():
    level = patch_level(torch.randn(1, 1, 8, 8) + 1003.7)
    network = PatchLevelMap(1, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mapped = network(level)
    torch.testing.assert_close(mapped.mean, level.mean)

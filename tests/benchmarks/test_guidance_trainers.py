"""The benchmark's own trainers: the plain U-Net that gives images, and guides of the true better scan."""

import numpy as np
import pytest
import torch
from guidance_shapes import shape_of
from guided_unets import stock
from torch import nn

from benchmarks.guidance.trainers.guidance_l1_unet_trainer import ImageLoss, SynthesisingUNet
from benchmarks.guidance.trainers.guidance_true_guides_trainer import TrueGuides, _first_channels
from rehrseg_nnunet.guided.keeper import Keeper, KeeperNetwork
from rehrseg_nnunet.guided.level_restoration import patch_level
from rehrseg_nnunet.guided.teacher import Teacher

PATCH = (2, 1, 4, 6, 5)


def patch(seed=0):
    return torch.randn(PATCH, generator=torch.Generator().manual_seed(seed))


def synthesising(*, level_restoration=True):
    return SynthesisingUNet(
        nn.Conv3d(1, 1, 3, padding=1),
        source_channels=1,
        privileged_channels=1,
        level_restoration=level_restoration,
    )


def test_the_rival_treats_levels_as_the_keeper_does():
    torch.manual_seed(0)
    rival, keeper = synthesising(), KeeperNetwork(Keeper(shape_of("cube"), kernel=3)).eval()
    source = torch.randn(1, 1, 16, 16, 16)
    for network in (rival, keeper):
        nn.init.constant_(network.level.mean.bias, 0.5)
        np.testing.assert_allclose(
            network(3 * source + 2).image.detach(), (3 * (network(source).image - 0.5) + 2.5).detach(), atol=1e-4
        )


def test_the_level_map_of_the_rival_learns():
    rival = synthesising()
    rival(patch()).image.square().mean().backward()
    assert rival.level.mean.bias.grad.abs().sum() > 0
    assert rival.level.log_std.bias.grad.abs().sum() > 0


def test_without_level_restoration_the_network_alone_decides():
    rival = synthesising(level_restoration=False)
    torch.testing.assert_close(rival(patch()).image, rival.unet(patch()))


def test_the_loss_is_the_keepers_image_term():
    loss = ImageLoss(torch.tensor([4.0]), 100.0)
    expected = 100 * np.abs(patch(1).numpy() - patch().numpy()).mean() / 4
    assert loss(patch(1), patch()).item() == pytest.approx(expected, rel=1e-6)


def test_true_guides_are_the_teachers_features():
    teacher = Teacher(shape_of("cube")).eval()
    guides = TrueGuides(shape_of("cube"), level_restoration=True).eval()
    guides.encoder.load_state_dict(teacher.encoder.state_dict())
    better = torch.randn(1, 1, 16, 16, 16)
    for found, expected in zip(guides(better), teacher.features(better), strict=True):
        torch.testing.assert_close(found, expected)
    assert {name.split(".")[0] for name in guides.state_dict()} == {"encoder"}
    assert patch_level(better).std.item() != 1  # so that level restoration counts


@pytest.mark.parametrize("kind", ["plain", "residual"])
def test_the_network_does_not_see_the_better_scan(kind):
    network = stock(kind)
    first = getattr(network.encoder, "stem", None) or network.encoder.stages[0]
    first.register_forward_pre_hook(lambda module, inputs: _first_channels(2, module, inputs))
    scan = torch.randn(1, 2, 8, 16, 16)
    with_better = torch.cat([scan, torch.full_like(scan[:, :1], torch.nan)], dim=1)
    torch.testing.assert_close(network(with_better), network(scan))

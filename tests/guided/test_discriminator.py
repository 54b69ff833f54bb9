"""The discriminator's sizes, and how many stages a patch allows."""

import pytest
import torch
from guidance_counts import counted, discriminator_count
from guidance_shapes import PATCHES, TABLES, shape_of

from rehrseg_nnunet.guided.discriminator import Discriminator, stages_that_fit
from rehrseg_nnunet.guided.shape import GuidanceShape


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def cubes(levels=5, width=16):
    widths = [width * 2**level for level in range(levels)]
    strides = [(1, 1, 1), *[(2, 2, 2)] * (levels - 1)]
    return GuidanceShape(strides=strides, kernels=[(3, 3, 3)] * levels, widths=widths, convs_per_block=1)


def test_the_paper_s_network_has_its_weights():
    assert counted(Discriminator(cubes())) == 697_344


@pytest.mark.parametrize("name", TABLES)
def test_weights_are_as_many_as_the_layers_say(name):
    shape = shape_of(name, privileged_channels=2)
    for stages in range(1, shape.levels):
        assert counted(Discriminator(shape, stages)) == discriminator_count(shape, stages)


@pytest.mark.parametrize(
    ("size", "stages"),
    [((64, 64, 64), 4), ((32, 32, 32), 4), ((31, 32, 32), 3), ((16, 16, 16), 3), ((8, 40, 40), 2), ((4, 4, 4), 1)],
)
def test_stages_of_cubes(size, stages):
    assert stages_that_fit(cubes(), size) == stages


@pytest.mark.parametrize("size", [(3, 8, 8), (1, 64, 64)])
def test_too_small_a_patch_is_refused(size):
    with pytest.raises(ValueError, match=r"2 voxels along every axis .* guidance\.keeper\.adversarial_weight 0 trains"):
        stages_that_fit(cubes(), size)


@pytest.mark.parametrize(("name", "size"), PATCHES)
def test_what_fits_can_be_scored(name, size):
    shape = shape_of(name, privileged_channels=2)
    stages = stages_that_fit(shape, size)
    scores = Discriminator(shape, stages)(torch.randn(3, 2, *size))
    assert scores.shape[:2] == (3, 1)
    assert scores.isfinite().all()
    if stages < shape.levels - 1:
        with pytest.raises((ValueError, RuntimeError)):
            Discriminator(shape, stages + 1)(torch.randn(3, 2, *size))


def test_a_score_sees_a_part_of_the_patch():
    scores = Discriminator(cubes(3, 4))(torch.randn(1, 1, 32, 16, 16))
    assert scores.shape == (1, 1, 7, 3, 3)


def test_axes_that_the_plan_does_not_mix_are_not_mixed():
    shape = shape_of("thick slices", kernels=[(1, 3, 3)] * 4, strides=[(1, 1, 1), *[(1, 2, 2)] * 3])
    discriminator = Discriminator(shape).eval()
    image = torch.randn(1, 1, 3, 32, 32)
    assert discriminator(image).shape == (1, 1, 3, 3, 3)
    assert stages_that_fit(shape, (1, 16, 16)) == 3


def test_samples_are_independent():
    discriminator = Discriminator(cubes(3, 4)).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(discriminator(image)[:1], discriminator(image[:1]))


@pytest.mark.parametrize("stages", [0, 3])
def test_impossible_numbers_of_stages_are_refused(stages):
    with pytest.raises(ValueError, match=f"stages must be between 1 and 2, got {stages}"):
        Discriminator(cubes(3, 4), stages)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_of_full_precision(dtype):
    discriminator = Discriminator(cubes(3, 4))
    image = torch.randn(2, 1, 16, 16, 16)
    with torch.autocast("cpu", dtype=dtype):
        scores = discriminator(image)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, discriminator(image), rtol=0.1, atol=0.1)

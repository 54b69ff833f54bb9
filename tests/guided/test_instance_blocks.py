"""Blocks keep positions and sizes."""

import pytest
import torch

from rehrseg_nnunet.guided.instance_blocks import (
    InstanceBlock,
    block_kernel,
    convolution,
    down_kernel,
    initialise,
    max_pool,
    pointwise,
    resize,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ramps(size, dtype=torch.float64):
    """(1, axes, *size): channel a holds the position along axis a."""
    grids = torch.meshgrid(*(torch.arange(n, dtype=dtype) for n in size), indexing="ij")
    return torch.stack(grids)[None]


def centres(size, strides, dtype=torch.float64):
    """Fine positions of the coarse voxels' centres."""
    return (ramps(size, dtype) + 0.5) * torch.tensor(strides).view(1, -1, *(1,) * len(size)) - 0.5


@pytest.mark.parametrize("strides", [(2, 2), (1, 2), (3, 2), (1, 2, 2)])
def test_strided_convolutions_are_centred_on_the_coarse_voxels(strides):
    """An averaging kernel gives a ramp's value at the coarse centre. nnU-Net's kernel of 3 gives that of voxel 2k."""
    fine = tuple(8 * stride for stride in strides)
    kernel = down_kernel((3,) * len(strides), strides)
    mean = convolution(1, 1, kernel, strides=strides).double()
    torch.nn.init.constant_(mean.weight, 1 / torch.tensor(kernel).prod().item())
    coarse = mean(ramps(fine).movedim(1, 0)).movedim(0, 1)
    assert coarse.shape[2:] == (8,) * len(strides)
    inside = (..., *(slice(1, -1),) * len(strides))
    torch.testing.assert_close(coarse[inside], centres(coarse.shape[2:], strides)[inside])


@pytest.mark.parametrize("strides", [(2, 2), (1, 2, 2)])
def test_pooling_takes_the_voxels_that_a_coarse_one_covers(strides):
    fine = tuple(6 * stride for stride in strides)
    pool = max_pool(strides)
    middle = (pool(ramps(fine)) - pool(-ramps(fine))) / 2  # of the largest and the smallest
    torch.testing.assert_close(middle, centres(middle.shape[2:], strides))


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("dimension", [2, 3])
def test_resizing_keeps_ramps_in_place(dimension, factor):
    coarse = centres((5,) * dimension, (factor,) * dimension)
    fine = resize(coarse, (5 * factor,) * dimension)
    inside = (..., *(slice(factor, -factor),) * dimension)
    torch.testing.assert_close(fine[inside], ramps(fine.shape[2:])[inside])


def test_resizing_to_its_own_size_is_nothing():
    features = torch.randn(2, 3, 4, 5)
    assert resize(features, (4, 5)) is features


def test_a_pointwise_convolution_commutes_with_resizing():
    layer = pointwise(6, 2, dimension=3).double()
    features = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(resize(layer(features), (6, 9, 11)), layer(resize(features, (6, 9, 11))))


@pytest.mark.parametrize("size", [8, 9, 10, 11])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (7, 1), (1, 1), (4, 2), (5, 3)])
def test_sizes_are_floors(size, kernel, stride):
    layer = convolution(1, 1, (kernel, kernel), strides=(stride, stride))
    assert layer(torch.zeros(1, 1, size, size)).shape[2:] == (size // stride,) * 2


def test_axes_of_the_plan_that_do_not_mix_do_not_mix_here():
    assert block_kernel((1, 3, 3), 7) == (1, 7, 7)
    assert down_kernel((1, 3, 3), (1, 2, 2)) == (1, 4, 4)
    assert down_kernel((3, 3, 3), (1, 2, 2)) == (3, 4, 4)
    assert down_kernel((1, 3, 3), (2, 2, 2)) == (4, 4, 4)


@pytest.mark.parametrize("convs", [1, 2])
def test_a_block_is_convolutions_that_are_normalised(convs):
    block = InstanceBlock(2, 5, (3, 3), convs=convs).double()
    initialise(block)
    image = torch.randn(3, 2, 8, 9, dtype=torch.float64)
    expected = image
    for layer in list(block)[::3]:
        assert layer.bias is None
        expected = layer(expected)
        mean = expected.mean((2, 3), keepdim=True)
        variance = (expected - mean).square().mean((2, 3), keepdim=True)
        expected = (expected - mean) / (variance + 1e-5).sqrt()
        expected = torch.where(expected > 0, expected, 0.01 * expected)
    assert len(block) == 3 * convs
    torch.testing.assert_close(block(image), expected)


def test_weights_start_by_fan_in():
    layer = pointwise(400, 500, dimension=2, bias=True)
    initialise(layer)
    assert layer.weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert (layer.bias == 0).all()

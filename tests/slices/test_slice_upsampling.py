"""From D slices to r*D: ramps, flips, the cubic spline of scipy, and boundaries that move from slice to slice."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline
from torch import nn

from rehrseg_nnunet.slices.geometry import hr_slice_positions
from rehrseg_nnunet.slices.slice_upsampling import REACH, LogitInterpolation, interleave_slices, upsample_slices

FACTOR = 3
factors = pytest.mark.parametrize("factor", [2, 3, 4, 7])


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def trained(factor, seed=1):
    interpolation = LogitInterpolation(factor)
    with torch.no_grad():
        interpolation.change.copy_(maps(*interpolation.change.shape, seed=seed))
    return interpolation


def test_linear_upsampling_hits_the_hr_slice_positions():
    ramp = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(1, 2, 5, 2, 3)
    expected = np.clip(hr_slice_positions(5, FACTOR), 0, 4)
    result = upsample_slices(ramp, FACTOR)
    assert result.shape == (1, 2, 15, 2, 3)
    np.testing.assert_allclose(result[0, 1, :, 1, 2].numpy(), expected, atol=1e-6)
    reference = nn.functional.interpolate(maps(1, 2, 4, 3, 5), scale_factor=(FACTOR, 1, 1), mode="trilinear")
    torch.testing.assert_close(upsample_slices(maps(1, 2, 4, 3, 5), FACTOR), reference)


@factors
@pytest.mark.parametrize("plane", [(3, 5), (5,)])
def test_interleaved_slices_are_the_channels_of_one_map_in_turn(factor, plane):
    features = maps(2, 2 * factor, 4, *plane)
    result = interleave_slices(features, factor)
    assert result.shape == (2, 2, 4 * factor, *plane)
    for channel, lr_slice, phase in product(range(2), range(4), range(factor)):
        expected = features[:, factor * channel + phase, lr_slice]
        assert torch.equal(result[:, channel, factor * lr_slice + phase], expected)


@factors
def test_interpolation_starts_as_the_spline_through_the_slices_around(factor):
    logits = maps(2, 3, 6, 2, 5)
    result = LogitInterpolation(factor)(logits)
    assert result.shape == (2, 3, 6 * factor, 2, 5)
    padded = np.pad(logits.numpy(), ((0, 0), (0, 0), (REACH, REACH), (0, 0), (0, 0)), mode="edge")
    for hr_slice, position in enumerate(hr_slice_positions(6, factor)):
        nearest = hr_slice // factor
        around = padded[:, :, nearest : nearest + 2 * REACH + 1]
        spline = CubicSpline(np.arange(-REACH, REACH + 1), around, axis=2, bc_type="natural")
        np.testing.assert_allclose(result[:, :, hr_slice].detach(), spline(position - nearest), atol=1e-5)


@factors
def test_a_ramp_stays_a_ramp_away_from_the_ends(factor):
    slices = 8
    ramp = torch.arange(float(slices)).view(1, 1, slices, 1, 1).expand(1, 2, slices, 3, 4)
    result = LogitInterpolation(factor)(ramp)[0, 1, :, 1, 2].detach().numpy()
    inner = slice(REACH * factor, -REACH * factor)
    np.testing.assert_allclose(result[inner], hr_slice_positions(slices, factor)[inner], atol=1e-5)


@factors
def test_flips_commute_before_training(factor):
    interpolation, logits = LogitInterpolation(factor), maps(1, 2, 5, 4, 3)
    torch.testing.assert_close(interpolation(logits).flip(2), interpolation(logits.flip(2)))


@pytest.mark.parametrize("slices", [1, 2, 5])
def test_constants_are_kept_whatever_was_trained(slices):
    logits = torch.tensor([2.0, -3.0]).view(1, 2, 1, 1, 1).expand(1, 2, slices, 3, 4)
    torch.testing.assert_close(trained(FACTOR)(logits), logits.repeat_interleave(FACTOR, dim=2))


def test_labels_and_pixels_do_not_see_each_other():
    interpolation, logits = trained(FACTOR), maps(2, 3, 5, 4, 6)
    result = interpolation(logits)
    torch.testing.assert_close(interpolation(logits[1:, 2:, :, 3:, 5:]), result[1:, 2:, :, 3:, 5:])


def test_a_boundary_that_moves_from_slice_to_slice_moves_in_between():
    pixels = torch.arange(30.0)
    boundary = 10 + 2.5 * torch.arange(6.0)  # pixels per thick slice: more than a convolution of 3 pixels looks far
    logits = (boundary[:, None] - pixels).view(1, 1, 6, 1, 30)
    inside = (LogitInterpolation(4)(logits) > 0).sum(-1)[0, 0, :, 0]
    expected = np.ceil(10 + 2.5 * hr_slice_positions(6, 4))
    np.testing.assert_array_equal(inside[8:-8], expected[8:-8])


def test_gradients_reach_the_taps_and_keep_their_sum():
    interpolation = LogitInterpolation(FACTOR)
    interpolation(maps(1, 2, 5, 4, 3)).square().sum().backward()
    assert interpolation.change.grad.abs().sum() > 0
    torch.testing.assert_close(interpolation.change.grad.sum(1), torch.zeros(FACTOR), atol=1e-4, rtol=0)

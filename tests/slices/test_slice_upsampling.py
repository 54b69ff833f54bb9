"""From D slices to r*D: ramps, flips, the cubic spline of scipy, and boundaries that move from slice to slice."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline, CubicSpline
from torch import nn

from rehrseg_nnunet.slices.geometry import hr_slice_positions
from rehrseg_nnunet.slices.slice_profile import FWHM_PER_SIGMA, degrade, interpolate
from rehrseg_nnunet.slices.slice_upsampling import (
    REACH,
    ImageInterpolation,
    LogitInterpolation,
    centre_slices,
    interleave_slices,
    upsample_slices,
)

FACTOR = 3
kinds = pytest.mark.parametrize("kind", ["spline", "smooth"])
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


@factors
@kinds
def test_image_interpolation_keeps_constants_everywhere_and_ramps_inside(factor, kind):
    interpolation = ImageInterpolation(factor, kind)
    ones = torch.ones(1, 2, 4, 3, 3)
    torch.testing.assert_close(interpolation(ones), torch.ones(1, 2, 4 * factor, 3, 3))
    ramp = torch.arange(9.0).view(1, 1, 9, 1, 1).expand(1, 1, 9, 2, 3)
    inside = slice(2 * factor, -2 * factor)
    expected = torch.from_numpy(hr_slice_positions(9, factor)).float()
    torch.testing.assert_close(interpolation(ramp)[0, 0, inside, 1, 2], expected[inside])


@factors
@pytest.mark.parametrize("slices", [1, 2, 6])
def test_smooth_interpolation_is_the_b_spline_of_the_slices_as_coefficients(factor, slices):
    image = maps(2, 3, slices, 4, 5).double()
    padded = np.pad(image.numpy(), [(0, 0), (0, 0), (3, 3), (0, 0), (0, 0)], mode="edge")
    knots = np.arange(-5.0, slices + 5)  # one coefficient for each slice from -3 on, centred on it
    spline = BSpline(knots, padded, 3, axis=2)
    expected = spline(hr_slice_positions(slices, factor))
    np.testing.assert_allclose(ImageInterpolation(factor, "smooth").double()(image).numpy(), expected, atol=1e-6)


@factors
@kinds
def test_image_interpolation_commutes_with_flips_and_with_moving_by_a_slice(factor, kind):
    thin, image = ImageInterpolation(factor, kind), maps(1, 1, 8, 2, 2)
    torch.testing.assert_close(thin(image.flip(2)), thin(image).flip(2))
    inside = slice(2 * factor, -2 * factor)
    torch.testing.assert_close(thin(image[:, :, 1:])[:, :, inside], thin(image)[:, :, factor:][:, :, inside])


@pytest.mark.parametrize("factor", [3, 5])  # a thin slice lies at each thick one's centre
def test_the_spline_goes_through_the_slices(factor):
    image = maps(1, 2, 6, 3, 3)
    torch.testing.assert_close(ImageInterpolation(factor, "spline")(image)[:, :, factor // 2 :: factor], image)


@factors
def test_the_spline_is_that_of_all_slices_but_for_what_is_far_away(factor):
    image = maps(1, 1, 9, 2, 2)
    inside = slice(2 * factor, -2 * factor)
    near, all_slices = ImageInterpolation(factor, "spline")(image), interpolate(image, factor, 2)
    assert (near - all_slices)[:, :, inside].abs().max() < 0.1 * image.abs().max()


def responses(interpolate, factor, slices=12):
    """What a point at each of the r places in the middle slice becomes, moved to the same place: (r, thin slices)."""
    middle = factor * (slices // 2)
    points = torch.zeros(factor, 1, factor * slices, 1, 1)
    for place in range(factor):
        points[place, 0, middle + place] = 1
    thin = interpolate(degrade(points, factor, axis=2))[:, 0, :, 0, 0]
    return torch.stack([line.roll(-place) for place, line in enumerate(thin)])


def aliases_bound(factor):
    """Largest change of a response with the place of its point, by the frequencies that sampling folds back.

    A point at t becomes the sum over m of exp(-2 pi i m t) times the part with the spectrum B(f) h(f - m): B that of
    the B-spline, h that of the Gaussian profile of FWHM one slice. All parts but m = 0 change with t.
    """
    sigma = 1 / FWHM_PER_SIGMA
    f = np.linspace(-60, 60, 240_001)
    spectra = [np.sinc(f) ** 4 * np.exp(-2 * (np.pi * sigma * (f - m)) ** 2) for m in (*range(-9, 0), *range(1, 10))]
    return sum(np.trapezoid(np.abs(s), f) for s in spectra) / factor


@factors
def test_the_response_to_a_point_depends_on_its_place_in_a_slice_as_little_as_theory_says(factor):
    def varying(lines):  # share of the responses' energy
        return (lines - lines.mean(0)).square().sum() / lines.square().sum()

    smooth = responses(ImageInterpolation(factor, "smooth"), factor)
    assert (smooth - smooth.mean(0)).abs().max() < aliases_bound(factor) * 1.05  # sampled, almost the Gaussian
    assert varying(smooth) < 0.02
    assert varying(smooth) < 0.4 * varying(responses(lambda lr: interpolate(lr, factor, 2), factor))


@factors
def test_slices_at_the_centre_are_the_mean_of_what_is_around_it(factor):
    ramp = torch.from_numpy(hr_slice_positions(6, factor)).view(1, 1, -1, 1, 1)
    torch.testing.assert_close(centre_slices(ramp, factor).flatten(), torch.arange(6.0, dtype=torch.float64))
    thin = maps(1, 2, 6 * factor, 2, 2)
    torch.testing.assert_close(centre_slices(thin.flip(2), factor), centre_slices(thin, factor).flip(2))
    moved = centre_slices(torch.ones(1, 1, factor, 1, 1).cumsum(2) - 1, factor)
    assert moved.item() == (factor - 1) / 2

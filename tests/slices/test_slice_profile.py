"""Physics of the slice profile: what thick slices and their interpolation must keep."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import make_interp_spline
from slice_positions import lr_slice_positions

from rehrseg_nnunet.slices.geometry import hr_slice_positions
from rehrseg_nnunet.slices.slice_profile import (
    apply_along,
    at_phase,
    back_project,
    degrade,
    degrade_labels,
    half_support,
    interpolate,
    interpolate_logits,
    interpolation_matrix,
    slice_profile,
)

FACTORS = (2, 3, 4, 5, 8)
factors = st.sampled_from(FACTORS)
lr_slices = st.integers(1, 7)
seeds = st.integers(0, 2**16)


def random_volume(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def random_labels(seed, *shape, high=4):
    return torch.from_numpy(np.random.default_rng(seed).integers(-1, high, size=shape).astype(np.int16))


def explicit_matrix(slices, factor):
    """(D, r*D) matrix of Gaussian weights from its definition, independent of any convolution."""
    taps = 4 * factor + factor % 2
    sigma = factor / (2 * np.sqrt(2 * np.log(2)))
    distance = np.arange(slices * factor)[None] - lr_slice_positions(slices, factor)[:, None]
    weights = np.where(np.abs(distance) <= (taps - 1) / 2, np.exp(-0.5 * (distance / sigma) ** 2), 0)
    return torch.from_numpy(weights / weights.sum(1, keepdims=True))


@pytest.mark.parametrize("factor", FACTORS)
def test_profile_is_symmetric_normalised_and_has_a_fwhm_of_one_thick_slice(factor):
    weights = slice_profile(factor)
    assert weights.sum().item() == pytest.approx(1)
    assert torch.equal(weights, weights.flip(0))
    offsets = np.arange(len(weights)) - (len(weights) - 1) / 2
    log = np.log(weights.numpy())
    curvature = np.polyfit(offsets, log, 2)[0]  # the log of a Gaussian is a parabola -4 ln 2 (x / FWHM)^2
    assert np.sqrt(-4 * np.log(2) / curvature) == pytest.approx(factor)


@pytest.mark.parametrize("factor", FACTORS)
def test_profile_measured_by_moving_an_impulse_through_the_volume_has_its_width(factor):
    slices = 9
    impulses = torch.eye(slices * factor, dtype=torch.float64)
    response = degrade(impulses, factor, axis=1)[:, slices // 2].numpy()
    centre = lr_slice_positions(slices, factor)[slices // 2]
    positions = np.arange(slices * factor)
    at_half_width = np.interp(centre + factor / 2, positions, response)
    assert (response * positions).sum() / response.sum() == pytest.approx(centre)
    peak = response.max() if factor % 2 else np.exp(0.5 * (0.5 / (factor / 2.3548)) ** 2) * response.max()
    assert at_half_width / peak == pytest.approx(0.5, abs=0.06 if factor == 2 else 0.02)


@settings(deadline=None, max_examples=40)
@given(factors, lr_slices, seeds)
def test_degrade_equals_an_explicit_matrix(factor, slices, seed):
    volume = random_volume(seed, 2, slices * factor, 3)
    expected = torch.einsum("kz,czx->ckx", explicit_matrix(slices, factor), volume)
    torch.testing.assert_close(degrade(volume, factor, axis=1), expected)


@settings(deadline=None, max_examples=20)
@given(factors, lr_slices, st.floats(-5, 5))
def test_constants_are_kept_up_to_the_border(factor, slices, value):
    constant = torch.full((slices * factor, 2), value, dtype=torch.float64)
    torch.testing.assert_close(degrade(constant, factor, axis=0), torch.full((slices, 2), value, dtype=torch.float64))
    for order in (0, 1, 3):
        torch.testing.assert_close(interpolate(constant[:slices], factor, axis=0, order=order), constant)


@settings(deadline=None, max_examples=20)
@given(factors, st.integers(6, 9))
def test_ramps_are_kept_in_the_interior_at_the_stated_positions(factor, slices):
    ramp = torch.arange(slices * factor, dtype=torch.float64)
    expected = torch.from_numpy(lr_slice_positions(slices, factor))
    torch.testing.assert_close(degrade(ramp, factor, axis=0)[2:-2], expected[2:-2])


@settings(deadline=None, max_examples=20)
@given(factors, st.integers(2, 9), st.sampled_from((1, 3)))
def test_interpolation_keeps_ramps_everywhere(factor, slices, order):
    ramp = torch.arange(slices, dtype=torch.float64)
    expected = torch.from_numpy(hr_slice_positions(slices, factor))
    torch.testing.assert_close(interpolate(ramp, factor, axis=0, order=order), expected)


@settings(deadline=None, max_examples=20)
@given(factors, lr_slices, seeds)
def test_interpolated_logits_are_a_spline_between_the_outer_slices_and_repeat_these_beyond(factor, slices, seed):
    logits = random_volume(seed, slices, 2)
    positions = hr_slice_positions(slices, factor)
    degree = {"k": 3, "bc_type": "natural"} if slices > 3 else {"k": min(1, slices - 1)}
    spline = make_interp_spline(np.arange(slices), logits.numpy(), **degree)
    expected = torch.from_numpy(spline(positions.clip(0, slices - 1)))
    torch.testing.assert_close(interpolate_logits(logits, factor, 0), expected)
    ramp = interpolate_logits(torch.arange(slices, dtype=torch.float64), factor, 0)
    torch.testing.assert_close(ramp, torch.from_numpy(positions.clip(0, slices - 1)))


@pytest.mark.parametrize("factor", FACTORS)
def test_no_label_comes_into_being_beyond_the_outer_slices(factor):
    """The network is sure that there is nothing, and surer one slice further in; extrapolated, this is an object."""
    logits = torch.tensor([-2.0, -8.0, -8.0, -8.0, -8.0])
    assert (interpolate(logits, 4, 0)[:1] > 0).all()
    outer = interpolate_logits(logits, factor, 0)[: factor // 2]
    torch.testing.assert_close(outer, torch.full_like(outer, -2))


@settings(deadline=None, max_examples=20)
@given(factors, st.integers(6, 9), st.sampled_from((1, 3)))
def test_interpolate_then_degrade_gives_a_ramp_back(factor, slices, order):
    ramp = torch.arange(slices, dtype=torch.float64)
    back = degrade(interpolate(ramp, factor, axis=0, order=order), factor, axis=0)
    torch.testing.assert_close(back[2:-2], ramp[2:-2])


@settings(deadline=None, max_examples=30)
@given(factors, lr_slices, seeds)
def test_degrade_commutes_with_flips_along_the_slice_axis(factor, slices, seed):
    volume = random_volume(seed, slices * factor, 3)
    torch.testing.assert_close(degrade(volume.flip(0), factor, axis=0), degrade(volume, factor, axis=0).flip(0))


@settings(deadline=None, max_examples=20)
@given(factors, lr_slices, seeds)
def test_degrade_commutes_with_in_plane_transforms(factor, slices, seed):
    volume = random_volume(seed, slices * factor, 4, 4)
    in_plane = random_volume(seed + 1, 3, 4)

    def move(v):
        return torch.einsum("ij,zjx->zix", in_plane, v).transpose(1, 2)

    torch.testing.assert_close(degrade(move(volume), factor, axis=0), move(degrade(volume, factor, axis=0)))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(0, 4), factors, seeds)
def test_any_axis_of_any_number_of_dimensions(dims, axis, factor, seed):
    axis %= dims
    shape = [2] * dims
    shape[axis] = 3 * factor
    volume = random_volume(seed, *shape)
    expected = apply_along(volume, explicit_matrix(3, factor), axis)
    torch.testing.assert_close(degrade(volume, factor, axis), expected)
    torch.testing.assert_close(degrade(volume, factor, axis - dims), expected)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_crop_with_half_support_context_degrades_like_the_whole(factor):
    slices, context = 9, -(-half_support(factor) // factor)
    volume = random_volume(0, slices * factor, 2)
    crop = volume[(4 - context) * factor : (5 + context) * factor]
    # context beyond half_support must not matter either
    spoiled = crop.clone()
    spare = context * factor - half_support(factor)
    spoiled[:spare] = 1e6
    whole = degrade(volume, factor, axis=0)[4]
    torch.testing.assert_close(degrade(crop, factor, axis=0)[context], whole)
    torch.testing.assert_close(degrade(spoiled, factor, axis=0)[context], whole)


@pytest.mark.parametrize("factor", FACTORS)
def test_all_of_half_support_is_used(factor):
    slices = 9
    impulse = torch.zeros(slices * factor, dtype=torch.float64)
    impulse[4 * factor - half_support(factor)] = 1
    assert degrade(impulse, factor, axis=0)[4] > 0


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_gradients(factor):
    volume = random_volume(1, 2, 3 * factor).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: degrade(v, factor, axis=1), volume)
    assert torch.autograd.gradcheck(lambda v: interpolate(v, factor, axis=0, order=3), volume)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    assert degrade(torch.ones(8, 2, dtype=dtype), 4, axis=0).dtype == dtype
    assert interpolate(torch.ones(8, 2, dtype=dtype), 2, axis=0).dtype == dtype


def test_nearest_interpolation_repeats_slices():
    volume = random_volume(0, 3, 2)
    torch.testing.assert_close(interpolate(volume, 4, axis=0, order=0), volume.repeat_interleave(4, dim=0))


def test_linear_interpolation_is_torchs_half_pixel_interpolation_inside():
    volume = random_volume(0, 1, 1, 6)
    expected = torch.nn.functional.interpolate(volume, scale_factor=4, mode="linear", align_corners=False)
    torch.testing.assert_close(interpolate(volume, 4, axis=2, order=1)[..., 2:-2], expected[..., 2:-2])


def test_interpolation_matrix_reproduces_samples_at_odd_factors():
    for order in (0, 1, 3):
        torch.testing.assert_close(interpolation_matrix(5, 3, order)[1::3], torch.eye(5, dtype=torch.float64))


def clear_centre(labels, factor):
    """Where the centre rule does not end in a tie, which goes to one side whatever the labels."""
    groups = labels.unflatten(1, (-1, factor)).movedim(2, -1)
    groups = groups.flatten(0, -2).tolist()
    clear = torch.tensor([centre_label(group) == centre_label(group[::-1]) for group in groups])
    return clear.view(labels.shape[0], -1, *labels.shape[2:])


@settings(deadline=None, max_examples=30)
@given(factors, lr_slices, seeds)
def test_labels_commute_with_flips_and_introduce_no_value(factor, slices, seed):
    labels = random_labels(seed, 2, slices * factor, 3)
    lr = degrade_labels(labels, factor, axis=1)
    flipped_back = degrade_labels(labels.flip(1), factor, axis=1).flip(1)
    clear = clear_centre(labels, factor)
    assert torch.equal(flipped_back[clear], lr[clear])
    assert set(lr.unique().tolist()) <= set(labels.unique().tolist())
    assert lr.dtype == labels.dtype
    assert torch.equal(degrade_labels(labels, factor, axis=-2), lr)


@settings(deadline=None, max_examples=30)
@given(factors, lr_slices, seeds, st.booleans())
def test_the_centre_rule_commutes_with_flips_that_exchange_the_sides_of_ties(factor, slices, seed, upper):
    labels = random_labels(seed, slices * factor, 3)
    flipped_back = degrade_labels(labels.flip(0), factor, axis=0, upper_ties=not upper).flip(0)
    assert torch.equal(flipped_back, degrade_labels(labels, factor, axis=0, upper_ties=upper))


@pytest.mark.parametrize("factor", [2, 4, 6])
def test_both_sides_of_ties_together_keep_a_boundary_where_it_is(factor):
    """Mean over all phases of where a boundary lies on thick slices, minus where it is, in HR voxels."""
    off = {}
    for upper in (False, True):
        found = []
        for phase in range(factor):
            labels = torch.zeros(9 * factor, dtype=torch.int16)
            labels[: 4 * factor + phase] = 1
            thick = degrade_labels(labels, factor, axis=0, upper_ties=upper)
            found.append(factor * int(thick.sum()) - (4 * factor + phase))
        off[upper] = sum(found) / factor
    assert off == {False: 0.5, True: -0.5}


@pytest.mark.parametrize("upper_ties", [False, True])
@pytest.mark.parametrize("phase", range(4))
def test_centre_keeps_a_structure_one_thick_slice_thick_at_every_phase(phase, upper_ties):
    labels = torch.zeros(20, dtype=torch.int64)
    labels[8 + phase : 12 + phase] = 1
    assert degrade_labels(labels, 4, axis=0, upper_ties=upper_ties).sum() == 1


def centre_label(group, *, upper_ties=False):
    """The rule in words: the two central slices vote, then the next ones out, at last one side wins."""
    r = len(group)
    if r % 2:
        return group[r // 2]
    left, right = group[r // 2 - 1], group[r // 2]
    for step in range(1, r // 2):
        if left == right:
            break
        voters = (group[r // 2 - 1 - step], group[r // 2 + step])
        left_votes, right_votes = voters.count(left), voters.count(right)
        if left_votes != right_votes:
            return left if left_votes > right_votes else right
    return right if upper_ties else left


@settings(deadline=None, max_examples=60)
@given(factors, seeds, st.booleans())
def test_centre_rule(factor, seed, upper):
    labels = random_labels(seed, 16 * factor, high=3)
    expected = [centre_label(group, upper_ties=upper) for group in labels.reshape(16, factor).tolist()]
    assert degrade_labels(labels, factor, axis=0, upper_ties=upper).tolist() == expected


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ([1, 2, 3], 2),
        ([1, 1, 1, 2], 1),
        ([1, 1, 2, 2], 1),  # tie to the end: lower side
        ([2, 2, 1, 1], 2),
        ([3, 1, 2, 2], 2),  # the next one out decides
        ([2, 2, 1, 0], 2),
        ([0, 2, 1, 0], 2),
        ([2, 0, 2, 1, 0, 0], 2),  # the second ones out decide
        ([2, 1, 2, 1, 2, 2], 2),
    ],
)
def test_centre_rule_by_hand(group, expected):
    assert degrade_labels(torch.tensor(group), len(group), axis=0).tolist() == [expected]


def phases_in_which_a_structure_survives(thickness, factor):
    found = []
    for phase in range(factor):
        labels = torch.zeros(8 * factor, dtype=torch.int16)
        labels[3 * factor + phase : 3 * factor + phase + thickness] = 1
        found.append(bool((degrade_labels(labels, factor, axis=0) == 1).any()))
    return found


@pytest.mark.parametrize("factor", FACTORS)
def test_centre_keeps_what_is_more_than_one_thick_slice_high_at_every_phase(factor):
    assert all(phases_in_which_a_structure_survives(factor + 1, factor))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slice_profile(1), "factor must be an integer of at least 2, got 1"),
        (lambda: slice_profile(2.5), "factor must be an integer of at least 2, got 2.5"),
        (lambda: degrade(torch.ones(8, dtype=torch.int16), 4, 0), "volume must be a floating point tensor"),
        (lambda: degrade(torch.ones(9), 4, 0), "must be a multiple of factor 4, got 9"),
        (lambda: degrade(torch.ones(0), 4, 0), "must be a multiple of factor 4, got 0"),
        (lambda: degrade_labels(torch.ones(9), 4, 0), "must be a multiple of factor 4, got 9"),
        (lambda: interpolate(torch.ones(8, dtype=torch.int16), 4, 0), "volume must be a floating point tensor"),
        (lambda: interpolation_matrix(4, 2, 2), "order must be 0, 1 or 3, got 2"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_back_projection_is_the_fixed_point_iteration_on_the_degraded_difference(factor):
    generator = torch.Generator().manual_seed(factor)
    volume = torch.randn(2, 6 * factor, 3, dtype=torch.float64, generator=generator)
    thick = torch.randn(2, 6, 3, dtype=torch.float64, generator=generator)
    operator = explicit_matrix(6, factor)
    inverse = interpolation_matrix(6, factor, 3)
    expected = volume
    for steps in range(4):
        ours = back_project(volume, thick, factor, 1, steps=steps)
        torch.testing.assert_close(ours, expected)
        expected = expected + torch.einsum(
            "hd,cdx->chx", inverse, thick - torch.einsum("dh,chx->cdx", operator, expected)
        )


@pytest.mark.parametrize("factor", [2, 3, 4, 7])
def test_back_projection_approaches_the_acquired_slices_and_keeps_a_volume_that_agrees(factor):
    volume = torch.randn(1, 5 * factor, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    agreeing = degrade(volume, factor, 1)
    torch.testing.assert_close(back_project(volume, agreeing, factor, 1, steps=3), volume)
    other = agreeing + torch.linspace(-1, 1, 5, dtype=torch.float64).view(1, -1, 1)
    gaps = [(other - degrade(back_project(volume, other, factor, 1, steps=n), factor, 1)).norm() for n in range(5)]
    assert all(after < 0.7 * before for before, after in pairwise(gaps))


@pytest.mark.parametrize("factor", FACTORS)
def test_a_scan_at_another_phase_is_about_what_would_have_been_acquired_there(factor):
    slices, rng = 9, np.random.default_rng(0)
    position = np.arange((slices + 2) * factor) / factor
    # structures of three thick slices and more
    waves = [np.sin(2 * np.pi * position / period + rng.uniform(0, 6)) for period in (3.0, 4.3, 7.0)]
    volume = torch.from_numpy(np.stack(waves))

    def acquired(phase):
        """Slices 1 to `slices` of an acquisition that lies as many HR slices behind."""
        return degrade(volume.roll(-phase, 1), factor, 1)[:, 1:-1]

    for phase in range(-(factor // 2), factor // 2 + 1):
        resampled = at_phase(acquired(0), phase, factor, 1)
        assert resampled.shape == (3, slices)
        interior = slice(2, -2)
        error = (resampled - acquired(phase))[:, interior].abs().amax(1)
        unshifted = (acquired(0) - acquired(phase))[:, interior].abs().amax(1)
        assert (error < 0.15).all()
        assert phase == 0 or (error < 0.5 * unshifted).all()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("slices", [2, 3, 4, 6])
def test_phases_keep_ramps_and_commute_with_flips(factor, slices):
    ramp = torch.arange(slices, dtype=torch.float64)
    volume = random_volume(0, 2, slices, 3)
    assert at_phase(volume, 0, factor, 1) is volume
    for phase in range(-(factor // 2), factor // 2 + 1):
        torch.testing.assert_close(at_phase(ramp, phase, factor, 0), ramp + phase / factor)
        there_and_back = at_phase(volume.flip(1), -phase, factor, 1).flip(1)
        torch.testing.assert_close(there_and_back, at_phase(volume, phase, factor, 1))


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
@pytest.mark.parametrize("context", [(0, 0), (1, 0), (0, 2), (9, 11)])
def test_context_counts_and_belongs_to_no_slice(factor, context):
    volume = random_volume(0, 2, context[0] + 3 * factor + context[1])
    thick = degrade(volume, factor, 1, context=context)
    expected = [thick_slice(volume, factor, context[0] + factor * k) for k in range(3)]
    torch.testing.assert_close(thick, torch.stack(expected, dim=1))


def thick_slice(volume, factor, first):
    """The thick slice of the r slices from `first` on, by its definition: (C, slices) to (C,)."""
    weights = slice_profile(factor)
    positions = first + (factor - 1) / 2 + torch.arange(len(weights)) - (len(weights) - 1) / 2
    inside = (positions >= 0) & (positions < volume.shape[1])
    taken = volume[:, positions[inside].long()]
    return (taken * weights[inside]).sum(dim=1) / weights[inside].sum()


def test_context_leaves_whole_thick_slices():
    with pytest.raises(ValueError, match="multiple of factor 4, got 6"):
        degrade(torch.zeros(8), 4, 0, context=(1, 1))

"""Shape-based label interpolation: position, symmetry and completeness."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels, signed_distance
from rehrseg_nnunet.slices.slice_profile import degrade_labels

SPACING_MM = (4.0, 1.0, 1.0)


def ball(shape, centre, radius_mm, spacing_mm):
    grid = np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")
    squared = sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, spacing_mm, strict=True))
    return (squared <= radius_mm**2).astype(np.int8)


def centroid(mask):
    return np.argwhere(mask).mean(0)


def naive_signed_distance(mask, spacing_mm):
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    result = np.zeros(mask.shape)
    for voxel in np.ndindex(mask.shape):
        other = outside if mask[voxel] else inside
        distance = np.sqrt((((other - voxel) * spacing_mm) ** 2).sum(1)).min()
        result[voxel] = distance if mask[voxel] else -distance
    return result


def test_signed_distance_equals_brute_force():
    mask = np.random.default_rng(0).random((4, 5, 6)) < 0.4
    np.testing.assert_allclose(
        signed_distance(mask, (3.0, 1.0, 0.5)), naive_signed_distance(mask, (3.0, 1.0, 0.5)), rtol=1e-6
    )


def test_signed_distance_of_empty_and_full_masks_is_finite():
    shape, diagonal = (2, 3, 6), 7.0
    np.testing.assert_allclose(signed_distance(np.zeros(shape, bool), (1, 1, 1)), -diagonal)
    np.testing.assert_allclose(signed_distance(np.ones(shape, bool), (1, 1, 1)), diagonal)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from((2, 3, 4)), st.integers(0, 2**16))
def test_flips_commute_and_no_value_appears(factor, seed):
    labels = np.random.default_rng(seed).integers(-1, 3, size=(4, 5, 6)).astype(np.int16)
    hr = interpolate_labels(labels, factor, 0, spacing_mm=SPACING_MM)
    assert hr.shape == (4 * factor, 5, 6)
    assert hr.dtype == labels.dtype
    assert set(np.unique(hr)) <= set(np.unique(labels))
    flipped = interpolate_labels(labels[:, ::-1], factor, 0, spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(flipped, hr[:, ::-1])


@pytest.mark.parametrize("value", [-1, 0, 7])
def test_a_uniform_map_stays_uniform(value):
    labels = np.full((3, 4, 4), value, dtype=np.int16)
    assert (interpolate_labels(labels, 4, 0, spacing_mm=SPACING_MM) == value).all()


def test_values_take_part_alike_whatever_their_numbers():
    labels = np.random.default_rng(1).integers(0, 3, size=(4, 6, 6)).astype(np.int16)
    hr = interpolate_labels(labels, 3, 0, spacing_mm=SPACING_MM)
    renamed = interpolate_labels(labels + 5, 3, 0, spacing_mm=SPACING_MM)
    np.testing.assert_array_equal(renamed, hr + 5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis(axis):
    labels = ball((5, 12, 12), (2, 5.5, 5.5), 5, SPACING_MM)
    expected = interpolate_labels(labels, 4, 0, spacing_mm=SPACING_MM)
    moved = interpolate_labels(
        np.moveaxis(labels, 0, axis), 4, axis, spacing_mm=np.insert((1.0, 1.0), axis, 4.0).tolist()
    )
    np.testing.assert_array_equal(np.moveaxis(moved, axis, 0), expected)


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
def test_a_balls_centroid_and_shape_survive_degrade_and_restore(factor):
    shape, centre = (8 * factor, 28, 28), (3.6 * factor, 13.2, 14.1)
    truth = ball(shape, centre, 9, (1, 1, 1))
    lr = degrade_labels(torch.from_numpy(truth), factor, axis=0).numpy()
    restored = interpolate_labels(lr, factor, 0, spacing_mm=(factor, 1, 1))
    shift = np.abs(centroid(restored) - centroid(truth))
    assert shift[1:].max() < 0.1
    # even factors: a boundary at a slice's very centre goes with the smaller index, see degrade_labels
    assert shift[0] < (0.1 if factor % 2 else 0.2) * factor
    dice = 2 * (restored & truth).sum() / (restored.sum() + truth.sum())
    nearest = lr.repeat(factor, axis=0)
    assert dice > 0.93
    if factor > 2:
        assert dice > 2 * (nearest & truth).sum() / (nearest.sum() + truth.sum()) + 0.01


def test_a_slanted_cylinder_moves_smoothly_between_slices():
    factor, slices = 4, 6
    grid_y, grid_x = np.mgrid[:24, :24]
    labels = np.stack([((grid_y - 12) ** 2 + (grid_x - 6 - 2 * k) ** 2 <= 25) for k in range(slices)]).astype(np.int8)
    hr = interpolate_labels(labels, factor, 0, spacing_mm=SPACING_MM)
    x_centre = np.array([centroid(s)[1] for s in hr])
    expected = 6 + 2 * ((np.arange(slices * factor) + 0.5) / factor - 0.5)
    inside = slice(factor // 2, -factor // 2)
    assert np.abs(x_centre[inside] - expected[inside]).max() < 0.6
    assert np.unique(x_centre[inside]).size > slices  # not nearest neighbour

"""Sampling on other grids against physics (ramps, means, mirrors) and against slower independent versions."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.interpolate import make_interp_spline
from scipy.ndimage import map_coordinates

from rehrseg_nnunet.prediction.field_of_view import (
    FINEST,
    PlacedShape,
    Sampling,
    is_outside,
    placed_properties,
    sample_field_of_view,
)

RNG = np.random.default_rng(0)


def aligned(source, shape, *, before=0.0):
    """A grid over the field of view of a volume, whose faces lie `before` field-of-view units before its."""
    matrix = np.zeros((3, 4))
    for axis, n in enumerate(shape):
        matrix[axis, axis] = (2 + 2 * before) / n
        matrix[axis, 3] = matrix[axis, axis] / 2 - 1 - before
    return PlacedShape.at(shape, matrix)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, dtype=np.float64) - np.max(logits, axis=0))
    return exponentials / exponentials.sum(0)


def logits_of(*shape, dtype=np.float32):
    return RNG.normal(scale=3, size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_same_grid_changes_nothing(dtype):
    logits = logits_of(3, 5, 6, 7, dtype=dtype)
    result = sample_field_of_view(logits, aligned((5, 6, 7), (5, 6, 7)), has_regions=False)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, logits)


@pytest.mark.parametrize("off", [0.0, 4e-4])
def test_a_grid_that_meets_voxels_has_their_values_to_the_last_bit(off):
    """Where all logits of a voxel are equal, the label is the first, and stays it; headers are rounded."""
    logits = logits_of(3, 5, 6, 7)
    grid = aligned((5, 6, 7), (5, 6, 7))
    turned = np.linalg.inv(np.array([[0, 1, 0, 0], [-1, 0, 0, 4], [0, 0, 1, -2 + off], [0, 0, 0, 1.0]]))
    shape = PlacedShape.at((6, 5, 4), grid.to_field_of_view @ turned)
    result = sample_field_of_view(logits, shape, has_regions=False)
    np.testing.assert_array_equal(result, logits.transpose(0, 2, 1, 3)[:, :, ::-1, 2:6])
    assert Sampling.of((5, 6, 7), shape).meets
    assert not Sampling.of((5, 6, 7), PlacedShape.at((6, 5, 4), shape.to_field_of_view * 1.01)).meets


def spline_of(logits, factors):
    """scipy's natural spline through (K, D, H, W); the edges beyond the outer centres."""
    values = logits.astype(np.float64)
    for axis, factor in enumerate(factors, start=1):
        n = values.shape[axis]
        spline = make_interp_spline(np.arange(n), values, axis=axis, bc_type="natural")
        values = spline(((np.arange(factor * n) + 0.5) / factor - 0.5).clip(0, n - 1))
    return values


@pytest.mark.parametrize("factors", [(2, 1, 1), (1, 3, 1), (2, 2, 4)])
def test_a_finer_grid_is_a_cubic_spline(factors):
    source = (6, 7, 8)
    logits = logits_of(2, *source)
    expected = spline_of(logits, factors)
    shape = tuple(n * factor for n, factor in zip(source, factors, strict=True))
    result = sample_field_of_view(logits, aligned(source, shape), has_regions=False)
    np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 5, 6), (9, 7, 6), (6, 11, 13), (17, 14, 30)])
def test_a_ramp_stays_a_ramp(shape):
    """A voxel away from the border, beyond which the edge is repeated, at any number of voxels."""
    source = (6, 5, 6)
    positions = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in source), indexing="ij"))
    ramp = np.array([2.0, -3.0, 5.0]) @ positions.reshape(3, -1)
    logits = np.stack([np.zeros(source), ramp.reshape(source)]).astype(np.float32)
    result = sample_field_of_view(logits, aligned(source, shape), has_regions=False)
    fine = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    inside = np.all([(f > 1 / n) & (f < 1 - 1 / n) for f, n in zip(fine, source, strict=True)], axis=0)
    expected = (np.array([2.0, -3.0, 5.0]) @ fine.reshape(3, -1)).reshape(shape)
    np.testing.assert_allclose(result[1][inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("has_regions", [False, True])
@pytest.mark.parametrize("factors", [(3, 1, 1), (1, 2, 4)])
def test_coarser_voxels_hold_the_mean_probability(has_regions, factors):
    source, (a, b, c) = (6, 4, 8), factors
    logits = logits_of(3, *source)
    result = sample_field_of_view(logits, aligned(source, (6 // a, 4 // b, 8 // c)), has_regions=has_regions)
    chance = (lambda x: 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64)))) if has_regions else softmax
    expected = chance(logits).reshape(3, 6 // a, a, 4 // b, b, 8 // c, c).mean((2, 4, 6))
    np.testing.assert_allclose(chance(result), expected, atol=1e-5)


def test_finer_in_plane_and_coarser_across_slices():
    """The probabilities of what the spline gives in plane are averaged across the slices."""
    source = (6, 5, 4)
    logits = logits_of(2, *source)
    fine = sample_field_of_view(logits, aligned(source, (6, 10, 8)), has_regions=False)
    expected = softmax(fine).reshape(2, 2, 3, 10, 8).mean(2)
    result = sample_field_of_view(logits, aligned(source, (2, 10, 8)), has_regions=False)
    np.testing.assert_allclose(softmax(result), expected, atol=1e-5)


def turned(source, shape, *, step=(1.0, 1.0, 1.0), seed=2):
    """A rotated grid of voxels of a size in source voxels, with the centre of the source as its own."""
    rotation, _ = np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(seed).normal(size=(3, 3)))
    steps = rotation * np.array(step)
    offset = (np.array(source) - 1) / 2 - steps @ ((np.array(shape) - 1) / 2)
    matrix = np.concatenate([steps, offset[:, None]], 1) * (2 / np.array(source))[:, None]
    matrix[:, 3] += 1 / np.array(source) - 1
    return PlacedShape.at(shape, matrix), np.concatenate([steps, offset[:, None]], 1)


@pytest.mark.parametrize("has_regions", [False, True])
def test_a_turned_grid_is_interpolated_linearly_between_what_the_spline_gives(has_regions):
    source, shape = (9, 8, 10), (7, 12, 9)
    logits = logits_of(2, *source)
    placed, to_source = turned(source, shape)
    points = np.einsum("ij,j...->i...", to_source, np.stack([*np.indices(shape), np.ones(shape)]))
    fine_points = 2 * points + 0.5
    expected = np.stack(
        [map_coordinates(m, fine_points, order=1, mode="nearest") for m in spline_of(logits, (2, 2, 2))]
    )
    inside = np.all([(p >= -0.5) & (p <= n - 0.5) for p, n in zip(points, source, strict=True)], axis=0)
    assert 0.5 < inside.mean() < 1
    result = sample_field_of_view(logits, placed, has_regions=has_regions)
    np.testing.assert_allclose(result[:, inside], expected[:, inside], atol=1e-4)
    chance = (lambda x: 1 / (1 + np.exp(-x))) if has_regions else softmax
    outside = chance(result[:, ~inside])
    np.testing.assert_allclose(
        outside, np.array([[0.0 if has_regions else 1.0], [0.0]]) * np.ones(outside.shape), atol=1e-6
    )


def test_mirrored_logits_give_the_mirrored_result():
    source, shape = (6, 7, 5), (13, 3, 11)
    logits = logits_of(2, *source)
    result = sample_field_of_view(logits, aligned(source, shape, before=0.1), has_regions=False)
    for axis in (1, 2, 3):
        mirrored = np.flip(logits, axis).copy()
        back = np.flip(sample_field_of_view(mirrored, aligned(source, shape, before=0.1), has_regions=False), axis)
        np.testing.assert_allclose(back, result, atol=1e-4)


def test_a_small_grid_is_what_the_large_one_holds_there():
    """Only the part of the volume around it is refined, and that must not show."""
    source = (40, 4, 4)
    logits = logits_of(2, *source)
    large = aligned(source, (80, 8, 8))
    matrix = large.to_field_of_view.copy()
    matrix[0, 3] += 40 * matrix[0, 0]
    small = PlacedShape.at((6, 8, 8), matrix)
    assert Sampling.of(source, small).cut[0].start > 0
    expected = sample_field_of_view(logits, large, has_regions=False)[:, 40:46]
    np.testing.assert_allclose(sample_field_of_view(logits, small, has_regions=False), expected, atol=1e-3)


def test_very_fine_grids_are_refined_by_the_spline_up_to_a_limit():
    how = Sampling.of((4, 4, 4), aligned((4, 4, 4), (400, 4, 4)))
    assert how.finer == (FINEST, 1, 1)
    assert how.refine(torch.zeros(4, 4, 4)).shape == (4 * FINEST, 4, 4)


def test_properties_crop_to_what_the_case_covers():
    # a case of 20 voxels, cropped to 5..15 along axis 0; the grid has half its voxels and begins 2 voxels before it
    properties = {"bbox_used_for_cropping": [[5, 15], [0, 4], [0, 4]]}
    to_index = np.diag([2.0, 1.0, 1.0, 1.0])
    to_index[0, 3] = -2 + 0.5
    result = placed_properties(properties, {"spacing": [2.0, 1.0, 1.0]}, to_index, (12, 4, 4), [0, 1, 2])
    assert result["shape_before_cropping"] == (12, 4, 4)
    (start, stop), *others = result["bbox_used_for_cropping"]
    assert others == [[0, 4], [0, 4]]
    # faces at 4.5 and 14.5 in the case are 3 and 8 on the grid: its voxels 3.5 to 8.5 centred between
    assert start <= 3
    assert stop >= 9
    assert stop - start <= 7
    placed = result["shape_after_cropping_and_before_resampling"]
    assert placed == (stop - start, 4, 4)
    position = 2 * start - 1.5  # in the case, of the first voxel's centre
    np.testing.assert_allclose(placed.to_field_of_view[0, 3], 2 * (position + 0.5 - 5) / 10 - 1)


def test_a_grid_elsewhere_is_outside():
    assert not is_outside(aligned((4, 4, 4), (3, 3, 3)))
    elsewhere = aligned((4, 4, 4), (3, 3, 3)).to_field_of_view
    elsewhere[1, 3] += 5
    assert is_outside(PlacedShape.at((3, 3, 3), elsewhere))


def test_shape_keeps_its_place_between_processes():
    shape = PlacedShape.at((3, 4, 5), np.arange(12.0).reshape(3, 4))
    for copied in (pickle.loads(pickle.dumps(shape)), copy.deepcopy(shape)):
        assert copied == (3, 4, 5)
        np.testing.assert_array_equal(copied.to_field_of_view, shape.to_field_of_view)

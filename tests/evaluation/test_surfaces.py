"""Distances of surfaces: known shapes, naive versions, failures."""

import itertools
import math

import numpy as np
import pytest

from rehrseg_nnunet.evaluation.surfaces import assd, hd95, in_plane_mm, nsd


def ball(shape=(16, 16, 16), centre=(7, 7, 7), radius=4.0):
    distance = sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True))
    return distance <= radius**2


def naive_hd95(reference, prediction, spacing):
    def surface(mask):
        points = []
        for index in np.argwhere(mask):
            for axis, step in itertools.product(range(mask.ndim), (-1, 1)):
                neighbour = index.copy()
                neighbour[axis] += step
                outside = not 0 <= neighbour[axis] < mask.shape[axis]
                if outside or not mask[tuple(neighbour)]:
                    points.append(index * np.array(spacing))
                    break
        return np.array(points)

    first, second = surface(reference), surface(prediction)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    return max(np.percentile(distances.min(axis=0), 95), np.percentile(distances.min(axis=1), 95))


def test_hd95_of_a_ball_shifted_by_one_voxel():
    shifted = ball(centre=(8, 7, 7))
    assert hd95(ball(), shifted, (2.5, 10, 10)) == pytest.approx(2.5)
    assert hd95(ball(), ball(), (2.5, 10, 10)) == 0.0


def test_hd95_equals_naive_version():
    rng = np.random.default_rng(1)
    reference, prediction = rng.random((2, 6, 7, 8)) > 0.8
    spacing = (5.0, 0.7, 1.1)
    assert hd95(reference, prediction, spacing) == pytest.approx(naive_hd95(reference, prediction, spacing), rel=1e-6)


def test_hd95_at_the_border_of_the_volume():
    reference, prediction = np.zeros((2, 6, 6, 6), bool)
    reference[:3], prediction[:, :3] = True, True
    expected = naive_hd95(reference, prediction, (3, 1, 1))
    assert hd95(reference, prediction, (3, 1, 1)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_hd95_follows_its_spacing_through_permutations(order):
    rng = np.random.default_rng(2)
    reference, prediction = rng.random((2, 6, 7, 8)) > 0.85
    spacing = np.array([4.0, 0.5, 1.5])
    permuted = hd95(reference.transpose(order), prediction.transpose(order), spacing[list(order)])
    assert permuted == pytest.approx(hd95(reference, prediction, spacing))


def test_hd95_accepts_flipped_views():
    flipped = ball()[::-1], ball(centre=(8, 7, 7))[::-1]
    assert hd95(*flipped, (2.5, 2.5, 2.5)) == pytest.approx(2.5)


def test_hd95_of_one_slice_is_that_of_its_image():
    inner, outer = ball((12, 12), (6, 6), 2.0), ball((12, 12), (6, 6), 5.0)
    expected = naive_hd95(inner, outer, (1.5, 2.0))
    assert hd95(inner[:, None], outer[:, None], (1.5, 9.0, 2.0)) == pytest.approx(expected, rel=1e-6)


def test_hd95_of_one_thick_structure_slice_is_three_dimensional():
    reference, prediction = np.zeros((2, 8, 8, 8), bool)
    reference[3, 2:5, 2:5], prediction[3, 2:5, 3:6] = True, True
    expected = naive_hd95(reference, prediction, (5, 1, 1))
    assert hd95(reference, prediction, (5, 1, 1)) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [hd95, assd])
def test_a_missed_or_made_up_structure_is_as_far_away_as_the_volume_is_wide(distance):
    empty, spacing = np.zeros((16, 16, 16), bool), (4, 1, 2)
    for pair in [(empty, ball()), (ball(), empty)]:
        assert distance(*pair, spacing) == pytest.approx(math.hypot(64, 16, 32))
    assert math.isnan(distance(empty, empty, spacing))


def test_a_missed_or_made_up_structure_has_no_surface_in_common():
    empty = np.zeros((16, 16, 16), bool)
    assert nsd(empty, ball(), (1, 1, 1), tolerance_mm=100) == nsd(ball(), empty, (1, 1, 1)) == 0
    assert math.isnan(nsd(empty, empty, (1, 1, 1)))


METRICS = [hd95, assd, nsd]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, -1), (1, 1, math.nan)])
def test_bad_spacing_is_refused(metric, spacing):
    with pytest.raises(ValueError, match="spacing_mm must be 3 positive numbers"):
        metric(ball(), ball(), spacing)


@pytest.mark.parametrize("metric", METRICS)
def test_other_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="prediction_mask must have the reference's shape"):
        metric(ball(), ball()[1:], (1, 1, 1))


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_a_bad_tolerance_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance_mm must be a finite number >= 0, got"):
        nsd(ball(), ball(), (1, 1, 1), tolerance_mm=tolerance)


def naive_assd(reference, prediction, spacing):
    """Voxels of which a face neighbour is outside, and the mean of all distances to the nearest of the others."""

    def surface(mask):
        inside = np.pad(mask, 1)
        steps = [(axis, step) for axis in range(mask.ndim) for step in (-1, 1)]
        interior = np.logical_and.reduce([np.roll(inside, step, axis) for axis, step in steps])
        return np.argwhere(inside & ~interior) * np.array(spacing)

    first, second = surface(reference), surface(prediction)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    return np.concatenate([distances.min(axis=0), distances.min(axis=1)]).mean()


def test_assd_equals_naive_version():
    rng = np.random.default_rng(5)
    for spacing in [(1, 1, 1), (4, 0.7, 1.2)]:
        reference = ball() & (rng.random((16, 16, 16)) > 0.05)
        prediction = ball(centre=(8, 7, 6), radius=3.5)
        assert assd(reference, prediction, spacing) == pytest.approx(naive_assd(reference, prediction, spacing))


def test_assd_of_concentric_balls_is_the_difference_of_their_radii():
    shape, centre = (48, 48, 48), (24, 24, 24)
    distance = assd(ball(shape, centre, 15), ball(shape, centre, 19), (1, 1, 1))
    assert distance == pytest.approx(4, abs=0.2)
    assert assd(ball(shape, centre, 15), ball(shape, centre, 15), (1, 1, 1)) == 0


def slab(start, stop, size=40):
    """A cube of a fixed width along y and x, from one slice to another."""
    mask = np.zeros((size, size, size), bool)
    mask[start:stop, 4:20, 4:20] = True
    return mask


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3, 1, 1), (0.5, 1, 1)])
def test_nsd_of_shifted_boxes_is_the_area_that_still_agrees(spacing):
    """16 x 16 pixels and 24 slices, shifted by two: both ends, and the sides beyond the other box, are off."""
    reference, prediction = slab(6, 30), slab(8, 32)
    shift = 2 * spacing[0]
    assert nsd(reference, prediction, spacing, tolerance_mm=1.01 * shift) == 1
    off = nsd(reference, prediction, spacing, tolerance_mm=0.1 * spacing[0])
    end, sides = 16 * 16, 4 * 16 * spacing[0]  # of one slice
    expected = 22 * sides / (2 * end + 24 * sides)
    assert off == pytest.approx(expected, abs=0.04)


def test_nsd_of_concentric_balls_steps_at_the_difference_of_their_radii():
    shape, centre = (48, 48, 48), (24, 24, 24)
    pair = ball(shape, centre, 15), ball(shape, centre, 18)
    values = [nsd(*pair, (1, 1, 1), tolerance_mm=tolerance) for tolerance in (1, 2, 3.9)]
    assert values[0] < 0.05
    assert values[0] <= values[1] < 0.5
    assert values[2] > 0.99


def test_nsd_weights_by_area_where_hd95_counts_voxels():
    """The sides of thick slices are large: on a grid of half the slice thickness the value stays."""
    reference, prediction = slab(6, 14), slab(8, 16)
    thin = [mask.repeat(2, axis=0) for mask in (reference, prediction)]
    coarse = nsd(reference, prediction, (4, 1, 1), tolerance_mm=1)
    assert nsd(*thin, (2, 1, 1), tolerance_mm=1) == pytest.approx(coarse, abs=0.03)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_do_not_depend_on_order_unit_position_and_views(metric):
    reference, prediction = ball() & (np.indices((16, 16, 16))[0] > 5), ball(centre=(8, 6, 7), radius=3.3)
    value = metric(reference, prediction, (2, 1, 1))
    assert metric(prediction, reference, (2, 1, 1)) == pytest.approx(value)
    assert metric(reference[::-1, :, ::-1], prediction[::-1, :, ::-1], (2, 1, 1)) == pytest.approx(value)
    assert metric(reference.T, prediction.T, (1, 1, 2)) == pytest.approx(value)
    padded = [np.pad(mask, 2) for mask in (reference, prediction)]
    assert metric(*padded, (2, 1, 1)) == pytest.approx(value)
    unit = 1 if metric is nsd else 10
    assert metric(reference, prediction, (20, 10, 10)) == pytest.approx(unit * value, rel=1e-5)


def test_nsd_takes_one_pixel_of_the_slices_as_tolerance():
    reference, prediction = ball(), ball(centre=(7, 7, 8))
    for spacing in [(4, 1.5, 1.5), (1.5, 4, 1.5), (1.5, 1.5, 4)]:
        assert in_plane_mm(spacing) == 1.5
        assert nsd(reference, prediction, spacing) == nsd(reference, prediction, spacing, tolerance_mm=1.5)


def test_nsd_of_one_slice_is_that_of_its_image():
    reference, prediction = ball()[7:8], ball(centre=(7, 9, 7))[7:8]
    flat = nsd(reference[0], prediction[0], (1, 1), tolerance_mm=1)
    assert nsd(reference, prediction, (5, 1, 1), tolerance_mm=1) == flat
    assert 0 < flat < 1


@pytest.mark.parametrize("metric", METRICS)
def test_inputs_are_not_changed(metric):
    reference, prediction = ball(), ball(centre=(8, 7, 7))
    copies = reference.copy(), prediction.copy()
    metric(reference, prediction, (1, 1, 1))
    np.testing.assert_array_equal(reference, copies[0])
    np.testing.assert_array_equal(prediction, copies[1])

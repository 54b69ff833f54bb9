"""Volumes, pieces and places of mistakes, against counts by hand."""

import numpy as np
import pytest

from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.report.agreement import agreement, on_acquired_slices
from rehrseg_nnunet.report.cases import CaseOnGrid, describe_spacing, slice_axis
from rehrseg_nnunet.report.measures import (
    errors_ml,
    measure_structures,
    pieces,
    sides_reached,
    stack_overlap,
    with_sureness_of,
)
from rehrseg_nnunet.slices.grids import Grid
from rehrseg_nnunet.surfaces.structures import structures_of

STRUCTURES = structures_of({"labels": {"background": 0, "a": 1, "b": 2}})


def volume(values, factor=1):
    affine = np.diag([float(factor), 1.0, 1.0, 1.0])
    affine[0, 3] = (factor - 1) / 2
    return Volume(np.asarray(values), Grid(np.shape(values), affine))


def labels(shape=(10, 8, 8)):
    values = np.zeros(shape, np.int32)
    values[2:7, 2:6, 2:5], values[4:7, 2:6, 5:6] = 1, 2
    return values


def test_volumes_and_what_of_them_is_sure():
    found, reference = labels(), labels()
    reference[2] = 0
    probability = np.zeros((3, 10, 8, 8), np.float32)
    probability[1, 2, 2, 2:6] = 0.25, 0.75, 0.9, 0.2
    case = CaseOnGrid(volume(found, 2), None, volume(reference, 2), None, probability)
    first, second = measure_structures(case, STRUCTURES, axis=0)
    assert (first.name, second.name) == ("a", "b")
    assert first.volume_ml == pytest.approx(5 * 4 * 3 * 2 / 1000)
    assert first.reference_ml == pytest.approx(4 * 4 * 3 * 2 / 1000)
    assert (first.sure_ml, first.possible_ml) == (pytest.approx(2 * 2 / 1000), pytest.approx(3 * 2 / 1000))
    assert (first.pieces, first.reference_pieces, first.cut) == (1, 1, ())
    without = measure_structures(CaseOnGrid(volume(found), None, None, None, None), STRUCTURES, axis=0)
    assert (without[0].reference_ml, without[0].sure_ml) == (None, None)
    assert with_sureness_of(without, [first, second])[0].sure_ml == first.sure_ml


def test_pieces_touch_by_faces_edges_and_corners():
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    assert pieces(mask) == 2
    assert pieces(np.zeros((2, 2, 2), bool)) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sides_that_are_reached(axis):
    mask = np.zeros((5, 6, 7), bool)
    mask[2, 2, 2] = True
    assert sides_reached(mask, axis) == []
    np.moveaxis(mask, axis, 0)[0, 2, 2] = True
    assert sides_reached(mask, axis) == ["first slice"]
    np.moveaxis(mask, axis, 0)[-1, 2, 2] = True
    assert sides_reached(mask, axis) == ["first slice", "last slice"]
    np.moveaxis(mask, axis, 0)[2, 0, 2] = True
    assert sides_reached(mask, axis)[-1] == "edge of the slices"


def test_overlap_in_fifths_against_a_loop():
    rng = np.random.default_rng(0)
    found, true = np.zeros((14, 4, 4), np.int32), np.zeros((14, 4, 4), np.int32)
    found[2:12], true[3:13] = rng.integers(0, 3, (10, 4, 4)), rng.integers(0, 3, (10, 4, 4))
    overlap = stack_overlap(volume(found), volume(true), STRUCTURES, axis=0)
    shared, total, wrong = np.zeros(5), np.zeros(5), np.zeros(5)
    for number, index in enumerate(range(2, 13)):  # 11 slices
        fifth = int(number * 5 / 11)
        for value in (1, 2):
            ours, theirs = found[index] == value, true[index] == value
            shared[fifth] += 2 * (ours & theirs).sum()
            total[fifth] += ours.sum() + theirs.sum()
        wrong[fifth] += (found[index] != true[index]).sum()
    np.testing.assert_array_equal(overlap.shared, shared)
    np.testing.assert_array_equal(overlap.total, total)
    np.testing.assert_array_equal(overlap.wrong, wrong)
    np.testing.assert_allclose(overlap.dice, shared / total)
    assert overlap.share_at_ends == pytest.approx((wrong[0] + wrong[4]) / wrong.sum())


def test_overlap_follows_the_axis_and_of_nothing_is_not_defined():
    found, true = labels(), labels()
    true[6] = 0
    along = stack_overlap(volume(found), volume(true), STRUCTURES, axis=0)
    turned = [volume(np.moveaxis(values, 0, 2)) for values in (found, true)]
    np.testing.assert_array_equal(stack_overlap(*turned, STRUCTURES, axis=2).shared, along.shared)
    assert along.share_at_ends == 1
    other = found.copy()
    other[3, 0, 0] = 7  # no structure
    again = stack_overlap(volume(other), volume(true), STRUCTURES, axis=0)
    np.testing.assert_array_equal(again.wrong, along.wrong)
    nothing = stack_overlap(volume(0 * found), volume(0 * true), STRUCTURES, axis=0)
    assert np.isnan(nothing.dice).all()
    assert np.isnan(nothing.share_at_ends)


def test_a_single_slice_is_one_fifth():
    found = np.zeros((5, 3, 3), np.int32)
    found[2, 1, 1] = 1
    overlap = stack_overlap(volume(found), volume(found), STRUCTURES, axis=0)
    assert np.nansum(overlap.dice) == 1


def test_errors_are_missed_too_much_or_mixed_up():
    true, found = labels(), labels()
    found[2] = 0  # 12 missed
    found[8, 0, :5] = 1  # 5 too much
    found[4, 2, 2] = 2  # 1 mixed up
    assert errors_ml(volume(found, 2), volume(true, 2), STRUCTURES) == pytest.approx((0.024, 0.010, 0.002))
    assert errors_ml(volume(true), volume(true), STRUCTURES) == (0, 0, 0)


def test_thin_labels_agree_with_the_slices_they_were_made_of():
    thick = np.random.default_rng(0).integers(0, 3, (5, 6, 7)).astype(np.int32)
    thin = volume(np.repeat(thick, 4, axis=0))
    acquired = Volume(thick, Grid(thick.shape, np.array([[4, 0, 0, 1.5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])))
    np.testing.assert_array_equal(on_acquired_slices(thin, acquired), thick)
    assert agreement(thin, acquired, STRUCTURES) == 1
    shifted = volume(np.roll(thin.values, 4, axis=0))
    assert agreement(shifted, acquired, STRUCTURES) < 0.6
    assert np.isnan(agreement(volume(0 * thin.values), Volume(0 * thick, acquired.grid), STRUCTURES))


def test_labels_of_any_grid_are_compared_at_the_acquired_voxels():
    thick = np.zeros((6, 8, 8), np.int32)
    thick[2:4, 2:6, 2:6] = 1
    fine = np.repeat(np.repeat(np.repeat(thick, 3, 0), 2, 1), 2, 2)
    affine = np.diag([1, 0.5, 0.5, 1.0])
    affine[:3, 3] = [-1, -0.25, -0.25]
    acquired = Volume(thick, Grid(thick.shape, np.diag([3, 1, 1, 1.0])))
    np.testing.assert_array_equal(on_acquired_slices(Volume(fine, Grid(fine.shape, affine)), acquired), thick)


def test_slices_are_across_the_largest_spacing():
    assert slice_axis(volume(np.zeros((2, 2, 2)), 3)) == 0
    assert slice_axis(Volume(np.zeros((2, 2, 2)), Grid((2, 2, 2), np.diag([1, 1, 2.0, 1])))) == 2
    assert describe_spacing((1.0, 4.0, 0.5)) == "4 x 1 x 0.5 mm"

"""Turned acquisitions: which voxel comes from where, planes that stay exact, labels on these planes only."""

from types import SimpleNamespace

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.interpolate import CubicSpline

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.turned import AXES, TurnedCases

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
UNLABELLED = 3
SHAPE = (5, 7, 9)
ALL = slice(None)
both_axes = pytest.mark.parametrize("axis", ["x", "y"])
factors = pytest.mark.parametrize("factor", [2, 3, 4])


def case(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, *SHAPE)).astype(np.float32), rng.integers(0, 3, (1, *SHAPE)).astype(np.int8)


def turned(axis, factor, image, labels):
    properties = {"class_locations": class_locations(labels, LABELS)}
    dataset = SimpleNamespace(identifiers=["case"], load_case=lambda _: (image, labels, None, properties))
    return TurnedCases(dataset, factor=factor, unlabelled=UNLABELLED).turned("case", axis=axis)


def whole(view):
    return view[tuple(slice(0, n) for n in view.shape)]


def naive(image, axis, factor):
    """Every line along z by scipy, the axes swapped, the last pixels repeated."""
    z = np.arange(factor * (image.shape[1] - 1) + 1) / factor
    lines = CubicSpline(np.arange(image.shape[1]), image, axis=1, bc_type="natural")(z)
    swapped = lines.swapaxes(1, AXES[axis])
    return np.pad(swapped, [(0, 0), (0, -swapped.shape[1] % factor), (0, 0), (0, 0)], mode="edge")


@both_axes
@factors
def test_the_image_is_the_spline_along_z_with_the_axes_swapped(axis, factor):
    image, labels = case()
    view = turned(axis, factor, image, labels)[0]
    expected = naive(image, axis, factor)
    assert view.shape == expected.shape
    np.testing.assert_allclose(whole(view), expected, atol=1e-5)


@both_axes
@factors
def test_any_part_is_the_same_part_of_the_whole(axis, factor):
    views = turned(axis, factor, *case())[:2]
    rng = np.random.default_rng(1)
    for view in views:
        full = whole(view)
        for _ in range(20):
            ends = [sorted(rng.choice(n + 1, 2, replace=False)) for n in view.shape[1:]]
            index = (slice(0, view.shape[0]), *(slice(int(a), int(b)) for a, b in ends))
            np.testing.assert_allclose(view[index], full[index], atol=1e-6)


@both_axes
@factors
def test_image_and_labels_are_the_acquired_ones_on_the_acquired_planes(axis, factor):
    image, labels = case()
    views = turned(axis, factor, image, labels)[:2]
    for view, source in zip(views, (image, labels), strict=True):
        swapped = whole(view).swapaxes(1, AXES[axis])
        planes = swapped[:, ::factor, : source.shape[2], : source.shape[3]]
        np.testing.assert_allclose(planes, source, atol=1e-6)


@both_axes
@factors
def test_nothing_else_has_a_label(axis, factor):
    labels = whole(turned(axis, factor, *case())[1]).swapaxes(1, AXES[axis])
    off_plane = np.arange(labels.shape[1]) % factor != 0
    assert (labels[:, off_plane] == UNLABELLED).all()
    beyond = (ALL, ALL, ALL, slice(SHAPE[2], None)) if axis == "x" else (ALL, ALL, slice(SHAPE[1], None))
    assert (labels[beyond] == UNLABELLED).all()


def test_outside_nnunets_mask_stays_outside_between_planes():
    image, labels = case()
    labels[:, :2] = -1
    lines = whole(turned("x", 4, image, labels)[1])[0, : SHAPE[2]]
    assert (lines[..., :7] != UNLABELLED).sum() == (lines[..., :6] == -1).sum()  # planes 0 and 1 and what is nearest
    assert (lines[..., 7] == UNLABELLED).all()


@both_axes
def test_class_locations_are_voxels_of_their_class(axis):
    image, labels = case()
    _, view, _, properties = turned(axis, 4, image, labels)
    full = whole(view)
    for value in (1, 2):
        found = properties["class_locations"][value]
        assert len(found)
        assert (full[tuple(found.T)] == value).all()
    assert (turned(axis, 4, image, labels)[3]["class_locations"][1] == properties["class_locations"][1]).all()


def test_a_single_slice_is_a_plane():
    image, labels = (part[:, :1] for part in case())
    view = turned("x", 4, image, labels)[0]
    assert view.shape == (2, 12, 7, 1)
    np.testing.assert_array_equal(whole(view)[:, :9, :, 0], image[:, 0].swapaxes(1, 2))


def test_planes_smaller_than_r_are_completed():
    image, labels = (part[..., :2] for part in case())
    image_view, labels_view, _, _ = turned("x", 4, image, labels)
    assert image_view.shape[1] == 4
    np.testing.assert_array_equal(whole(image_view)[:, 2], whole(image_view)[:, 1])
    assert (whole(labels_view)[:, 2:] == UNLABELLED).all()


def test_both_axes_take_turns():
    image, labels = case()
    properties = {"class_locations": class_locations(labels, LABELS)}
    dataset = SimpleNamespace(identifiers=["case"], load_case=lambda _: (image, labels, None, properties))
    np.random.seed(0)  # noqa: NPY002
    cases = TurnedCases(dataset, factor=4, unlabelled=UNLABELLED)
    shapes = {cases.load_case("case")[0].shape for _ in range(20)}
    assert shapes == {(2, 12, 7, 17), (2, 8, 17, 9)}

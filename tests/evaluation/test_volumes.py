"""Volumes that are looked at together: where their voxels are in mm, whatever the order of a file's axes."""

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.evaluation.volumes import Volume, largest_section, read_volume, standing, window_around
from rehrseg_nnunet.slices.grids import Grid

SPACING = (3.0, 2.0, 1.0)  # S, P, L


def volume(values, *, spacing=SPACING, origin=(10.0, 20.0, 30.0)):
    """Standing, with the position (S, P, L) of its first voxel."""
    affine = np.zeros((4, 4))
    for axis, direction in enumerate((2, 1, 0)):  # of LPS coordinates
        affine[direction, axis], affine[direction, 3] = spacing[axis], origin[axis]
    affine[3, 3] = 1
    return Volume(np.asarray(values), Grid(np.asarray(values).shape, affine))


def test_edges_are_half_a_voxel_beyond_the_centres():
    shown = volume(np.zeros((2, 3, 4)))
    np.testing.assert_allclose(shown.box, [(8.5, 14.5), (19, 25), (29.5, 33.5)])
    np.testing.assert_allclose(shown.edges(1), [19, 21, 23, 25])
    assert shown.voxel_ml == pytest.approx(0.006)


def test_a_plane_is_that_of_the_voxels_that_hold_the_position():
    values = np.arange(24).reshape(2, 3, 4)
    shown = volume(values)
    np.testing.assert_array_equal(shown.plane(0, 11.4), values[0])
    np.testing.assert_array_equal(shown.plane(0, 11.6), values[1])
    np.testing.assert_array_equal(shown.plane(2, 31.0), values[:, :, 1])
    np.testing.assert_array_equal(shown.plane(1, -100), values[:, 0])
    np.testing.assert_array_equal(shown.plane(1, 100), values[:, 2])


@pytest.mark.parametrize("orientation", ["LPS", "RAI", "PIR", "ASL"])
def test_files_of_every_orientation_stand_up_alike(tmp_path, orientation):
    rng = np.random.default_rng(0)
    image = sitk.GetImageFromArray(rng.normal(size=(4, 5, 6)).astype(np.float32))
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((7.0, -8.0, 9.0))
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(sitk.DICOMOrient(image, orientation), str(tmp_path / "b.nii.gz"))
    first, second = (read_volume(tmp_path / f"{name}.nii.gz") for name in "ab")
    np.testing.assert_array_equal(first.values, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(second.values, first.values)
    np.testing.assert_allclose(second.box, first.box, atol=1e-4)
    np.testing.assert_allclose(first.box[:, 0], [9 - 1.5, -8 - 1, 7 - 0.5], atol=1e-5)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.nii\.gz does not exist"):
        read_volume(tmp_path / "a.nii.gz")


def test_turned_volumes_are_resampled_and_others_are_not():
    ramp = np.broadcast_to(np.arange(12.0)[:, None, None], (12, 12, 12))
    target = volume(np.zeros((4, 4, 4)), spacing=(1, 1, 1), origin=(4, 4, 4))
    source = volume(ramp, spacing=(1, 1, 1), origin=(0, 0, 0))
    assert source.with_axes_of(target, order=1) is source
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]  # around S: the ramp stays
    turned = Volume(ramp, Grid((12, 12, 12), turn @ source.grid.affine))
    found = turned.with_axes_of(target, order=1)
    np.testing.assert_allclose(found.box, target.box)
    np.testing.assert_allclose(found.values, np.broadcast_to(np.arange(4.0, 8)[:, None, None], (4, 4, 4)), atol=1e-4)


def test_the_window_is_around_all_labels_inside_the_scan():
    scan = volume(np.zeros((8, 8, 8)), spacing=(1, 1, 1), origin=(0.5, 0.5, 0.5))
    first, second = np.zeros((8, 8, 8), int), np.zeros((8, 8, 8), int)
    first[3, 4, 5], second[7, 4, 2] = 1, 2
    labels = [volume(values, spacing=(1, 1, 1), origin=(0.5, 0.5, 0.5)) for values in (first, second)]
    np.testing.assert_allclose(window_around(labels, margin_mm=2, within=scan), [(1, 8), (2, 7), (0, 8)])
    np.testing.assert_allclose(window_around(labels[:1], margin_mm=0, within=scan), [(3, 4), (4, 5), (5, 6)])
    np.testing.assert_allclose(window_around([scan], margin_mm=2, within=scan), scan.box)


def test_the_largest_section_shows_most_of_the_structure():
    labels = np.zeros((5, 5, 5), int)
    labels[1, 1:4, 1], labels[3, 2, 2:4] = 1, 1
    shown = volume(labels, spacing=(1, 1, 1), origin=(0, 0, 0))
    assert [largest_section(shown, axis) for axis in range(3)] == [1, 2, 1]
    assert largest_section(volume(np.zeros((5, 3, 3))), 0) == pytest.approx(10 + 2 * 3)
    assert standing(labels, shown.grid).values is not None

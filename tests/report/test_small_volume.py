"""Crops and coarser volumes have their values where they were."""

import gzip

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine

from rehrseg_nnunet.report.small_volume import SmallVolume, blank, box_corners_mm, cropped, renumbered

OBLIQUE = np.array([[0.1, -0.9, 0.3, 20], [1.2, 0.2, 0.1, -7], [0.1, 0.2, 3.9, 3], [0, 0, 0, 1]])
AFFINES = [np.diag([1.0, 1.5, 4.0, 1.0]), np.diag([-1.0, -1.0, 3.0, 1.0])[:, [2, 0, 1, 3]], OBLIQUE]


def image(array, affine):
    return nibabel.Nifti1Image(array, affine)


def decoded(volume):
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(volume.encoded()))


def positions(shape, affine):
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return apply_affine(affine, indices)


def ramp(shape, affine):
    return (positions(shape, affine) @ [0.3, -0.7, 1.1]).astype(np.float32)


def ball(shape, affine, *, centre, radius):
    return (np.linalg.norm(positions(shape, affine) - centre, axis=-1) <= radius).astype(np.int16)


@pytest.mark.parametrize("affine", AFFINES)
def test_a_crop_holds_the_labels_and_the_margin_and_stays_where_it_was(affine):
    shape = (30, 24, 20)
    centre = apply_affine(affine, [14, 11, 9])
    labels = image(ball(shape, affine, centre=centre, radius=5), affine)
    found = cropped(labels, "labels", box_corners_mm(labels), margin_mm=3)
    whole, part = np.asarray(labels.dataobj), found.array
    assert part.sum() == whole.sum() > 0
    assert part.size < whole.size / 2
    np.testing.assert_allclose(
        positions(part.shape, found.affine)[part > 0], positions(shape, affine)[whole > 0], atol=1e-9
    )
    for axis in range(3):  # two voxels is what rounding may add
        beside = np.flatnonzero((part > 0).any(axis=tuple({0, 1, 2} - {axis})))[0] * found.spacing_mm[axis]
        assert 3 <= beside <= 3 + 2 * found.spacing_mm[axis]


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("kind", ["scan", "uncertainty"])
def test_a_ramp_stays_a_ramp_however_coarse(affine, kind):
    volume = SmallVolume(kind, ramp((17, 12, 20), affine), affine)
    coarse = volume.coarser()
    assert coarse.halvings == 1
    assert coarse.array.size < volume.array.size * 0.6
    inner = (slice(0, -1),) * 3  # the last voxel of an odd axis is half beside the volume
    expected = ramp(coarse.array.shape, coarse.affine)
    np.testing.assert_allclose(coarse.array[inner], expected[inner], atol=1e-4)


def test_only_the_finest_axes_are_halved():
    volume = SmallVolume("scan", np.zeros((20, 20, 20), np.float32), np.diag([1.0, 1.2, 4.0, 1.0]))
    assert volume.coarser().array.shape == (10, 10, 20)
    assert SmallVolume("scan", np.zeros((6, 6, 20), np.float32), np.diag([1.0, 1.0, 4.0, 1.0])).coarser() is None


@pytest.mark.parametrize("affine", AFFINES)
def test_coarser_labels_are_every_second_voxel(affine):
    labels = ball((20, 20, 16), affine, centre=apply_affine(affine, [9, 9, 7]), radius=6).astype(np.uint8)
    coarse = SmallVolume("labels", labels, affine).coarser()
    indices = apply_affine(np.linalg.inv(affine), positions(coarse.array.shape, coarse.affine))
    assert np.abs(indices - np.rint(indices)).max() < 1e-9
    np.testing.assert_array_equal(coarse.array, labels[tuple(np.rint(indices).astype(int).transpose(3, 0, 1, 2))])


def test_integers_of_a_scan_are_stored_exactly():
    array = np.random.default_rng(1).integers(-1000, 3000, (6, 7, 8)).astype(np.float32)
    found = decoded(SmallVolume("scan", array, OBLIQUE, bits=16))
    assert found.get_data_dtype() == np.int16
    np.testing.assert_array_equal(found.get_fdata(), array)
    np.testing.assert_allclose(found.affine, OBLIQUE, atol=1e-5)


@pytest.mark.parametrize(("kind", "bits"), [("scan", 16), ("scan", 8), ("uncertainty", 8)])
def test_other_values_are_right_within_half_a_step(kind, bits):
    array = np.random.default_rng(1).normal(3, 1, (12, 12, 12)).clip(1, 5).astype(np.float32)
    found = decoded(SmallVolume(kind, array, np.eye(4), bits=bits)).get_fdata()
    low, high = np.percentile(array, (0.1, 99.9)) if (kind, bits) == ("scan", 8) else (array.min(), array.max())
    assert np.abs(found - array.clip(low, high)).max() < 0.51 * (high - low) / (2**bits - 1) + 1e-5


def test_one_hot_voxel_leaves_a_scan_its_shades():
    array = np.linspace(0, 1, 4096, dtype=np.float32).reshape(16, 16, 16)
    array[3, 3, 3] = 1000
    volume = SmallVolume("scan", array, np.eye(4))
    assert len(np.unique(decoded(volume).get_fdata())) > 200
    assert volume.window[1] < 1.1


def test_a_constant_volume_is_stored():
    for kind in ("scan", "uncertainty"):
        volume = SmallVolume(kind, np.full((4, 4, 4), 7, np.float32), np.eye(4))
        np.testing.assert_allclose(decoded(volume).get_fdata(), 7)
        low, high = volume.window
        assert low < high


def test_labels_are_numbered_with_a_rim_and_keep_their_places():
    labels = np.zeros((4, 5, 6), np.int16)
    labels[0, 0, 0], labels[3, 4, 5], labels[1, 1, 1] = 300, 7, -1
    found = renumbered(SmallVolume("labels", labels, OBLIQUE), [7, 300])
    assert found.array.dtype == np.uint8
    where = {int(value): apply_affine(found.affine, np.argwhere(found.array == value)[0]) for value in (1, 2)}
    assert np.count_nonzero(found.array) == 2
    np.testing.assert_allclose(where[2], apply_affine(OBLIQUE, [0, 0, 0]))
    np.testing.assert_allclose(where[1], apply_affine(OBLIQUE, [3, 4, 5]))
    assert decoded(found).header.get_intent()[0] == "label"


def test_nothing_else_of_the_header_gets_into_the_page():
    named = image(np.ones((4, 4, 4), np.float32), np.eye(4))
    named.header["descrip"] = b"Jane Doe"
    named.header["db_name"] = b"Jane Doe"
    volume = cropped(named, "scan", np.empty((0, 3)), margin_mm=1)
    assert b"Jane" not in gzip.decompress(volume.encoded())
    assert volume.array.shape == (4, 4, 4)


def test_values_that_are_no_numbers_become_numbers():
    array = np.ones((4, 4, 4), np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    volume = cropped(image(array, np.eye(4)), "scan", np.empty((0, 3)), margin_mm=1)
    assert np.isfinite(decoded(volume).get_fdata()).all()


def test_the_blank_grid_has_the_voxels_of_the_volume_and_no_size():
    volume = SmallVolume("labels", np.ones((50, 60, 40), np.uint8), OBLIQUE)
    grid = blank(volume)
    assert decoded(grid).shape == (50, 60, 40)
    assert len(grid.encoded()) < 2000
    assert not decoded(grid).get_fdata().any()

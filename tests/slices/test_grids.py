import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.spatial.transform import Rotation

from rehrseg_nnunet.slices.grids import (
    Grid,
    corner_distance_mm,
    grid_from_properties,
    onto_reference,
    to_reference_order,
)

OBLIQUE = Rotation.from_euler("xyz", [12, -7, 20], degrees=True).as_matrix()


def oblique_image(shape=(4, 5, 6), spacing=(0.7, 0.9, 3.0), origin=(-80.0, 55.0, 120.0)):
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 9, shape).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(OBLIQUE.ravel().tolist())
    return image


def read(path, reader=SimpleITKIO):
    array, properties = reader().read_images([str(path)])
    return array[0], grid_from_properties(properties, array.shape[1:])


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_voxel_positions_are_those_of_the_file(tmp_path, ending):
    image = oblique_image()
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    _, grid = read(tmp_path / f"a{ending}")
    for index in [(0, 0, 0), (3, 0, 0), (1, 2, 5)]:
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(grid.affine[:3, :3] @ index + grid.affine[:3, 3], expected, atol=1e-4)
    np.testing.assert_allclose(grid.spacing_mm, (3.0, 0.9, 0.7), atol=1e-6)


def test_readers_agree_on_an_oblique_nifti(tmp_path):
    sitk.WriteImage(oblique_image(), str(tmp_path / "a.nii.gz"))
    array, grid = read(tmp_path / "a.nii.gz")
    for reader in (NibabelIO, NibabelIOWithReorient):
        other, other_grid = read(tmp_path / "a.nii.gz", reader)
        moved = onto_reference(other, other_grid, grid, file="a", reference_file="b")
        np.testing.assert_array_equal(moved, array)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_other_storage_order_of_the_same_points_is_undone(tmp_path, order, flips):
    image = oblique_image()
    stored = sitk.Flip(sitk.PermuteAxes(image, order), [bool(flip) for flip in flips])
    # SimpleITK's flip keeps the points; check that before relying on it.
    resampled = sitk.Resample(stored, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), sitk.GetArrayFromImage(image))
    for name, content in (("a", image), ("b", stored)):
        sitk.WriteImage(content, str(tmp_path / f"{name}.nrrd"))
    (array, grid), (other, other_grid) = read(tmp_path / "a.nrrd"), read(tmp_path / "b.nrrd")
    moved = onto_reference(other, other_grid, grid, file="b", reference_file="a")
    np.testing.assert_array_equal(moved, array)


def test_equal_shapes_with_another_origin_are_refused():
    grid = Grid((4, 5, 6), np.diag([3.0, 1, 1, 1]))
    shifted = Grid(grid.shape, grid.affine.copy())
    shifted.affine[:3, 3] = (1.5, 0, 0)
    message = r"p\.nrrd .*spacing \(3, 1, 1\) mm .*, origin \(1\.5, 0, 0\).*up to 1\.5 mm apart.*predict --grid r\.nrrd"
    with pytest.raises(ValueError, match=message):
        onto_reference(np.zeros(grid.shape), shifted, grid, file="p.nrrd", reference_file="r.nrrd")


@pytest.mark.parametrize("edge_mm", [0.0004, 1.0, 50.0])
def test_the_tolerance_is_a_tenth_of_the_smallest_voxel_edge_at_the_corners(edge_mm):
    voxels = np.diag([3 * edge_mm, edge_mm, 2 * edge_mm, 1])
    grid = Grid((4, 5, 6), voxels)
    array = np.arange(120.0).reshape(grid.shape)
    stretched = voxels.copy()
    stretched[0, 0] += 0.09 * edge_mm / 3
    moved = onto_reference(array, Grid(grid.shape, stretched), grid, file="p", reference_file="r")
    np.testing.assert_array_equal(moved, array)
    stretched[0, 0] += 0.02 * edge_mm / 3
    assert corner_distance_mm(Grid(grid.shape, stretched), grid) == pytest.approx(0.11 * edge_mm)
    with pytest.raises(ValueError, match="apart"):
        onto_reference(array, Grid(grid.shape, stretched), grid, file="p", reference_file="r")


def test_thin_slices_over_the_same_field_of_view_are_refused():
    lr = Grid((4, 5, 6), np.diag([4.0, 1, 1, 1]))
    hr_affine = np.diag([1.0, 1, 1, 1])
    hr_affine[0, 3] = -1.5
    with pytest.raises(ValueError, match=r"shape \(16, 5, 6\).*shape \(4, 5, 6\)"):
        onto_reference(np.zeros((16, 5, 6)), Grid((16, 5, 6), hr_affine), lr, file="p", reference_file="r")


def test_a_mirrored_volume_about_another_centre_is_refused():
    grid = Grid((4, 5, 6), np.eye(4))
    mirrored = np.diag([-1.0, 1, 1, 1])
    mirrored[0, 3] = 2.0
    with pytest.raises(ValueError, match="up to 1 mm apart"):
        onto_reference(np.zeros(grid.shape), Grid(grid.shape, mirrored), grid, file="p", reference_file="r")


def test_axes_without_a_partner_stay():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [45, 40, 45], degrees=True).as_matrix()[:, [0, 0, 1]]
    array, grid = np.zeros((2, 3, 4)), Grid((2, 3, 4), affine)
    moved, moved_grid = to_reference_order(array, grid, Grid((2, 3, 4), np.eye(4)))
    assert moved is array
    assert moved_grid is grid


def test_formats_without_geometry_compare_by_spacing():
    grid = grid_from_properties({"spacing": (2.0, 1.0, 1.0)}, (3, 4, 5))
    assert grid.spacing_mm == (2.0, 1.0, 1.0)
    other = grid_from_properties({"spacing": (2.5, 1.0, 1.0)}, (3, 4, 5))
    assert corner_distance_mm(grid, other) == pytest.approx(1.0)


def test_two_dimensional_files(tmp_path):
    image = sitk.GetImageFromArray(np.zeros((5, 6), np.float32))
    image.SetSpacing((0.5, 0.8))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    array, grid = read(tmp_path / "a.nrrd")
    assert array.shape == grid.shape == (1, 5, 6)
    assert grid.spacing_mm == pytest.approx((1.0, 0.8, 0.5))


def test_four_dimensional_files_are_refused():
    with pytest.raises(ValueError, match="4 dimensions"):
        grid_from_properties({"sitk_stuff": {"spacing": (1, 1, 1, 1)}}, (3, 4, 5))
    with pytest.raises(ValueError, match="3 axes"):
        grid_from_properties({"spacing": (1, 1)}, (3, 4))


def test_sheared_nifti_is_compared_by_its_points(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4), np.float32), affine), tmp_path / "a.nii.gz")
    _, grid = read(tmp_path / "a.nii.gz", NibabelIO)
    np.testing.assert_allclose(grid.corners_mm[-1], (-(5 + 0.2 * 4), -4, 3), atol=1e-5)

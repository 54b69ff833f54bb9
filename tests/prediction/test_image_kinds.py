import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.image_kinds import Volume, from_case, like, to_case, to_nifti, to_volume

READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]
TURNS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def volume(order=(0, 1, 2), signs=(1, 1, 1), angle=0.15):
    """Values that differ everywhere, on an oblique grid whose array axes are permuted and flipped."""
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    axes = (rotation * (1.0, 1.5, 4.0))[:, list(order)] * signs
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, (-3.0, 20.0, 7.0)
    return Volume(np.arange(60, dtype=np.float32).reshape(3, 4, 5), affine)


def assert_same(a, b):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-5)


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_every_kind_says_where_a_voxel_is(order, signs):
    """Against each library's own account of the position of a voxel."""
    made = volume(order, signs)
    image = like(made, sitk.Image([1, 1, 1], sitk.sitkUInt8))
    for index in ((0, 0, 0), (2, 1, 4)):
        ras = made.affine @ [*index, 1]
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(lps, (-ras[0], -ras[1], ras[2]), atol=1e-9)
        assert image.GetPixel(index) == made.values[index]
    assert_same(to_volume(image), made)
    assert_same(to_volume(to_nifti(made)), made)
    array, affine = like(made, (made.values, made.affine))
    assert_same(to_volume((array, affine)), made)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("order", "signs"), TURNS[::5])
def test_a_case_is_what_the_models_reader_reads_from_a_file(tmp_path, reader, order, signs):
    made = volume(order, signs)
    nibabel.save(to_nifti(made), tmp_path / "a.nii")
    expected, properties = reader().read_images([str(tmp_path / "a.nii")])
    data, own = to_case([made], reader, ["image"])
    np.testing.assert_array_equal(data, expected)
    assert data.dtype == np.float32
    np.testing.assert_allclose(own["spacing"], properties["spacing"], rtol=1e-6)
    # and a result goes back to the file's axes, from either's properties
    for each in (own, properties):
        assert_same(from_case(data[0], each), made)


def test_spacings_are_as_exact_as_headers():
    """nnU-Net compares them with limits: 3.0000000001 / 1 must not be above 3."""
    for angle in np.linspace(0, 1, 50):
        assert to_case([volume(angle=angle)], NibabelIO, ["image"])[1]["spacing"] == [4.0, 1.5, 1.0]


def test_channels_are_stacked_in_their_order():
    first, second = volume(), volume()
    second = Volume(second.values + 100, second.affine)
    data, _ = to_case([first, second], SimpleITKIO, ["a", "b"])
    assert data.shape == (2, 5, 4, 3)
    assert data[1].min() == 100


def test_refuses_channels_on_different_grids():
    first, moved = volume(), volume(signs=(1, 1, -1))
    with pytest.raises(
        UnusableImageError, match=r"^image\[1\] must have the voxels of image\[0\] at the same physical"
    ):
        to_case([first, moved], SimpleITKIO, ["image[0]", "image[1]"])


def test_refuses_models_without_geometry():
    with pytest.raises(NotImplementedError, match="a model of 3D files with geometry, got one of Tiff3DIO"):
        to_case([volume()], Tiff3DIO, ["image"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ((np.zeros((2, 2)), np.eye(4)), r"must be 3D with one real value per voxel, got shape \(2, 2\)"),
        ((np.zeros((2, 2, 2, 2)), np.eye(4)), "a list holds the channels of one case"),
        ((np.zeros((2, 2, 2), complex), np.eye(4)), "real value"),
        ((np.zeros((2, 2, 2)), np.eye(3)), r"must have a \(4, 4\) affine"),
        ((np.zeros((2, 2, 2)), np.diag([1, 1, 0, 1])), "of full rank"),
        ((np.zeros((2, 2, 2)), np.diag([1, 1, np.nan, 1])), "finite"),
        (sitk.Image([2, 2], sitk.sitkFloat32), "must be 3D"),
        (sitk.Image([2, 2, 2], sitk.sitkVectorFloat32, 2), "must be 3D with one real value"),
    ],
)
def test_refuses_what_is_no_scan(image, message):
    with pytest.raises(UnusableImageError, match=message):
        to_volume(image)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 2)), 3, None])
def test_refuses_other_kinds(image):
    with pytest.raises(TypeError, match="must be a path, a nibabel or SimpleITK image, or"):
        to_volume(image)


def test_further_axes_of_length_1_are_left_out_as_of_files():
    values = np.arange(24.0).reshape(2, 3, 4, 1)
    np.testing.assert_array_equal(to_volume(nibabel.Nifti1Image(values, np.eye(4))).values, values[..., 0])
    with pytest.raises(UnusableImageError, match="must be 3D"):
        to_volume(nibabel.Nifti1Image(np.concatenate([values, values], axis=3), np.eye(4)))

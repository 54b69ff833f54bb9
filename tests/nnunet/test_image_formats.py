"""Images in every format that nnU-Net's reader-writers know."""

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.nnunet.whole_files import whole_files

# axes of the file run to A, L and I
TURNED = np.array([[0, -0.9, 0, 30.0], [0.7, 0, 0, -20.0], [0, 0, -3.0, 10.0], [0, 0, 0, 1]])


def values(shape=(4, 5, 6)):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("reader", [NibabelIOWithReorient, SimpleITKIOWithReorient])
def test_readers_that_turn_axes_turn_them_back(tmp_path, reader):
    nibabel.save(nibabel.Nifti1Image(values((6, 5, 4)), TURNED), tmp_path / "a.nii.gz")
    files = whole_files(reader)()
    image, properties = files.read_images([str(tmp_path / "a.nii.gz")])
    files.write_image(image[0] + 1, str(tmp_path / "b.nii.gz"), properties)
    first, second = (nibabel.load(tmp_path / f"{name}.nii.gz") for name in "ab")
    np.testing.assert_allclose(second.affine, TURNED, atol=1e-5)
    np.testing.assert_allclose(second.get_fdata(), first.get_fdata() + 1, atol=1e-5)


def test_tif_keeps_values_and_spacing(tmp_path):
    files = whole_files(Tiff3DIO)()
    image = values()
    files.write_image(image, str(tmp_path / "a.tif"), {"spacing": (3.0, 0.7, 0.9)})
    found, properties = Tiff3DIO().read_seg(str(tmp_path / "a.tif"))
    np.testing.assert_array_equal(found[0], image)
    assert properties["spacing"] == [3.0, 0.7, 0.9]


@pytest.mark.parametrize("ending", [".png", ".bmp"])
def test_formats_of_256_grey_values_hold_the_robust_range(tmp_path, ending):
    image = values((1, 40, 50)) * 20 - 300
    whole_files(NaturalImage2DIO)().write_image(image, str(tmp_path / f"a{ending}"), {"spacing": (999, 1, 1)})
    found = NaturalImage2DIO().read_images([str(tmp_path / f"a{ending}")])[0][0]
    low, high = np.percentile(image, (0.5, 99.5))
    np.testing.assert_allclose(found, 255 * ((image - low) / (high - low)).clip(0, 1), atol=0.51)


def test_a_constant_image_is_black(tmp_path):
    whole_files(NaturalImage2DIO)().write_image(np.ones((1, 4, 5)), str(tmp_path / "a.png"), {"spacing": (999, 1, 1)})
    assert not NaturalImage2DIO().read_images([str(tmp_path / "a.png")])[0].any()


def test_an_image_of_two_dimensions_stays_one(tmp_path):
    plane = sitk.GetImageFromArray(values((5, 6)))
    plane.SetSpacing((0.5, 0.8))
    sitk.WriteImage(plane, str(tmp_path / "a.nrrd"))
    files = whole_files(SimpleITKIO)()
    image, properties = SimpleITKIO().read_images([str(tmp_path / "a.nrrd")])
    files.write_image(image[0], str(tmp_path / "b.nrrd"), properties)
    written = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(plane))
    assert written.GetSpacing() == plane.GetSpacing()

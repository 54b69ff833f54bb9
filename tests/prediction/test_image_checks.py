import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.field_of_view import PlacedShape
from rehrseg_nnunet.prediction.image_checks import (
    check_image,
    check_output_size,
    failed_case,
    naming,
    raise_failures,
    voxels_after_cropping,
)


def image(shape=(1, 4, 8, 8), value=1.0):
    return np.full(shape, value, dtype=np.float32)


def check(tiny, data, *, spacing=None, axis=0):
    hr = tiny.predictor(axis=axis)
    in_file_order = np.array(tiny.SPACING)[list(hr.plans_manager.transpose_backward)]
    spacing = in_file_order if spacing is None else spacing
    check_image(data, spacing, "scan.nii.gz", hr.plans_manager, hr.configuration_manager.lr)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_thick_slice_is_enough(tiny, axis):
    shape = [8, 8]
    shape.insert(axis, 1)
    check(tiny, image((1, *shape)), axis=axis)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_refuses_intensities_that_are_not_finite(tiny, value):
    data = image()
    data[0, 1, 2, 3] = value
    with pytest.raises(UnusableImageError, match=r"scan\.nii\.gz must hold finite values"):
        check(tiny, data)


def test_refuses_another_number_of_channels(tiny):
    with pytest.raises(UnusableImageError, match="as many channels as the training data, 1, got 2"):
        check(tiny, image((2, 4, 8, 8)))


def test_refuses_what_nnunet_would_resample_to_nothing(tiny):
    """Two slices of 1 mm, then one: half of the planned 4 mm, which nnU-Net rounds to 0 slices, and less."""
    check(tiny, image((1, 3, 8, 8)), spacing=(1.0, 1.0, 1.1))
    message = r"more than half a planned voxel long \(4 x 1 x 1\.1 mm, slice axis first\), got 1 x 8 x 8\.8 mm"
    data = image((1, 3, 8, 8))
    data[:, 1:] = 0
    with pytest.raises(UnusableImageError, match=message):
        check(tiny, data, spacing=(1.0, 1.0, 1.1))


@pytest.mark.parametrize("seed", range(3))
def test_voxels_after_cropping_are_nnunets(seed):
    generator = np.random.default_rng(seed)
    data = (generator.random((2, 6, 7, 8)) < 0.02).astype(np.float32)
    assert data.any()
    assert voxels_after_cropping(data) == list(crop_to_nonzero(data)[0].shape[1:])


def test_an_empty_image_is_not_cropped():
    assert voxels_after_cropping(np.zeros((1, 3, 4, 5))) == [3, 4, 5]


def test_errors_get_the_name_once():
    with pytest.raises(UnusableImageError, match=r"^a\.nii: too short$") as raised, naming("a.nii"):
        raise ValueError("too short")
    assert isinstance(raised.value.__cause__, ValueError)
    with pytest.raises(UnusableImageError, match=r"^b\.nii is cut off$"), naming("a.nii"):
        raise UnusableImageError("b.nii is cut off")
    with pytest.raises(TypeError), naming("a.nii"):  # a bug
        raise TypeError


def test_failed_cases_are_raised_when_their_turn_comes():
    data, _, properties = failed_case(UnusableImageError("b.nii is cut off"))
    cases = [{"data_properties": {}}, {"data": data, "data_properties": properties}]
    passed = raise_failures(cases)
    assert next(passed) is cases[0]
    with pytest.raises(UnusableImageError, match=r"b\.nii is cut off"):
        next(passed)


def placed(shape, length):
    """A grid whose voxels are as long as a share of the scan."""
    return PlacedShape.at(shape, np.eye(3, 4) * 2 * length)


def test_refuses_a_grid_that_can_never_fit(monkeypatch):
    monkeypatch.setattr("rehrseg_nnunet.prediction.image_checks.memory_bytes", lambda: 7000)
    sizes = {"heads": 3, "source": "scan.nii.gz"}
    check_output_size("0.5mm", (10, 10, 10), placed((10, 10, 10), 0.1), **sizes)  # 2 x 3 x 1000 + 1000 bytes
    with pytest.raises(UnusableImageError, match=r"scan\.nii\.gz: --grid must fit .* 0\.5mm has 10 x 10 x 11 voxels"):
        check_output_size("0.5mm", (10, 10, 11), placed((10, 10, 10), 0.1), **sizes)


def test_refuses_voxels_much_longer_than_the_scan():
    check_output_size("9mm", (1, 1, 1), placed((1, 1, 1), 10), heads=3, source="a.nii")
    with pytest.raises(UnusableImageError, match=r"a\.nii: --grid must have voxels .* 9mm are 11 times as long"):
        check_output_size("9mm", (1, 1, 1), placed((1, 1, 1), 11), heads=3, source="a.nii")

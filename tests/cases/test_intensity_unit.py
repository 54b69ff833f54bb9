"""The intensity unit of a case."""

import numpy as np
import pytest
import torch

from rehrseg_nnunet.cases.intensity_unit import INTENSITY_UNIT, IntensityUnit


def case(*shape, seed=0):
    return np.random.default_rng(seed).normal(100, 30, size=shape).astype(np.float32)


def test_zero_is_the_mean_and_one_is_from_the_low_to_the_high_percentile():
    image = case(2, 6, 7, 8)
    image[1] = image[1] * 5 - 1000
    before = image.copy()
    unit = IntensityUnit.of_case(image)
    values = unit.apply(torch.from_numpy(image)).numpy()
    for channel in range(2):
        ordered = np.sort(image[channel].ravel().astype(np.float64))
        position = 0.005 * (ordered.size - 1)
        low, high = (np.interp([position, ordered.size - 1 - position], np.arange(ordered.size), ordered)).tolist()
        expected = (image[channel] - ordered.mean()) / (high - low)
        np.testing.assert_allclose(values[channel], expected, atol=1e-5)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_allclose(unit.undo(torch.from_numpy(values)).numpy(), image, rtol=1e-5)


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (500.0, -1000.0)])
def test_scale_and_offset_of_a_case_change_nothing(scale, offset):
    image = case(1, 4, 9, 9)
    moved = (scale * image.astype(np.float64) + offset).astype(np.float32)
    first, second = (IntensityUnit.of_case(i).apply(torch.from_numpy(i)) for i in (image, moved))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_a_crop_has_the_values_that_it_has_in_the_case():
    image = case(1, 4, 9, 9)
    image[:, :, 0] += 2000  # a bright rim, which the crop does not see
    unit, whole = IntensityUnit.of_case(image), torch.from_numpy(image)
    assert torch.equal(unit.apply(whole[:, 1:3, 4:7, 2:5]), unit.apply(whole)[:, 1:3, 4:7, 2:5])


def test_nothing_is_clipped():
    image = case(1, 10, 10, 10)
    image[0, 0, 0, 0] = 1e5
    unit = IntensityUnit.of_case(image)
    assert unit.apply(torch.from_numpy(image)).max() > 100
    assert unit.length[0] < 300  # one hot voxel does not change the unit's length


def test_a_few_bright_voxels_before_nothing_have_their_own_range():
    image = np.zeros((1, 10, 10, 10), np.float32)
    image[0, 5, 5, 3:6] = (1, 2, 3)
    assert IntensityUnit.of_case(image).length == (3.0,)


@pytest.mark.parametrize("value", [0.0, -1024.1, 3e4])
def test_constant_images_are_zero(value):
    image = np.full((1, 3, 4, 5), value, np.float32)
    image[0, 0, 0, 0] *= 1 + 1e-7  # rounding is not stretched
    assert IntensityUnit.of_case(image).apply(torch.from_numpy(image)).abs().max() < 0.01


def test_the_unit_is_stored_in_properties_of_plain_numbers():
    unit = IntensityUnit.of_case(case(2, 3, 4, 5))
    stored = unit.as_property()
    assert list(stored) == [INTENSITY_UNIT]
    assert all(type(value) is float for values in stored[INTENSITY_UNIT].values() for value in values)
    assert IntensityUnit.of_properties({"spacing": 1, **stored}) == unit


def test_cases_of_earlier_versions_have_no_unit():
    with pytest.raises(ValueError, match="earlier version: make it anew"):
        IntensityUnit.of_properties({"spacing": 1})


def test_another_number_of_channels_is_refused():
    unit = IntensityUnit.of_case(case(2, 3, 4, 5))
    with pytest.raises(ValueError, match="image must have 2 channels, got 3"):
        unit.apply(torch.zeros(3, 1, 1, 1))

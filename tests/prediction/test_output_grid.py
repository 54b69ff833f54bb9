import copy
import itertools
import pickle

import numpy as np
import pytest
import torch

from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid, OutputGrid, hr_properties
from rehrseg_nnunet.slices.slice_profile import degrade

FACTOR = 4


def linear_resize(logits, shape):
    """Independent of nnU-Net: torch's half-pixel linear interpolation."""
    values = torch.as_tensor(np.asarray(logits, dtype=np.float32))
    return torch.nn.functional.interpolate(values[None], tuple(shape), mode="trilinear")[0].numpy()


def native(logits, shape, **kwargs):
    return NativeGrid().place(logits, shape, linear_resize, **{"has_regions": False, **kwargs})


def random_logits(slices, heads=3):
    return np.random.default_rng(0).normal(scale=3, size=(heads, slices, 4, 5)).astype(np.float32)


def softmax(logits):
    exponentials = np.exp(np.asarray(logits, dtype=np.float64))
    return exponentials / exponentials.sum(0)


@pytest.mark.parametrize("has_regions", [False, True])
def test_thick_native_slices_average_probabilities(has_regions):
    logits = random_logits(3 * FACTOR)
    result = native(logits, (3, 4, 5), has_regions=has_regions)
    chance = softmax if not has_regions else (lambda x: 1 / (1 + np.exp(-np.asarray(x, dtype=np.float64))))
    expected = degrade(torch.from_numpy(chance(logits)), FACTOR, 1).numpy()
    np.testing.assert_allclose(chance(result), expected, atol=1e-5)


def test_thick_native_slices_of_another_count():
    # 11 HR slices on 3: 12 by interpolation, then averaged by 4
    logits = random_logits(11)
    fine = linear_resize(logits, (12, 4, 5))
    expected = degrade(torch.from_numpy(softmax(fine)), 4, 1).numpy()
    np.testing.assert_allclose(softmax(native(logits, (3, 4, 5))), expected, atol=1e-5)


@pytest.mark.parametrize("slices", [9, 11, 12, 20])
def test_thin_native_slices_interpolate_logits(slices):
    logits = random_logits(12)
    np.testing.assert_array_equal(native(logits, (slices, 4, 5)), linear_resize(logits, (slices, 4, 5)))


def test_native_writes_the_inputs_grid(tiny, predict_ball):
    source, result, probabilities = predict_ball(NativeGrid(), rotation=tiny.oblique())
    assert tiny.same_grid(source, result)
    assert probabilities.shape == (2, 7, 22, 24)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.2)


def test_native_slices_thinner_than_the_plans_are_not_copies(tiny, predict_ball):
    source, result, probabilities = predict_ball(NativeGrid(), size=(24, 22, 40), spacing=(1.1, 1.0, 0.8))
    assert tiny.same_grid(source, result)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.5)
    inside = probabilities[1, 22:28]  # from the middle, where symmetry makes slices equal, to the ball's end
    assert all(np.abs(a - b).max() > 1e-3 for a, b in itertools.pairwise(inside))


def test_nnunets_resampling_gets_one_class_at_a_time_and_both_spacings():
    calls = []

    def resampling(values, *arguments):
        calls.append((len(values), *arguments))
        return values[:, :8]

    logits = random_logits(12)
    result = HRGrid().resample(resampling, False, logits, (8, 4, 5), (1.0, 2.0, 3.0), (1.5, 2.0, 3.0))
    np.testing.assert_array_equal(result, logits[:, :8])
    assert calls == 3 * [(1, (8, 4, 5), (1.0, 2.0, 3.0), (1.5, 2.0, 3.0))]
    assert HRGrid().resample(resampling, False, logits, (12, 4, 5), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0)) is logits


def test_a_grid_says_where_and_how():
    class Nowhere(OutputGrid):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nowhere()
    for grid in (HRGrid(), NativeGrid()):
        assert grid.missing(["x"]) == []
        assert pickle.loads(pickle.dumps(grid)) == grid


def test_hr_properties_of_stored_cases(tiny):
    plans_manager = tiny.predictor(axis=2).plans_manager
    properties = {
        "spacing": [1.0, 1.1, 4.0],
        "shape_before_cropping": (7, 10, 12),
        "bbox_used_for_cropping": [[1, 6], [0, 9], [2, 12]],
        "shape_after_cropping_and_before_resampling": (5, 9, 10),
        "class_locations": {1: np.zeros((3, 4))},
        "sitk_stuff": {"spacing": (4.0, 1.1, 1.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())},
    }
    stored = copy.deepcopy(properties)
    result = hr_properties(properties, plans_manager, FACTOR)
    assert result["shape_before_cropping"] == (28, 10, 12)
    assert result["shape_after_cropping_and_before_resampling"] == (20, 9, 10)
    assert result["bbox_used_for_cropping"] == [[4, 24], [0, 9], [2, 12]]
    assert result["spacing"] == [1.0, 1.1, 1.0]
    assert result["sitk_stuff"]["spacing"] == (1.0, 1.1, 1.0)
    assert result["sitk_stuff"]["origin"] == (-1.5, 0.0, 0.0)
    assert "class_locations" not in result
    assert properties.keys() == stored.keys()
    assert properties["sitk_stuff"] == stored["sitk_stuff"]
    odd = {**{key: value for key, value in properties.items() if key != "sitk_stuff"}, "odd_stuff": {}}
    with pytest.raises(NotImplementedError, match="readers"):
        hr_properties(odd, plans_manager, FACTOR)

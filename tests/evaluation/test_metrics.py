import math

import numpy as np
import pytest

from rehrseg_nnunet.evaluation.metrics import dice, psnr, ssim, volume_bias


def ball(shape=(16, 16, 16), centre=(7, 7, 7), radius=4.0):
    distance = sum((axis - c) ** 2 for axis, c in zip(np.indices(shape), centre, strict=True))
    return distance <= radius**2


def test_dice_equals_set_overlap():
    rng = np.random.default_rng(0)
    reference, prediction = rng.random((2, 5, 6, 7)) > 0.6
    a, b = ({tuple(index) for index in np.argwhere(mask)} for mask in (reference, prediction))
    assert dice(reference, prediction) == pytest.approx(2 * len(a & b) / (len(a) + len(b)))


def test_dice_of_empty_masks():
    empty, full = np.zeros((3, 3), bool), np.ones((3, 3), bool)
    assert math.isnan(dice(empty, empty))
    assert dice(empty, full) == dice(full, empty) == 0.0


def test_dice_counts_only_valid_voxels():
    reference, prediction = np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0])
    assert dice(reference, prediction) == 0.5
    assert dice(reference, prediction, valid=np.array([1, 1, 0, 1])) == pytest.approx(2 / 3)
    assert math.isnan(dice(reference, prediction, valid=np.array([0, 0, 0, 1])))


def test_volume_bias_is_in_percent_of_the_reference():
    reference = ball()
    larger = reference.copy()
    larger[0, 0, : reference.sum() // 4] = True
    added = 100 * (larger.sum() - reference.sum()) / reference.sum()
    assert volume_bias(reference, larger) == pytest.approx(added)
    assert volume_bias(reference, np.zeros_like(reference)) == -100
    assert volume_bias(reference, reference[::-1]) == 0
    assert math.isnan(volume_bias(np.zeros_like(reference), reference))


def test_psnr_of_known_noise():
    reference = np.random.default_rng(3).uniform(0, 200, (8, 9, 10))
    sign = np.where(np.indices(reference.shape).sum(0) % 2, 1, -1)
    # Noise of exactly 1/100 of the range has 40 dB.
    assert psnr(reference, reference + 2 * sign, data_range=200) == pytest.approx(40.0)
    assert psnr(reference[::-1], (reference + 2 * sign)[::-1], data_range=200) == pytest.approx(40.0)


def test_equal_and_constant_images():
    image = np.random.default_rng(4).normal(size=(8, 8, 8))
    assert psnr(image, image, data_range=1) == math.inf
    assert ssim(image, image, data_range=1) == pytest.approx(1.0)
    assert math.isnan(psnr(image, image, data_range=0))
    assert math.isnan(ssim(image, image, data_range=0))


def naive_ssim(reference, prediction, data_range):
    lowest = reference.min()
    x, y = (prediction - lowest) / data_range, (reference - lowest) / data_range
    window = [min(7, size - 1 + size % 2) for size in x.shape]
    weights = np.ones(window)
    for axis, size in enumerate(window):
        along = np.exp(-(((np.arange(size) - size // 2) / 1.5) ** 2) / 2)
        weights = weights * along.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    weights /= weights.sum()
    values = []
    for start in np.ndindex(*(n - w + 1 for n, w in zip(x.shape, window, strict=True))):
        cut = tuple(slice(s, s + w) for s, w in zip(start, window, strict=True))
        mx, my = (weights * x[cut]).sum(), (weights * y[cut]).sum()
        vx, vy = (weights * (x[cut] - mx) ** 2).sum(), (weights * (y[cut] - my) ** 2).sum()
        cov = (weights * (x[cut] - mx) * (y[cut] - my)).sum()
        values.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(values)


@pytest.mark.parametrize("shape", [(9, 8, 10), (4, 9, 9), (1, 8, 9), (9, 8)])
def test_ssim_equals_naive_version(shape):
    rng = np.random.default_rng(5)
    reference = rng.normal(size=shape)
    prediction = reference + 0.3 * rng.normal(size=shape)
    data_range = np.ptp(reference)
    expected = naive_ssim(reference, prediction, data_range)
    assert 0.1 < expected < 0.99
    assert ssim(reference, prediction, data_range=data_range) == pytest.approx(expected, abs=1e-4)


def test_ssim_does_not_depend_on_the_intensity_unit():
    rng = np.random.default_rng(6)
    reference = rng.random((8, 8, 8))
    prediction = reference + 0.1 * rng.random((8, 8, 8))
    scaled = ssim(40 * reference - 1000, 40 * prediction - 1000, data_range=40)
    assert scaled == pytest.approx(ssim(reference, prediction, data_range=1), abs=1e-5)


def test_bad_input_is_refused():
    image = np.zeros((4, 4, 4))
    with pytest.raises(ValueError, match="shape"):
        dice(image, image[:2])
    with pytest.raises(ValueError, match="shape"):
        psnr(image, image[:2], data_range=1)
    with pytest.raises(ValueError, match="data_range must be"):
        psnr(image, image, data_range=-1)
    with pytest.raises(ValueError, match="prediction must be finite"):
        ssim(image, image + np.nan, data_range=1)
    with pytest.raises(ValueError, match="2 or 3 axes"):
        ssim(image[0, 0], image[0, 0], data_range=1)


def test_inputs_are_not_changed():
    reference, prediction = np.random.default_rng(7).random((2, 8, 8, 8))
    copies = reference.copy(), prediction.copy()
    dice(reference > 0.5, prediction > 0.5)
    ssim(reference, prediction, data_range=1.0)
    psnr(reference, prediction, data_range=1.0)
    np.testing.assert_array_equal((reference, prediction), copies)

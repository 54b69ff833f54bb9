"""The low-field twin's physics: contrast, bias field, window in k-space, Rician noise, seeds."""

import math

import numpy as np
import pytest

from rehrseg_nnunet.guided.low_field import (
    AIR,
    LowField,
    acquire,
    bias_field,
    case_generator,
    draw_bias,
    draw_noise,
    k_space_window,
    lose_contrast,
    low_field_twin,
    padding_voxels,
)

SHAPE = (12, 15, 16)
SPACING = (1.0, 0.8, 1.2)
QUIET = LowField(2.0, 1e9, 1.0, bias=0.0)  # resolution alone


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def blobs(rng, shape=SHAPE):
    """A smooth image, brighter than 0.5 everywhere."""
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    waves = [np.sin(2 * np.pi * (axis * rng.uniform(1, 3) + rng.uniform())) for axis in axes]
    return (2 + 0.5 * waves[0] * waves[1] + 0.5 * waves[2]).astype(np.float32)


def twin(image, scanner, *, case="a", spacing=SPACING, head=None):
    head = np.ones(image.shape, bool) if head is None else head
    return low_field_twin(image, spacing, scanner, head=head, random=case_generator(0, case))


class TestContrast:
    values = np.linspace(0, 300, 301)

    @pytest.mark.parametrize("contrast", [0.1, 0.6, 1.0])
    @pytest.mark.parametrize("gamma", [0.7, 1.0, 1.4])
    def test_it_rises_from_0_through_the_pivot(self, contrast, gamma):
        curve = lose_contrast(self.values, pivot=100.0, contrast=contrast, gamma=gamma)
        assert (np.diff(curve) > 0).all()
        assert curve[0] == 0
        assert curve[100] == pytest.approx(100)

    def test_a_share_of_the_differences_between_tissues_is_left(self):
        curve = lose_contrast(self.values, pivot=100.0, contrast=0.6)
        tissue = self.values > AIR * 100
        np.testing.assert_allclose(np.diff(curve[tissue]), 0.6)
        np.testing.assert_allclose(np.diff(curve, 2)[:20], 0, atol=1e-12)  # air: a line to 0

    def test_nothing_is_lost_at_1(self):
        np.testing.assert_allclose(lose_contrast(self.values, pivot=100.0, contrast=1.0), self.values)

    def test_gamma_is_a_power_in_units_of_the_pivot(self):
        curve = lose_contrast(self.values, pivot=100.0, contrast=1.0, gamma=2.0)
        np.testing.assert_allclose(curve, 100 * (self.values / 100) ** 2)


class TestBias:
    def test_its_logarithm_has_the_amplitude_and_mean_0(self, rng):
        logarithm = np.log(bias_field(SHAPE, draw_bias(rng), amplitude=0.2))
        assert np.abs(logarithm).max() == pytest.approx(0.2, rel=1e-4)
        assert logarithm.mean() == pytest.approx(0, abs=1e-5)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_it_is_a_polynomial_of_order_3(self, rng, axis):
        logarithm = np.log(bias_field(SHAPE, draw_bias(rng), amplitude=0.2).astype(np.float64))
        assert np.abs(np.diff(logarithm, 4, axis=axis)).max() < 1e-5
        assert np.abs(np.diff(logarithm, 3, axis=axis)).max() > 1e-4

    def test_none(self, rng):
        np.testing.assert_array_equal(bias_field(SHAPE, draw_bias(rng), amplitude=0.0), 1)

    def test_an_axis_of_one_voxel(self, rng):
        assert np.isfinite(bias_field((1, 5, 6), draw_bias(rng), amplitude=0.2)).all()
        np.testing.assert_array_equal(bias_field((1, 1, 1), draw_bias(rng), amplitude=0.2), 1)


class TestWindow:
    @pytest.mark.parametrize(("taper", "widths"), [(0.0, 1.207), (0.5, 1.573), (1.0, 2.0)])
    def test_width_of_the_point_spread_function(self, taper, widths):
        """In units of the low-field scan's voxels, at half of the height."""
        voxel, resolution = 0.02, 1.6
        profile = k_space_window((4096, 1, 1), (voxel, 1.0, 1.0), resolution, taper=taper).ravel()
        spread = np.real(np.fft.ifft(profile))
        beyond = int(np.argmax(spread < spread[0] / 2))
        place = np.interp(0.5, spread[[beyond, beyond - 1]] / spread[0], [beyond, beyond - 1])
        assert 2 * place * voxel / resolution == pytest.approx(widths, rel=0.01)

    @pytest.mark.parametrize("shape", [(15, 16, 17), (16, 12, 9)])
    def test_nothing_is_left_beyond_the_edge_and_everything_in_the_middle(self, shape):
        window = k_space_window(shape, (1.0, 1.0, 1.0), 2.0)
        frequencies = np.stack(np.meshgrid(*(np.abs(np.fft.fftfreq(n)) for n in shape), indexing="ij"))
        assert (window[(frequencies > 0.25).any(axis=0)] == 0).all()
        assert (window[(frequencies <= 0.124).all(axis=0)] == 1).all()
        assert window.shape == shape

    def test_longer_voxels_stay(self):
        window = k_space_window((10, 16, 16), (4.0, 1.0, 1.0), 2.0)
        np.testing.assert_array_equal(window, np.broadcast_to(window[:1], window.shape))
        np.testing.assert_array_equal(k_space_window(SHAPE, SPACING, 0.5), 1)
        assert padding_voxels((10, 16, 16), (4.0, 1.0, 0.5), 2.0) == [0, 8, 16]
        assert padding_voxels((3, 3, 3), (1.0, 1.0, 1.0), 2.0) == [3, 3, 3]


def naive_acquire(clean, window, noise):
    """Explicit unitary Fourier matrices along each axis."""

    def transform(values, sign):
        for axis, size in enumerate(values.shape):
            index = np.arange(size)
            matrix = np.exp(sign * 2j * np.pi * np.outer(index, index) / size) / math.sqrt(size)
            values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
        return values

    return np.abs(transform(window * (transform(clean, -1) + noise), 1))


class TestAcquire:
    def test_it_is_what_the_equation_says(self, rng):
        window = k_space_window(SHAPE, SPACING, 2.0)
        noise = draw_noise(rng, window, 0.3)
        image = blobs(rng)
        np.testing.assert_allclose(acquire(image, window, noise=noise), naive_acquire(image, window, noise), atol=1e-4)

    def test_energy_is_that_of_the_window_and_a_constant_stays(self, rng):
        window, none = k_space_window(SHAPE, SPACING, 2.0), np.zeros(SHAPE, np.complex64)
        image = blobs(rng)
        seen = acquire(image, window, noise=none)
        energy = np.sum(np.abs(window * np.fft.fftn(image, norm="ortho")) ** 2)
        assert np.sum(seen.astype(np.float64) ** 2) == pytest.approx(energy, rel=1e-4)
        assert np.abs(np.fft.fftn(seen, norm="ortho")[window == 0]).max() < 1e-3
        np.testing.assert_allclose(acquire(np.full(SHAPE, 7.0), window, noise=none), 7, rtol=1e-5)
        np.testing.assert_allclose(acquire(image, np.ones(SHAPE), noise=none), image, rtol=1e-4)


class TestNoise:
    shape = (64, 64, 64)

    def test_it_is_white_and_leaves_the_stated_deviation_in_the_image(self, rng):
        window = k_space_window(self.shape, (1.0, 1.0, 1.0), 2.0)
        noise = draw_noise(rng, window, 3.0)
        power = np.abs(noise) ** 2
        distance = np.sqrt(sum(np.meshgrid(*(np.fft.fftfreq(n) ** 2 for n in self.shape), indexing="ij")))
        shells = [power[(distance >= low) & (distance < low + 0.1)].mean() for low in (0.05, 0.15, 0.25, 0.35)]
        np.testing.assert_allclose(shells, power.mean(), rtol=0.05)
        image = np.fft.ifftn(window * noise, norm="ortho")
        assert image.real.std() == pytest.approx(3.0, rel=0.02)
        assert image.imag.std() == pytest.approx(3.0, rel=0.02)
        assert abs(np.corrcoef(image.real.ravel(), image.imag.ravel())[0, 1]) < 0.02

    def test_neighbours_share_it_as_they_share_the_voxels_of_the_scan(self, rng):
        window = k_space_window(self.shape, (1.0, 1.0, 1.0), 2.0)
        image = np.fft.ifftn(window * draw_noise(rng, window, 1.0), norm="ortho").real
        spread = np.real(np.fft.ifft(k_space_window((64, 1, 1), (1.0, 1.0, 1.0), 2.0).ravel() ** 2))
        found = np.mean(image * np.roll(image, 1, axis=0)) / np.mean(image**2)
        assert found == pytest.approx(spread[1] / spread[0], abs=0.03)

    def test_it_is_ricean(self, rng):
        """Without signal the mean is sigma sqrt(pi / 2); with much signal the noise is Gaussian of deviation sigma."""
        window = k_space_window(self.shape, (1.0, 1.0, 1.0), 2.0)
        air = acquire(np.zeros(self.shape), window, noise=draw_noise(rng, window, 2.0))
        assert air.mean() == pytest.approx(2.0 * math.sqrt(math.pi / 2), rel=0.01)
        assert np.mean(air**2) == pytest.approx(2 * 2.0**2, rel=0.02)
        bright = acquire(np.full(self.shape, 200.0), window, noise=draw_noise(rng, window, 2.0))
        assert bright.std() == pytest.approx(2.0, rel=0.02)
        assert bright.mean() == pytest.approx(math.hypot(200.0, 2.0), rel=1e-3)


class TestTwin:
    @pytest.mark.parametrize("snr", [5.0, 20.0])
    @pytest.mark.parametrize("resolution", [0.5, 2.0])
    def test_snr_is_what_is_asked_for(self, snr, resolution):
        image = np.full((40, 40, 40), 100.0, np.float32)
        seen = twin(image, LowField(resolution, snr, 1.0, bias=0.0), spacing=(1.0, 1.0, 1.0))
        assert 100.0 / seen.std() == pytest.approx(snr, rel=0.06)

    def test_signal_is_the_heads(self):
        image = np.zeros((40, 40, 40), np.float32)
        image[12:28, 12:28, 12:28] = 100.0  # less than a tenth of the volume
        seen = twin(image, LowField(2.0, 10.0, 1.0, bias=0.0), spacing=(1.0, 1.0, 1.0), head=image > 0)
        assert seen[:5].mean() == pytest.approx(10.0 * math.sqrt(math.pi / 2), rel=0.1)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_flips_commute_without_noise(self, rng, axis):
        image = blobs(rng)
        np.testing.assert_allclose(twin(np.flip(image, axis), QUIET), np.flip(twin(image, QUIET), axis), atol=1e-4)

    def test_the_unit_does_not_matter(self, rng):
        image, scanner = blobs(rng), LowField(2.0, 10.0, 0.7, gamma=0.9)
        np.testing.assert_allclose(twin(40 * image, scanner), 40 * twin(image, scanner), rtol=1e-4)

    def test_a_ramp_keeps_its_slope_inside(self):
        ramp = np.broadcast_to(np.arange(40.0, 80.0)[:, None, None], (40, 6, 6)).astype(np.float32)
        seen = twin(ramp, QUIET, spacing=(1.0, 1.0, 1.0))
        np.testing.assert_allclose(seen[12:28], ramp[12:28], atol=0.15)

    def test_the_ends_of_the_volume_do_not_meet(self):
        step = np.full((16, 16, 16), 10.0, np.float32)
        step[:8] = 50.0
        seen = twin(step, QUIET, spacing=(1.0, 1.0, 1.0))
        np.testing.assert_allclose(seen[[0, -1], 8, 8], [50, 10], atol=1.5)

    def test_less_contrast_and_a_bias_field(self, rng):
        image = blobs(rng)
        gentle = LowField(0.1, 1e9, 0.5, bias=0.0)
        expected = image.mean() + 0.5 * (image - image.mean())
        np.testing.assert_allclose(twin(image, gentle), expected, rtol=1e-4)
        ratio = np.log(twin(image, LowField(0.1, 1e9, 0.5, bias=0.3)) / expected)
        assert np.abs(ratio).max() == pytest.approx(0.3, rel=1e-3)

    def test_a_case_has_one_noise_whatever_else_is_simulated(self, rng):
        image, scanner = blobs(rng), LowField(2.0, 5.0, 0.7)
        first, again, other = (twin(image, scanner, case=case) for case in "aab")
        np.testing.assert_array_equal(first, again)
        clean = twin(image, LowField(2.0, 1e9, 0.7, bias=0.0))
        noise = [(seen - clean).ravel() for seen in (first, other)]
        assert abs(np.corrcoef(noise)[0, 1]) < 0.3
        assert case_generator(0, "a").integers(1 << 30) != case_generator(1, "a").integers(1 << 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution_mm": 0.0}, "resolution_mm must be a number above 0, got 0.0"),
        ({"snr": math.nan}, "snr must be a number above 0, got nan"),
        ({"gamma": -1.0}, "gamma must be a number above 0"),
        ({"contrast": 1.2}, "contrast must be above 0 and at most 1, got 1.2"),
        ({"contrast": 0.0}, "contrast must be above 0"),
        ({"bias": -0.1}, "bias must be at least 0, got -0.1"),
    ],
)
def test_impossible_scanners(changes, message):
    with pytest.raises(ValueError, match=message):
        LowField(**{"resolution_mm": 2.0, "snr": 12.0, "contrast": 0.7, **changes})

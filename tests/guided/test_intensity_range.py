"""What pairs say of themselves: the robust range of the privileged channels, constant ones, edges that do not agree."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from rehrseg_nnunet.guided import intensity_range
from rehrseg_nnunet.guided.intensity_range import measure_pairs
from rehrseg_nnunet.guided.pair_checks import doubtful_pairs
from rehrseg_nnunet.guided.paired_channels import PairedChannels

CHANNELS = PairedChannels(source=(0,), privileged=(1, 2))


class Pairs:
    def __init__(self, cases):
        self.cases = cases
        self.identifiers = list(cases)

    def load_case(self, identifier):
        image, labels = self.cases[identifier]
        return image, labels, None, {}


def case(seed, shape=(4, 20, 20)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(3, *shape)) * [[[[1.0]]], [[[2.0]]], [[[5.0]]]], np.zeros((1, *shape), np.int16)


def test_percentiles_over_all_cases_and_only_what_has_data():
    cases = {f"case_{n}": case(n) for n in range(3)}
    expected = np.percentile(np.concatenate([c[0].reshape(3, -1) for c in cases.values()], 1), (0.5, 99.5), axis=1)
    image, labels = cases["case_0"]
    padded = np.pad(image, ((0, 0), (0, 0), (0, 9), (0, 0)), constant_values=1e6)
    cases["case_0"] = padded, np.pad(labels, ((0, 0), (0, 0), (0, 9), (0, 0)), constant_values=-1)
    measured = measure_pairs(Pairs(cases), list(cases), CHANNELS)
    assert measured.widths == pytest.approx((expected[1] - expected[0])[1:].tolist())
    assert measured.constant == []


def test_a_share_of_the_voxels_of_large_cases_is_enough(monkeypatch):
    cases = {"a": case(0, (10, 40, 40))}
    whole = measure_pairs(Pairs(cases), ["a"], CHANNELS).widths
    monkeypatch.setattr(intensity_range, "VOXELS_PER_CASE", 4000)
    some = measure_pairs(Pairs(cases), ["a"], CHANNELS).widths
    assert some != whole
    assert some == pytest.approx(whole, rel=0.1)


def test_constant_channels_are_named_and_have_a_unit():
    image, labels = case(0)
    flat = image.copy()
    flat[0] = 3
    assert measure_pairs(Pairs({"a": (image, labels), "b": (flat, labels)}), ["a", "b"], CHANNELS).constant == ["b"]
    measured = measure_pairs(Pairs({"b": (np.zeros_like(image), labels)}), ["b"], CHANNELS)
    assert measured.widths == [1, 1]
    assert np.isnan(measured.correlations["b"])


def pair(rng, shape, *, shift=0):
    """A blurred and noisy image of two channels of ellipsoids, which may lie beside them."""
    better = gaussian_filter((gaussian_filter(rng.normal(size=shape), 3) > 0).astype(float), 0.5)
    source = gaussian_filter(np.roll(better, shift, axis=2), 1) + rng.normal(0, 0.05, shape)
    return np.stack([source, better, 1 - better]), np.zeros((1, *shape), np.int16)


@pytest.mark.parametrize("edge", [96, 16])
def test_pairs_that_do_not_lie_on_each_other_are_doubted(monkeypatch, edge):
    """By their whole and by their middle; what nnU-Net has masked does not count."""
    monkeypatch.setattr(intensity_range, "COMPARED_EDGE", edge)
    generators = np.random.default_rng(0).spawn(5)
    cases = {f"case_{n}": pair(rng, (12, 30, 30), shift=4 * (n == 3)) for n, rng in enumerate(generators)}
    image, labels = cases["case_1"]
    image[..., 20:], labels[..., 20:] = 0, -1
    correlations = measure_pairs(Pairs(cases), list(cases), CHANNELS).correlations
    assert list(doubtful_pairs(correlations)) == ["case_3"]
    assert min(value for case, value in correlations.items() if case != "case_3") > 0.6

"""The robust range of the privileged channels."""

import numpy as np
import pytest

from rehrseg_nnunet.guided import intensity_range
from rehrseg_nnunet.guided.intensity_range import robust_range
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
    widths, constant = robust_range(Pairs(cases), list(cases), CHANNELS)
    assert widths == pytest.approx((expected[1] - expected[0])[1:].tolist())
    assert constant == []


def test_a_share_of_the_voxels_of_large_cases_is_enough(monkeypatch):
    cases = {"a": case(0, (10, 40, 40))}
    whole, _ = robust_range(Pairs(cases), ["a"], CHANNELS)
    monkeypatch.setattr(intensity_range, "VOXELS_PER_CASE", 4000)
    some, _ = robust_range(Pairs(cases), ["a"], CHANNELS)
    assert some != whole
    assert some == pytest.approx(whole, rel=0.1)


def test_constant_channels_are_named_and_have_a_unit():
    image, labels = case(0)
    flat = image.copy()
    flat[0] = 3
    widths, constant = robust_range(Pairs({"a": (image, labels), "b": (flat, labels)}), ["a", "b"], CHANNELS)
    assert constant == ["b"]
    flat = np.zeros_like(image)
    widths, constant = robust_range(Pairs({"b": (flat, labels)}), ["b"], CHANNELS)
    assert widths == [1, 1]

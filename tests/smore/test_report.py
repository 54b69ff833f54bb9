"""SMORE's report: its cases beside the truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.restoration.report import NEAREST, SIGNED_DISTANCE, Comparison, method_scores
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels
from rehrseg_nnunet.smore import report as module
from rehrseg_nnunet.smore.export import smore_case
from rehrseg_nnunet.smore.network import WDSR
from rehrseg_nnunet.smore.report import METHOD, TRUE_HR, report_smore

FACTOR = 2
SPACING = (2.0, 1.0, 0.5)
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)


def network():
    torch.manual_seed(0)
    return WDSR(1, 3, FACTOR, blocks=1, features=4).eval()


@pytest.fixture(scope="module")
def phantom():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    return (image[None] / 50).astype(np.float32), labels[None].astype(np.int16)


@pytest.fixture(scope="module")
def lr(phantom):
    image, labels = (torch.from_numpy(volume) for volume in phantom)
    return degrade(image, FACTOR, 1).numpy(), degrade_labels(labels, FACTOR, 1).numpy()


def report(lr):
    dataset = SimpleNamespace(identifiers=["b", "a"], load_case=lambda name: (*lr, None, {"name": name}))
    return report_smore(network(), dataset, plan(PLAIN, factor=FACTOR, spacing_mm=SPACING))


def test_cases_whose_truth_is_known_are_scored(phantom, lr, monkeypatch):
    def known(planned, identifier, lr_image, properties):
        assert planned.factor == FACTOR
        assert properties == {"name": identifier}
        np.testing.assert_array_equal(lr_image, lr[0])
        return phantom if identifier == "a" else None

    monkeypatch.setattr(module, "true_hr_case", known)
    found = report(lr)
    assert found.cases == {TRUE_HR: 1}
    restored = {METHOD: smore_case(network(), *lr, PLAIN)}
    expected = method_scores(Comparison(TRUE_HR, lr, phantom, SPACING), restored, PLAIN)
    assert list(expected) == [NEAREST, SIGNED_DISTANCE, METHOD]
    for method, row in expected.items():
        assert found.comparisons[TRUE_HR][method] == pytest.approx(row)


def test_without_truth_the_report_is_empty(lr):
    assert report(lr).cases == {}
    assert report(lr).as_table() == "no cases"

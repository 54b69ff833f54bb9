"""U as the probability that a pseudo label is wrong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehrseg_nnunet.self_sr.calibration import BINS, Calibration, _edges


def samples(seed=0, voxels=20_000, probability=lambda u: u**2):
    rng = np.random.default_rng(seed)
    uncertainty = rng.random(voxels).astype(np.float32)
    return uncertainty, rng.random(voxels) < probability(uncertainty)


def test_it_finds_the_probability():
    calibration = Calibration.fit([samples(seed) for seed in range(5)])
    u = np.linspace(0.02, 0.98, 50)
    np.testing.assert_allclose(calibration.apply(u), u**2, atol=0.05)
    assert calibration.apply(u.reshape(5, 10)).shape == (5, 10)
    assert calibration.apply(u).dtype == np.float32


@given(st.integers(0, 2**16), st.integers(1, 300))
def test_it_never_falls_and_keeps_the_mean(seed, voxels):
    """Whatever the relation, even a falling one."""
    uncertainty, wrong = samples(seed, voxels, lambda u: 1 - u)
    calibration = Calibration.fit([(uncertainty, wrong)])
    values = calibration.apply(np.linspace(-1, 2, 200))
    assert (np.diff(values) >= 0).all()
    assert 0 <= values.min() <= values.max() <= 1
    assert len(calibration.wrong) <= BINS
    edges = [0, *_edges(np.sort(uncertainty).astype(np.float64)), voxels]
    assert np.average(calibration.wrong, weights=np.diff(edges)) == pytest.approx(wrong.mean(), abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.01, 0.003, 0.001])
def test_a_small_structure_in_a_large_scan_keeps_its_u(share):
    """At entropy ln 2 two labels are as likely, so half of them are wrong, however few voxels there are of these."""
    rng = np.random.default_rng(0)
    probability = np.where(rng.random(300_000) < share, rng.uniform(0, 0.5, 300_000), 0.001 * rng.random(300_000))
    entropy = -probability * np.log(probability) - (1 - probability) * np.log(1 - probability)
    calibration = Calibration.fit([(entropy.astype(np.float32), rng.random(300_000) < probability)])
    assert calibration.apply(np.float32(0.69)) == pytest.approx(0.5, abs=0.1)
    assert calibration.apply(np.float32(0.33)) == pytest.approx(0.1, abs=0.05)
    assert calibration.apply(np.float32(0.0)) < 0.01


def test_one_value_of_u_is_one_probability():
    calibration = Calibration.fit([(np.full(200, 0.3, np.float32), np.arange(200) < 50)])
    assert calibration == Calibration((pytest.approx(0.3),), (0.25,))


def test_a_u_that_says_nothing_becomes_the_share_of_wrong_labels():
    uncertainty, _ = samples()
    wrong = np.random.default_rng(1).random(len(uncertainty)) < 0.1
    calibrated = Calibration.fit([(uncertainty, wrong)]).apply(uncertainty)
    assert abs(np.median(calibrated) - 0.1) < 0.02


def test_cases_count_by_their_voxels_and_empty_ones_not_at_all():
    one, two, empty = samples(0), samples(1), (np.zeros(0, np.float32), np.zeros(0, bool))
    joined = tuple(np.concatenate(parts) for parts in zip(one, two, strict=True))
    assert Calibration.fit([one, empty, two]) == Calibration.fit([joined])
    for nothing in ([], [empty]):
        with pytest.raises(ValueError, match="at least one voxel with a label, got none"):
            Calibration.fit(nothing)


def test_a_manifest_keeps_it_exactly():
    calibration = Calibration.fit([samples()])
    assert Calibration.of_json(json.loads(json.dumps(calibration.as_json()))) == calibration

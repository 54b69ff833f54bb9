"""Pseudo-HR cases with something of the truth in them."""

import numpy as np
import pytest

from benchmarks.quality.truth import CasesWithTruth, at_boundaries, between_slices, everywhere
from rehrseg_nnunet.segmentation.certain_cases import CertainCases

FACTOR = 4
SHAPE = (8, 6, 7)


class Stored:
    """Cases in memory: data (2, ...) with U last, labels (1, ...)."""

    identifiers = ("a", "b")

    def __init__(self, seed, channels=2):
        rng = np.random.default_rng(seed)
        self.cases = {
            name: (
                rng.normal(size=(channels, *SHAPE)).astype(np.float32),
                rng.integers(0, 3, size=(1, *SHAPE)).astype(np.int16),
                None,
                {"name": name},
            )
            for name in self.identifiers
        }
        for _, labels, _, _ in self.cases.values():
            labels[0, 0, 0, 0] = -1  # nnU-Net's outside

    def load_case(self, identifier):
        return self.cases[identifier]


@pytest.fixture
def pseudo():
    return Stored(0)


@pytest.fixture
def truth():
    return Stored(1, channels=1)


def naive_boundaries(labels):
    """Voxels with a face neighbour of another label."""
    found = np.zeros(labels.shape, dtype=bool)
    for index in np.ndindex(labels.shape):
        for axis in range(3):
            for step in (-1, 1):
                other = list(index)
                other[axis] += step
                if 0 <= other[axis] < labels.shape[axis]:
                    found[index] |= labels[tuple(other)] != labels[index]
    return found


@pytest.mark.parametrize("where", [everywhere, between_slices, at_boundaries])
def test_labels_are_replaced_there_and_nowhere_else(pseudo, truth, where):
    cases = CasesWithTruth(pseudo, truth, FACTOR, replaced=where)
    assert list(cases.identifiers) == ["a", "b"]
    for name in cases.identifiers:
        data, labels, _, properties = cases.load_case(name)
        before, true = pseudo.cases[name][1][0], truth.cases[name][1][0]
        there = {
            everywhere: np.ones(SHAPE, dtype=bool),
            between_slices: np.isin(np.arange(8), (0, 3, 4, 7))[:, None, None] & np.ones(SHAPE, dtype=bool),
            at_boundaries: naive_boundaries(before),
        }[where]
        expected = np.where(there & (before >= 0), true, before)
        np.testing.assert_array_equal(labels[0], expected)
        np.testing.assert_array_equal(data, pseudo.cases[name][0])
        assert properties == {"name": name}


def test_for_odd_factors_one_slice_is_at_the_centre():
    labels = np.zeros((6, 2, 2))
    assert between_slices(labels, labels, 3)[:, 0, 0].tolist() == [True, False, True] * 2


def test_true_uncertainty_is_where_the_pseudo_label_is_wrong(pseudo, truth):
    data, labels, *_ = CasesWithTruth(pseudo, truth, FACTOR, uncertainty=True).load_case("b")
    before = pseudo.cases["b"]
    np.testing.assert_array_equal(labels, before[1])
    np.testing.assert_array_equal(data[:-1], before[0][:-1])
    np.testing.assert_array_equal(data[-1], before[1][0] != truth.cases["b"][1][0])
    assert 0 < data[-1].mean() < 1


def test_what_is_stored_stays_as_it_is(pseudo, truth):
    copies = [array.copy() for array in pseudo.cases["a"][:2]]
    CasesWithTruth(pseudo, truth, FACTOR, replaced=everywhere, uncertainty=True).load_case("a")
    for array, copy in zip(pseudo.cases["a"][:2], copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_cases_without_u_can_have_it_too(truth):
    """Interpolated cases, whose U = 0 is made when it is read."""
    data, labels, *_ = CasesWithTruth(
        CertainCases(Stored(2, channels=1)), truth, FACTOR, replaced=everywhere
    ).load_case("a")
    assert data.shape == (2, *SHAPE)
    assert (data[-1] == 0).all()
    assert (labels[0] == truth.cases["a"][1][0])[1:].all()

"""Scores of uncertainty maps against known errors."""

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.stats import spearmanr

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.self_sr.uncertainty_quality import (
    CEILING,
    RANKED_VOXELS,
    TrueErrors,
    auroc,
    checkerboard_share,
    judge,
    label_entropy,
    rank_correlation,
)

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)


def test_ranks_of_many_voxels_are_those_of_a_sample():
    image, _ = make_phantom((64, 96, 96), np.random.default_rng(2))
    assert image.size > 2 * RANKED_VOXELS
    noise = np.random.default_rng(0).normal(size=image.shape)
    uncertainty, error = image[None], np.abs(image + image.std() * noise)
    exact = spearmanr(uncertainty.ravel(), error.ravel()).statistic
    found = rank_correlation(uncertainty, error)
    assert 0.1 < exact < 0.95
    assert found == pytest.approx(exact, abs=0.01)
    assert found != exact
    assert rank_correlation(uncertainty, error) == found


def test_ranks_of_few_voxels_are_exact():
    u, error = np.random.default_rng(0).random((2, 1, RANKED_VOXELS // 100, 10, 10))
    error = u + 0.3 * error
    assert rank_correlation(u, error[0]) == spearmanr(u.ravel(), error.ravel()).statistic


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_share_of_pairs_in_order(ties):
    rng = np.random.default_rng(0)
    score, positive = rng.random(60), rng.random(60) < 0.3
    if ties:
        score = np.round(score, 1)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert auroc(score, positive) == pytest.approx(np.mean(pairs))
    assert auroc(positive.astype(float), positive) == 1
    assert np.isnan(auroc(score, np.zeros(60, bool)))
    assert np.isnan(auroc(score, np.ones(60, bool)))


def test_checkerboards_are_found_and_anatomy_is_none():
    y, x = np.mgrid[:48, :48]
    blob = np.exp(-((y - 20) ** 2 + (x - 25) ** 2) / 50)[None].repeat(4, axis=0)
    for pattern in (y % 2, x % 2, (x + y) % 2):
        board = np.broadcast_to(pattern * 1.0, blob.shape)
        assert checkerboard_share(3 + board) == pytest.approx(1, abs=1e-6)
        assert 0.2 < checkerboard_share(blob + 0.2 * board) < 0.8
    assert checkerboard_share(blob) < 0.01
    assert checkerboard_share(np.random.default_rng(0).random((8, 64, 64))) == pytest.approx(3 / 64, abs=0.01)
    assert checkerboard_share(np.full((2, 8, 8), 0.3)) == 0


def test_entropy():
    logits = np.log(np.array([0.5, 0.25, 0.25])).reshape(3, 1, 1, 1)
    assert label_entropy(logits + 7, PLAIN).item() == pytest.approx(1.5 * np.log(2))
    assert label_entropy(np.zeros((2, 1, 1, 1)), REGIONS).item() == pytest.approx(2 * np.log(2))


def restored_case(manager=PLAIN):
    """A box whose upper edge is one slice too low, with an image error there."""
    truth, labels = np.zeros((1, 12, 16, 16), np.int16), np.zeros((1, 12, 16, 16), np.int16)
    truth[0, 3:8, 4:12, 4:12] = 1
    labels[0, 3:7, 4:12, 4:12] = 1
    image = np.random.default_rng(0).normal(size=(2, 12, 16, 16)).astype(np.float32)
    wrong_image = image + 0.3 * (labels != truth)
    return TrueErrors.of_case((wrong_image, labels), (image, truth), manager)


def test_errors_of_a_case():
    errors = restored_case()
    assert errors.wrong.sum() == 64
    assert errors.wrong[7, 4:12, 4:12].all()
    np.testing.assert_allclose(errors.image, 0.3 * errors.wrong, atol=1e-6)
    assert errors.known.all()
    assert errors.edge[3, 4, 4]
    assert errors.edge[2, 5, 5]
    assert not errors.edge[5, 7, 7]
    assert not errors.edge[0].any()
    assert errors.near[11, 7, 7]  # slice 8 is at the edge
    assert not errors.near[11, 4, 0]


def test_unknown_labels_do_not_count():
    truth = np.zeros((1, 4, 8, 8), np.int16)
    truth[0, 2:] = 1
    labels = truth.copy()
    labels[0, :, :4], truth[0, :, 6:], labels[0, 0, 4] = 3, 3, -1
    image = np.zeros((1, 4, 8, 8))
    errors = TrueErrors.of_case((image, labels), (image, truth), IGNORE)
    assert errors.known[:, 4:6].all()
    assert not errors.known[:, :4].any()
    assert not errors.known[:, 6:].any()
    assert not errors.wrong[errors.known].any()  # -1 is background


def test_a_map_of_the_errors_is_perfect_and_a_flat_one_says_nothing():
    errors = restored_case()
    flat = np.full(errors.wrong.shape, 0.3)
    phases = np.arange(12)[:, None, None] % 4 / 10 + 0 * flat
    maps = {"perfect": errors.wrong.astype(float), "flat": flat, "phases": phases}
    rows = judge(maps, errors, factor=4)
    assert list(rows) == ["perfect", "flat", "phases", CEILING]
    assert rows["perfect"]["auroc"] == 1
    assert rows["flat"]["auroc"] == 0.5
    assert rows["flat"]["checkerboard"] == 0
    assert np.isnan(rows["flat"]["spearman"])
    assert 0.7 < rows[CEILING]["auroc"] < 1
    assert 0.5 < rows["perfect"]["edge"] / (64 / errors.edge.sum()) <= 1
    assert rows["perfect"]["inside"] == rows["perfect"]["outside"] == 0
    assert [rows["phases"][f"phase {j}"] for j in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_without_boundaries_there_is_no_auroc():
    image, labels = np.zeros((1, 4, 8, 8)), np.zeros((1, 4, 8, 8), np.int16)
    errors = TrueErrors.of_case((image + 1, labels), (image, labels), PLAIN)
    rows = judge({"U": np.random.default_rng(0).random((4, 8, 8))}, errors, factor=2)
    assert np.isnan(rows["U"]["auroc"])
    assert np.isnan(rows["U"]["edge"])
    assert rows["U"]["outside"] == pytest.approx(0.5, abs=0.05)

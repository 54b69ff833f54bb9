"""The distance in the teacher's features, and that scores of other weights are not kept."""

import json

import numpy as np
import pytest
import torch
from guidance_shapes import shape_of

from benchmarks.guidance import image_scores
from benchmarks.guidance.image_scores import feature_distance, score
from rehrseg_nnunet.guided.teacher import Teacher

PATCH = (16, 16, 16)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher(shape_of("cube")).eval()


def images(size, *, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(1, *size)).astype(np.float32)
    return truth, truth + rng.normal(size=truth.shape).astype(np.float32)


def test_an_image_has_no_distance_to_itself(teacher):
    truth, made = images((16, 20, 18))
    assert feature_distance(teacher, truth, truth, patch_size=PATCH) == 0
    assert feature_distance(teacher, truth, made, patch_size=PATCH) > 0.1


def test_one_window_is_the_mean_squared_error_of_every_level(teacher):
    truth, made = images(PATCH)
    with torch.no_grad():
        pairs = zip(*(teacher.features(torch.from_numpy(image)[None]) for image in (truth, made)), strict=True)
        expected = sum(((a - b) ** 2).mean().item() for a, b in pairs)
    assert feature_distance(teacher, truth, made, patch_size=PATCH) == pytest.approx(expected, rel=1e-5)


def test_all_windows_count(teacher):
    truth, _ = images((16, 16, 48))
    made = truth.copy()
    made[..., 32:] = images((16, 16, 16), seed=1)[1]
    whole = feature_distance(teacher, truth, made, patch_size=PATCH)
    last = feature_distance(teacher, truth[..., 32:], made[..., 32:], patch_size=PATCH)
    assert 0 < whole < last


def test_level_and_scale_do_not_count(teacher):
    truth, _ = images(PATCH)
    assert feature_distance(teacher, truth, 3 * truth + 2, patch_size=PATCH) == pytest.approx(0, abs=1e-4)


def test_scores_are_kept_until_the_weights_change(make_guided_run, monkeypatch):
    weights, scored = {"keeper": "first", "teacher": "judge"}, []

    class Model:
        def __init__(self, run):
            self.run, self.weights = run, weights[run.row.key]

        def trained_for(self):
            return 5.0

    class Cases:
        identifiers = ("a", "b")

        def __init__(self, model):
            assert model.run.row.key == "teacher"

        def load(self, identifier):
            return identifier

    monkeypatch.setattr(image_scores, "ImageModel", Model)
    monkeypatch.setattr(image_scores, "ValidationCases", Cases)
    monkeypatch.setattr(image_scores, "_score_case", lambda model, judge, case: scored.append(case) or {"x": {}})
    run = make_guided_run("keeper")
    for expected in (2, 2):
        score(run)
        assert len(scored) == expected
    assert json.loads(run.scores.read_text())["cases"] == {"a": {"x": {}}, "b": {"x": {}}}
    for name in weights:
        weights[name] += " anew"
        scored.clear()
        score(run)
        assert scored == ["a", "b"]

"""Scores of images inside a mask."""

import math

import numpy as np
import pytest
import torch

from rehrseg_nnunet.evaluation.metrics import psnr, ssim
from rehrseg_nnunet.guided.image_scores import as_json, batch_scores, image_scores, mean_of_defined

SHAPE = (6, 10, 12)


def volumes(shape=SHAPE, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(channels, *shape))
    return truth, truth + 0.3 * rng.normal(size=truth.shape)


@pytest.mark.parametrize("shape", [SHAPE, (1, 14, 12), (14, 12)])
def test_without_a_mask_they_are_those_of_the_whole_image(shape):
    truth, image = volumes(shape)
    found = image_scores(truth, image, np.ones(shape, bool), [4.0])
    plane = shape[1:] if shape[0] == 1 else shape
    assert found["psnr"] == pytest.approx(psnr(truth, image, data_range=4.0))
    assert found["ssim"] == pytest.approx(ssim(truth.reshape(plane), image.reshape(plane), data_range=4.0))
    assert found["nmse"] == pytest.approx(np.square(truth - image).mean() / truth.var())


def test_what_lies_outside_does_not_count():
    truth, image = volumes()
    inside = np.zeros(SHAPE, bool)
    inside[:, :4] = True
    expected = image_scores(truth, image, inside, [4.0])
    image[:, :, 7:] = 1e3  # out of reach of the windows of what counts
    assert image_scores(truth, image, inside, [4.0]) == pytest.approx(expected)
    image[:, :, 0] += 1
    assert image_scores(truth, image, inside, [4.0])["psnr"] < expected["psnr"]


def test_the_nmse_is_0_for_the_truth_and_1_for_its_mean():
    truth, _ = volumes()
    inside = np.random.default_rng(0).random(SHAPE) > 0.5
    mean = np.full_like(truth, truth[0][inside].mean())
    assert image_scores(truth, truth, inside, [4.0])["nmse"] == 0
    assert image_scores(truth, mean, inside, [4.0])["nmse"] == pytest.approx(1)


def test_channels_are_averaged_in_their_own_ranges():
    truth, image = volumes(channels=2)
    inside = np.ones(SHAPE, bool)
    each = [image_scores(truth[c : c + 1], image[c : c + 1], inside, [span])["psnr"] for c, span in enumerate((4, 9))]
    assert image_scores(truth, image, inside, [4, 9])["psnr"] == pytest.approx(np.mean(each))


def test_undefined_scores_are_nan():
    truth, image = volumes()
    inside = np.ones(SHAPE, bool)
    assert all(math.isnan(v) for v in image_scores(truth, image, ~inside, [4.0]).values())
    assert all(math.isnan(v) for v in image_scores(truth, np.full_like(image, np.nan), inside, [4.0]).values())
    assert all(math.isnan(v) for v in image_scores(np.full_like(truth, np.inf), image, inside, [4.0]).values())


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_a_constant_truth_has_no_scores(value):
    """Any line fits it, and rounding makes its variance a little more than 0."""
    truth, image = np.full((1, *SHAPE), value, np.float32), volumes()[1]
    truth[0, :, 0] = 5  # outside
    inside = np.ones(SHAPE, bool)
    inside[:, 0] = False
    rounded = truth + 1e-6 * value * np.random.default_rng(0).random(truth.shape)
    for constant in (truth, rounded):
        for other in (image, constant):
            assert all(math.isnan(v) for v in image_scores(constant, other, inside, [4.0]).values())


def test_means_and_json_have_finite_numbers_alone():
    assert mean_of_defined([1.0, math.nan, math.inf, 3.0, -math.inf]) == 2
    assert math.isnan(mean_of_defined([math.nan, math.inf]))
    content = {"a": [1.5, math.inf, "x"], "b": {"c": math.nan, "d": 2, "e": None}}
    assert as_json(content) == {"a": [1.5, None, "x"], "b": {"c": None, "d": 2, "e": None}}


def test_the_first_patches_of_a_batch_are_scored():
    truth, image = (torch.from_numpy(np.stack(v)) for v in zip(*(volumes(seed=s) for s in range(3)), strict=True))
    inside = torch.ones(3, 1, *SHAPE, dtype=torch.bool)
    rows = [image_scores(truth[b].numpy(), image[b].numpy(), inside[b, 0].numpy(), [4.0]) for b in range(2)]
    found = batch_scores(truth, image, inside, torch.tensor([4.0]), patches=2)
    assert found["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]), rel=1e-5)
    assert found["ssim"] == pytest.approx(np.mean([row["ssim"] for row in rows]), rel=1e-5)
    assert all(np.isnan(v) for v in batch_scores(truth, image, inside, torch.tensor([4.0]), patches=0).values())
    inside[0] = False
    found = batch_scores(truth, image, inside, torch.tensor([4.0]), patches=2)
    assert found["psnr"] == pytest.approx(rows[1]["psnr"], rel=1e-5)

"""Online metrics of stage 1, compared with loops and with definitions."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from rehrseg_nnunet.restoration.validation import SCORED_IMAGES, UNCERTAIN_IMAGE_METRICS, restoration_metrics
from rehrseg_nnunet.self_sr.network import SelfSROutput
from rehrseg_nnunet.smore.network import WDSROutput

SHAPE = (4, 8, 9)  # r, H, W
MASKED = 3


def batch(size=3, channels=1, heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(size, channels, *SHAPE, generator=generator)
    error = 0.1 * torch.randn(size, channels, *SHAPE, generator=generator)
    logits = torch.randn(size, heads, *SHAPE, generator=generator)
    labels = torch.randint(0, 3, (size, 1, *SHAPE), generator=generator).to(torch.int16)
    uncertainty = torch.rand(size, 1, *SHAPE, generator=generator)
    return SelfSROutput(image + error, logits, uncertainty), [image, labels, torch.ones(size, 1, *SHAPE)]


def metrics(output, target, regions=False):
    return restoration_metrics(output, target, regions=regions, masked=MASKED)


def test_counts_are_those_of_a_loop():
    output, target = batch()
    target[1][:, :, 0] = MASKED
    found = metrics(output, target)
    predicted, labels = output.labels.argmax(1).numpy(), target[1][:, 0].numpy()
    valid = labels != MASKED
    for label in (1, 2):
        p, t = (predicted == label) & valid, (labels == label) & valid
        assert found["tp_hard"][label - 1] == (p & t).sum()
        assert found["fp_hard"][label - 1] == (p & ~t).sum()
        assert found["fn_hard"][label - 1] == (~p & t).sum()
    assert found["tp_hard"].shape == (2,)  # no background


def test_counts_of_regions():
    output, target = batch(heads=2)
    regions = torch.rand(3, 3, *SHAPE, generator=torch.Generator().manual_seed(1)) > 0.5  # two regions and the mask
    found = metrics(output, [target[0], regions, target[2]], regions=True)
    valid = ~regions[:, 2]
    for region in (0, 1):
        p, t = (output.labels[:, region] > 0) & valid, regions[:, region] & valid
        assert found["tp_hard"][region] == (p & t).sum()
        assert found["fp_hard"][region] == (p & ~t).sum()
        assert found["fn_hard"][region] == (~p & t).sum()
    assert found["tp_hard"].shape == (2,)


def test_perfect_labels():
    output, target = batch()
    logits = torch.nn.functional.one_hot(target[1][:, 0].long(), 3).movedim(-1, 1).float()
    found = metrics(output._replace(labels=logits), target)
    assert found["fp_hard"].sum() == found["fn_hard"].sum() == 0
    assert found["tp_hard"].tolist() == [(target[1] == label).sum() for label in (1, 2)]


@pytest.mark.parametrize("channels", [1, 2])
def test_image_metrics_are_means_over_windows_and_channels(channels):
    output, target = batch(channels=channels)
    found = metrics(output, target)
    values = []
    for truth, image in zip(target[0].flatten(0, 1), output.image.flatten(0, 1), strict=True):
        span = truth.max() - truth.min()
        values.append(float(10 * torch.log10(span**2 / ((truth - image) ** 2).mean())))
    assert float(found["psnr"]) == pytest.approx(np.mean(values), rel=1e-5)
    assert 0.5 < float(found["ssim"]) < 1
    errors = (output.image - target[0]).abs().mean(1)
    ranks = [spearmanr(u.flatten(), e.flatten()).statistic for u, e in zip(output.uncertainty, errors, strict=True)]
    assert float(found["uncertainty_spearman"]) == pytest.approx(np.mean(ranks))


def test_of_large_batches_the_first_images_are_scored_and_all_labels_counted():
    output, target = batch(size=SCORED_IMAGES + 2)
    first = metrics(SelfSROutput(*(t[:SCORED_IMAGES] for t in output)), [t[:SCORED_IMAGES] for t in target])
    found = metrics(output, target)
    assert {key: found[key] for key in UNCERTAIN_IMAGE_METRICS} == {key: first[key] for key in UNCERTAIN_IMAGE_METRICS}
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        assert (found[name] > first[name]).all()


def test_uncertainty_that_ranks_the_error_has_correlation_1():
    output, target = batch(channels=2)
    error = (output.image - target[0]).abs().mean(1, keepdim=True)
    assert metrics(output._replace(uncertainty=error**2), target)["uncertainty_spearman"] == pytest.approx(1)
    assert metrics(output._replace(uncertainty=-error), target)["uncertainty_spearman"] == pytest.approx(-1)


def test_nothing_outside_the_mask_counts():
    output, target = batch()
    target[2][:, :, :2], target[2][..., 7:] = 0, 0
    target[1][target[2] == 0] = MASKED
    found = metrics(output, target)
    outside = target[2] == 0
    changed = SelfSROutput(
        torch.where(outside, 99.0, output.image),
        torch.where(outside, -output.labels, output.labels),
        torch.where(outside, 0.5, output.uncertainty),
    )
    again = metrics(changed, [torch.where(outside, -99.0, target[0]), *target[1:]])
    for key, value in found.items():
        np.testing.assert_array_equal(again[key], value)


def test_windows_without_contrast_or_outside_are_left_out():
    output, target = batch()
    expected = metrics(SelfSROutput(*(part[:1] for part in output)), [part[:1] for part in target])
    target[2][1], target[0][2] = 0, 5.0
    target[1][1:] = MASKED
    found = metrics(output, target)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value)
    target[2][0] = 0
    assert all(np.isnan(metrics(output, target)[metric]) for metric in UNCERTAIN_IMAGE_METRICS)


def test_slices_without_uncertainty():
    """The middle slice of each window on its own."""
    output, target = batch()
    image, labels, uncertainty = (part[:, :, 1] for part in output)
    inside = [part[:, :, 1] for part in target]
    found = metrics(WDSROutput(image, labels), inside)
    assert set(found) == {"tp_hard", "fp_hard", "fn_hard", "psnr", "ssim"}
    whole = metrics(
        SelfSROutput(*(part[:, :, None] for part in (image, labels, uncertainty))),
        [part[:, :, None] for part in inside],
    )
    for key, value in found.items():
        np.testing.assert_allclose(value, whole[key], rtol=1e-5)


def test_an_output_that_is_not_finite_has_no_metrics_and_no_error():
    output, target = batch()
    output.image[1, 0, 0, 0, 0] = torch.inf
    found = metrics(output, target)
    assert all(np.isnan(found[metric]) for metric in UNCERTAIN_IMAGE_METRICS)
    assert found["tp_hard"].sum() > 0


def test_half_precision_is_taken():
    output, target = batch()
    found = metrics(SelfSROutput(*(part.to(torch.bfloat16) for part in output)), target)
    assert float(found["psnr"]) == pytest.approx(float(metrics(output, target)["psnr"]), abs=0.2)

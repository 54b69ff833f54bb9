"""nnU-Net's label loss, against its definition."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_loss import build_label_loss

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
SIZE = (2, 3, 4)


def plain_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *SIZE, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 1, *SIZE), generator=generator)
    return logits, labels


def region_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2, *SIZE, generator=generator, requires_grad=True)
    target = torch.rand(2, 3, *SIZE, generator=generator) > 0.5
    return logits, target


def naive_dice(probabilities, truth, valid, batch_dice):
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    overlap = (probabilities * truth * valid).sum(axes)
    total = (probabilities * valid).sum(axes) + (truth * valid).sum(axes)
    return -((2 * overlap + 1e-5) / (total + 1e-5)).mean()


@pytest.mark.parametrize("batch_dice", [False, True])
def test_plain_label_loss_equals_naive(batch_dice):
    logits, labels = plain_batch()
    loss = build_label_loss(PLAIN, batch_dice=batch_dice, ddp=False, ignore_index=3)(logits, labels)
    valid = labels != 3
    log_probabilities = logits.log_softmax(1)
    entropy = -log_probabilities.gather(1, labels.clamp(max=2))[valid].mean()
    truth = torch.cat([labels == 1, labels == 2], dim=1)
    expected = entropy + naive_dice(log_probabilities.exp()[:, 1:], truth, valid, batch_dice)
    torch.testing.assert_close(loss, expected)
    gradient, reference = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (loss, expected))
    torch.testing.assert_close(gradient, reference)
    assert (gradient[~valid.expand_as(gradient)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
def test_region_label_loss_equals_naive(dtype):
    logits, target = region_batch()
    loss = build_label_loss(REGIONS, batch_dice=False, ddp=False, ignore_index=3)(logits, target.to(dtype))
    valid, truth = ~target[:, 2:], target[:, :2]
    probabilities = logits.sigmoid()
    entropy = -torch.where(truth, probabilities, 1 - probabilities).log()
    # nnU-Net sums over the regions, and takes the mean over voxels, when there is an ignore channel.
    expected = (entropy * valid).sum() / valid.sum() + naive_dice(probabilities, truth, valid, batch_dice=False)
    torch.testing.assert_close(loss, expected)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert (gradient[~valid.expand_as(gradient)] == 0).all()


def test_label_loss_without_ignore():
    logits, labels = plain_batch()
    labels = labels.clamp(max=2)
    with_ignore = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=3)(logits, labels)
    torch.testing.assert_close(
        build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=None)(logits, labels), with_ignore
    )
    logits, target = region_batch()
    plain_regions = build_label_loss(REGIONS, batch_dice=False, ddp=False, ignore_index=None)
    assert plain_regions(logits, target[:, :2]).isfinite()


def test_ignore_index_must_not_be_a_label():
    with pytest.raises(ValueError, match="ignore_index must be above the highest label 2, got 2"):
        build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=2)

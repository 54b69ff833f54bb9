"""SMORE's loss: what it is made of, and what does not count."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.smore.loss import SMORELoss
from rehrseg_nnunet.smore.network import WDSROutput

MASKED = 3


def loss():
    manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
    return SMORELoss(build_label_loss(manager, batch_dice=True, ddp=False, ignore_index=MASKED))


def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    logits = torch.randn(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (2, 1, 6, 5), generator=generator)
    mask = torch.ones(2, 1, 6, 5)
    mask[:, :, 4:] = 0
    labels[:, :, 4:] = MASKED
    truth = torch.randn(2, 1, 6, 5, generator=generator, dtype=torch.float64)
    return WDSROutput(image, logits), [truth, labels, mask]


def test_l1_of_the_image_cross_entropy_and_dice_of_the_labels_inside():
    output, (truth, labels, mask) = batch()
    inner_labels = labels[:, 0, :4]
    probability = output.labels[:, :, :4].softmax(1)
    cross_entropy = -probability.gather(1, inner_labels[:, None]).log().mean()
    one_hot = torch.stack([inner_labels == c for c in range(3)], dim=1).double()
    axes = (0, 2, 3)
    overlap = 2 * (probability * one_hot).sum(axes) / (probability.sum(axes) + one_hot.sum(axes))
    expected = (output.image - truth)[:, :, :4].abs().mean() + cross_entropy - overlap[1:].mean()
    assert float(loss()(output, [truth, labels, mask])) == pytest.approx(float(expected), abs=1e-4)


def test_nothing_is_learnt_outside():
    output, target = batch()
    parts = [part.requires_grad_() for part in output]
    loss()(WDSROutput(*parts), target).backward()
    for part in parts:
        assert (part.grad[:, :, 4:] == 0).all()
        assert (part.grad[:, :, :4] != 0).all()


def test_targets_must_be_three():
    output, target = batch()
    with pytest.raises(ValueError, match="target must be image, labels and mask, got 2 entries"):
        loss()(output, target[:2])

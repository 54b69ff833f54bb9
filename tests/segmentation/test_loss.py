"""Eq. 11: the total loss of stage 2."""

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.segmentation.hr_network import TrainingOutputs
from rehrseg_nnunet.segmentation.loss import REHRSegLoss
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = 3
FACTOR = 2


def batch(size, *, seed):
    """Logits with gradient and a target with ignored voxels (label 3)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, *size, generator=generator).requires_grad_()
    return logits, torch.randint(0, 4, (2, 1, *size), generator=generator)


def naive_cross_entropy(logits, target, weight, ignore_label=None):
    total, count = 0, 0
    for b, _, z, y, x in torch.ones_like(target).nonzero().tolist():
        label = int(target[b, 0, z, y, x])
        if label == ignore_label:
            continue
        voxel = logits[b, :, z, y, x]
        total = total + weight[b, 0, z, y, x] * (voxel.exp().sum().log() - voxel[label])
        count += 1
    return total / count


def training_batch(*, deep_supervision=True):
    sizes = [(4, 8, 8), (4, 4, 4)] if deep_supervision else [(4, 8, 8)]
    scales = [batch(size, seed=i) for i, size in enumerate(sizes)]
    hr_logits, hr_target = batch((4 * FACTOR, 8, 8), seed=7)
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(2, 6, 4, 4, 2, generator=generator, requires_grad=True)
    adapted = torch.randn(2, 4, 4, 4, 2, generator=generator, requires_grad=True)
    image = torch.randn(2, 1, 4, 8, 8, generator=generator)
    lr = [scale[0] for scale in scales] if deep_supervision else scales[0][0]
    outputs = TrainingOutputs(lr=lr, hr=hr_logits, student=student, adapted=adapted, image=image)
    uncertainty = torch.rand(2, 1, 4, 8, 8, generator=generator)
    return outputs, [*(scale[1] for scale in scales), hr_target, uncertainty]


class Distil:
    """Two terms that depend on the outputs and the full-resolution target, and a record of the calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, lr_target):
        self.calls += 1
        first = outputs.student.float().tanh().mean()
        return {"first": first, "second": (outputs.adapted.float() * lr_target.float().mean()).mean()}


def build_loss(distillation, factors=(0.6, 0.4), **kwargs):
    stock = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)
    return REHRSegLoss(
        UncertaintyWeightedLoss(factors, ignore_label=IGNORE),
        stock,
        DeepSupervisionWrapper(stock, factors),
        distillation=distillation,
        **kwargs,
    )


def test_total_is_equation_11():
    outputs, targets = training_batch()
    module = build_loss(Distil(), distillation_weight=0.3)
    loss = module(outputs, targets)
    weight = 1 - 0.99 * targets[3]
    pooled = weight.reshape(2, 1, 4, 4, 2, 4, 2).mean(dim=(4, 6))
    lr = 0.6 * naive_cross_entropy(outputs.lr[0], targets[0], weight, IGNORE)
    lr = lr + 0.4 * naive_cross_entropy(outputs.lr[1], targets[1], pooled, IGNORE)
    hr = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)(outputs.hr, targets[2])
    first, second = Distil()(outputs, targets[0]).values()
    expected = lr + hr + 0.3 * (first + second)
    torch.testing.assert_close(loss, expected)
    inputs = [*outputs.lr, outputs.hr, outputs.student, outputs.adapted]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
    components = {"lr": lr, "hr": hr, "first": first, "second": second}
    assert module.components.keys() == components.keys()
    for name, term in components.items():
        torch.testing.assert_close(module.components[name], term.detach())
        assert not module.components[name].requires_grad


@pytest.mark.parametrize("disable", ["no distillation", "weight 0"])
def test_without_distillation_the_adaptor_keeps_a_zero_gradient(disable):
    outputs, targets = training_batch()
    with torch.no_grad():
        outputs.adapted[0, 0, 0, 0, 0] = float("inf")
    distillation = Distil()
    module = build_loss(None) if disable == "no distillation" else build_loss(distillation, distillation_weight=0)
    loss = module(outputs, targets)
    torch.testing.assert_close(loss, module.components["lr"] + module.components["hr"])
    assert (torch.autograd.grad(loss, outputs.adapted)[0] == 0).all()
    assert module.components.keys() == {"lr", "hr"}
    assert not distillation.calls


def test_one_lr_output_without_deep_supervision():
    outputs, targets = training_batch(deep_supervision=False)
    listed = outputs._replace(lr=[outputs.lr])
    module = build_loss(Distil(), factors=(1,))
    torch.testing.assert_close(module(outputs, targets), module(listed, targets))
    with pytest.raises(ValueError, match="targets must be 1 LR targets, 1 HR targets and the uncertainty, got 2"):
        module(outputs, targets[1:])


def test_more_uncertain_voxels_weigh_less_in_lr_only():
    outputs, targets = training_batch()
    module = build_loss(None)
    components = []
    for value in (0.0, 1.0):
        module(outputs, [*targets[:3], torch.full_like(targets[3], value)])
        components.append(module.components)
    torch.testing.assert_close(components[1]["lr"], 0.01 * components[0]["lr"])
    torch.testing.assert_close(components[1]["hr"], components[0]["hr"])


def test_validation_uses_the_stock_loss():
    outputs, targets = training_batch()
    distillation = Distil()
    module = build_loss(distillation)
    torch.testing.assert_close(module(outputs.lr, targets[:2]), module.validation_loss(outputs.lr, targets[:2]))
    assert not distillation.calls
    assert module.components == {}


def test_half_precision_outputs_give_a_finite_float32_loss():
    outputs, targets = training_batch()
    half = TrainingOutputs(
        lr=[logits.half() for logits in outputs.lr],
        hr=outputs.hr.half(),
        student=outputs.student.half(),
        adapted=outputs.adapted.half(),
        image=outputs.image,
    )
    module = build_loss(Distil())
    loss = module(half, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(module(outputs, targets).item(), rel=1e-2)
    gradients = torch.autograd.grad(65536 * loss, [half.hr, half.student, half.adapted])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_strength_0_weights_all_voxels_alike():
    outputs, targets = training_batch()
    loss = build_loss(Distil(), uncertainty_strength=0.0)(outputs, targets)
    certain = [*targets[:-1], torch.zeros_like(targets[-1])]
    torch.testing.assert_close(loss, build_loss(Distil())(outputs, certain))
    assert not torch.allclose(loss, build_loss(Distil())(outputs, targets))

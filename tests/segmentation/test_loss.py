"""Eq. 11: the total loss of stage 2."""

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.segmentation.hr_network import TrainingOutputs, output_mode
from rehrseg_nnunet.segmentation.loss import REHRSegLoss
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss
from rehrseg_nnunet.slices.slice_upsampling import centre_slices

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
    lr = [scale[0] for scale in scales] if deep_supervision else scales[0][0]
    outputs = TrainingOutputs(lr=lr, hr=hr_logits, student=student, adapted=adapted)
    targets = PatchTargets(
        hr=hr_target,
        uncertainty=torch.rand(2, 1, 4, 8, 8, generator=generator),
        image=torch.randn(2, 1, 4, 8, 8, generator=generator),
        inside=torch.ones(2, 1, 4, 1, 1, dtype=torch.bool),
        hr_uncertainty=torch.empty(2, 1, 0, 0, 0),
    )
    return outputs, [scale[1] for scale in scales], targets


class Distil:
    """Two terms that depend on the outputs and the full-resolution target, and a record of the calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, lr_target, targets):
        self.calls += 1
        first = outputs.student.float().tanh().mean()
        scale = lr_target.float().mean() + targets.image.mean()
        return {"first": first, "second": (outputs.adapted.float() * scale).mean()}


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
    outputs, lr_targets, others = training_batch()
    module = build_loss(Distil(), distillation_weight=0.3)
    loss = module(outputs, [*lr_targets, *others])
    weight = 1 - 0.99 * others.uncertainty
    pooled = weight.reshape(2, 1, 4, 4, 2, 4, 2).mean(dim=(4, 6))
    lr = 0.6 * naive_cross_entropy(outputs.lr[0], lr_targets[0], weight, IGNORE)
    lr = lr + 0.4 * naive_cross_entropy(outputs.lr[1], lr_targets[1], pooled, IGNORE)
    hr = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)(outputs.hr, others.hr)
    first, second = Distil()(outputs, lr_targets[0], others).values()
    expected = lr + hr + 0.3 * (first + second)
    torch.testing.assert_close(loss, expected)
    inputs = [*outputs.lr, outputs.hr, outputs.student, outputs.adapted]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
    components = {"lr": lr, "hr": hr, "first": first, "second": second}
    assert module.components.keys() == components.keys()
    for name, term in components.items():
        torch.testing.assert_close(module.components[name], term.detach())
        assert not module.components[name].requires_grad


def test_the_lr_loss_is_weighted():
    outputs, lr_targets, others = training_batch()
    module = build_loss(None, lr_weight=0.25)
    loss = module(outputs, [*lr_targets, *others])
    torch.testing.assert_close(loss, 0.25 * module.components["lr"] + module.components["hr"])


@pytest.mark.parametrize("disable", ["no distillation", "weight 0"])
def test_without_distillation_the_adaptor_keeps_a_zero_gradient(disable):
    outputs, lr_targets, others = training_batch()
    with torch.no_grad():
        outputs.adapted[0, 0, 0, 0, 0] = float("inf")
    distillation = Distil()
    module = build_loss(None) if disable == "no distillation" else build_loss(distillation, distillation_weight=0)
    loss = module(outputs, [*lr_targets, *others])
    torch.testing.assert_close(loss, module.components["lr"] + module.components["hr"])
    assert (torch.autograd.grad(loss, outputs.adapted)[0] == 0).all()
    assert module.components.keys() == {"lr", "hr"}
    assert not distillation.calls


def test_one_lr_output_without_deep_supervision():
    outputs, lr_targets, others = training_batch(deep_supervision=False)
    listed = outputs._replace(lr=[outputs.lr])
    module = build_loss(Distil(), factors=(1,))
    torch.testing.assert_close(module(outputs, [*lr_targets, *others]), module(listed, [*lr_targets, *others]))
    with pytest.raises(ValueError, match=r"targets must be 1 LR targets and hr, uncertainty, .*, got 5 entries"):
        module(outputs, others)


def test_more_uncertain_voxels_weigh_less_in_lr_only():
    outputs, lr_targets, others = training_batch()
    module = build_loss(None)
    components = []
    for value in (0.0, 1.0):
        module(outputs, [*lr_targets, *others._replace(uncertainty=torch.full_like(others.uncertainty, value))])
        components.append(module.components)
    torch.testing.assert_close(components[1]["lr"], 0.01 * components[0]["lr"])
    torch.testing.assert_close(components[1]["hr"], components[0]["hr"])


def test_validation_uses_the_stock_loss():
    outputs, lr_targets, _ = training_batch()
    distillation = Distil()
    module = build_loss(distillation)
    torch.testing.assert_close(module(outputs.lr, lr_targets), module.validation_loss(outputs.lr, lr_targets))
    assert not distillation.calls
    assert module.components == {}


def test_half_precision_outputs_give_a_finite_float32_loss():
    outputs, lr_targets, others = training_batch()
    half = TrainingOutputs(
        lr=[logits.half() for logits in outputs.lr],
        hr=outputs.hr.half(),
        student=outputs.student.half(),
        adapted=outputs.adapted.half(),
    )
    module = build_loss(Distil())
    loss = module(half, [*lr_targets, *others])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(module(outputs, [*lr_targets, *others]).item(), rel=1e-2)
    gradients = torch.autograd.grad(65536 * loss, [half.hr, half.student, half.adapted])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_strength_0_weights_all_voxels_alike():
    outputs, lr_targets, others = training_batch()
    targets = [*lr_targets, *others]
    loss = build_loss(Distil(), uncertainty_strength=0.0)(outputs, targets)
    certain = [*lr_targets, *others._replace(uncertainty=torch.zeros_like(others.uncertainty))]
    torch.testing.assert_close(loss, build_loss(Distil())(outputs, certain))
    assert not torch.allclose(loss, build_loss(Distil())(outputs, targets))


def test_the_hr_loss_can_be_weighted_by_the_uncertainty_of_thin_slices():
    outputs, lr_targets, others = training_batch()
    uncertainty = torch.rand(others.hr.shape, generator=torch.Generator().manual_seed(3))
    weighted = UncertaintyWeightedLoss(ignore_label=IGNORE)
    module = build_loss(None, weighted_hr_loss=weighted, uncertainty_strength=0.7)
    module(outputs, [*lr_targets, *others._replace(hr_uncertainty=uncertainty)])
    expected = naive_cross_entropy(outputs.hr, others.hr, 1 - 0.7 * uncertainty, IGNORE)
    torch.testing.assert_close(module.components["hr"], expected.detach())
    plain = build_loss(None)
    plain(outputs, [*lr_targets, *others])
    assert not torch.allclose(module.components["hr"], plain.components["hr"])


def test_where_u_is_1_nothing_teaches_the_lr_head_but_eq_7():
    """The network's own LR head, with its HR head as a residual to it; the weight of Eq. 7 is 0 there."""
    network = PlainConvUNet(1, 2, [2, 3], nn.Conv3d, 3, [1, [1, 2, 2]], 1, 3, 1, conv_bias=True, deep_supervision=False)
    add_hr_head(network, factor=FACTOR, teacher_channels=4, config=HRHeadConfig(hidden_features=2))
    head = network.decoder.seg_layers[-1]
    nn.init.normal_(head.hr_head.second.weight)
    _, _, others = training_batch(deep_supervision=False)
    module = build_loss(None, factors=(1,), uncertainty_strength=1.0)
    with output_mode(network, "training"):
        outputs = network(others.image)
    lr_target = torch.zeros(2, 1, 4, 8, 8, dtype=torch.long)
    uncertain = others._replace(uncertainty=torch.ones_like(others.uncertainty))
    module(outputs, [lr_target, *uncertain]).backward()
    assert (head.weight.grad == 0).all()
    assert (head.bias.grad == 0).all()
    assert head.hr_head.first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_thin_slices_that_are_supervised_deeply_have_nnunets_weighted_sum(weighted):
    """Whatever each scale says, its factor times the loss of that scale alone; U is pooled to it."""
    outputs, lr_targets, others = training_batch(deep_supervision=False)
    coarser_logits, coarser_target = batch((2 * FACTOR, 4, 4), seed=9)
    uncertainty = torch.rand(2, 1, 4 * FACTOR, 8, 8, generator=torch.Generator().manual_seed(8))
    others = others._replace(hr_uncertainty=uncertainty)
    factors = (0.7, 0.3)

    def total(hr, targets, hr_factors):
        hr_loss = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)
        own = UncertaintyWeightedLoss(hr_factors, ignore_label=IGNORE, dice=hr_loss.dc) if weighted else None
        module = REHRSegLoss(
            UncertaintyWeightedLoss(ignore_label=IGNORE),
            hr_loss if hr_factors is None else DeepSupervisionWrapper(hr_loss, hr_factors),
            nn.Identity(),
            weighted_hr_loss=own,
        )
        module(outputs._replace(hr=hr), targets)
        return module.components["hr"]

    deep = total([outputs.hr, coarser_logits], [*lr_targets, coarser_target, *others], factors)
    pooled = functional.avg_pool3d(uncertainty, 2)
    fine = total(outputs.hr, [*lr_targets, *others], None)
    coarse = total(coarser_logits, [*lr_targets, *others._replace(hr=coarser_target, hr_uncertainty=pooled)], None)
    torch.testing.assert_close(deep, factors[0] * fine + factors[1] * coarse)
    with pytest.raises(ValueError, match=r"1 LR targets, 1 coarser HR targets and hr, uncertainty, .* got 6 entries"):
        total([outputs.hr, coarser_logits], [*lr_targets, *others], factors)


@pytest.mark.parametrize("factor", [2, 3, 4, 6])
def test_thin_slices_at_the_centres_are_not_learnt_almost_alone(factor):
    """By 1/r they pull at most twice as much as the others; by 1 it would be up to 1 + r times as much."""
    thin = torch.zeros(1, 3, 2 * factor, 4, 4, requires_grad=True)
    target = torch.ones(1, 1, 2 * factor, 4, 4, dtype=torch.long)
    cross_entropy = UncertaintyWeightedLoss(None)
    outputs = TrainingOutputs(centre_slices(thin, factor), thin, torch.zeros(1), torch.zeros(1))
    nothing = torch.zeros(1, 1, 2, 4, 4)
    others = PatchTargets(target, nothing, nothing, nothing, nothing)

    def pull(weight):
        hr = nn.CrossEntropyLoss()
        module = REHRSegLoss(cross_entropy, lambda logits, t: hr(logits, t[:, 0]), hr, lr_weight=weight)
        (gradient,) = torch.autograd.grad(module(outputs, [target[:, :, ::factor], *others]), thin, retain_graph=True)
        places = gradient.abs().sum((0, 1, 3, 4)).unflatten(0, (2, factor)).sum(0)
        return float(places.max() / places.min())

    central = 2 - factor % 2
    expected = {weight: 1 + weight * factor / central for weight in (1 / factor, 1)}
    if factor > 2:
        assert {weight: pull(weight) for weight in expected} == pytest.approx(expected)
    assert pull(1 / factor) <= 2

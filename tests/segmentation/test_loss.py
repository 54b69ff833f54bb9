import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.segmentation.distillation import affinity_loss, ifvd_loss, mimic_loss, resize_to, spatial_loss
from rehrseg_nnunet.segmentation.hr_head import TrainingOutputs
from rehrseg_nnunet.segmentation.loss import (
    REHRSegLoss,
    UncertaintyWeightedLoss,
    class_maps,
    downsample_uncertainty,
    uncertainty_to_weight,
    weighted_bce,
    weighted_cross_entropy,
)

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
IGNORE = 3


def batch(size=(2, 4, 4), *, regions=False, seed=0, dtype=torch.float64):
    """Logits with gradient, a target with ignored voxels (label 3, or the last of three channels), weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 2 if regions else 3, *size, generator=generator, dtype=dtype).requires_grad_()
    if regions:
        target = torch.rand(2, 3, *size, generator=generator) > 0.5
    else:
        target = torch.randint(0, 4, (2, 1, *size), generator=generator)
    return logits, target, torch.rand(2, 1, *size, generator=generator, dtype=dtype)


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


def naive_bce(logits, target, weight, has_ignore):
    total, count = 0, 0
    for b, _, z, y, x in torch.ones_like(weight).nonzero().tolist():
        if has_ignore and target[b, -1, z, y, x]:
            continue
        probability = logits[b, :, z, y, x].sigmoid()
        inside = target[b, : logits.shape[1], z, y, x].bool()
        total = total - weight[b, 0, z, y, x] * torch.where(inside, probability, 1 - probability).log().mean()
        count += 1
    return total / count


def assert_same_with_gradient(loss, expected, logits):
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.float32])
def test_weighted_cross_entropy_equals_naive(dtype):
    logits, target, weight = batch()
    loss = weighted_cross_entropy(logits, target.to(dtype), weight, ignore_label=IGNORE)
    assert_same_with_gradient(loss, naive_cross_entropy(logits, target, weight, IGNORE), logits)
    kept = target.clamp(max=2)
    loss = weighted_cross_entropy(logits, kept.to(dtype), weight)
    assert_same_with_gradient(loss, naive_cross_entropy(logits, kept, weight), logits)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_weighted_bce_equals_naive(dtype):
    logits, target, weight = batch(regions=True)
    loss = weighted_bce(logits, target.to(dtype), weight, has_ignore=True)
    assert_same_with_gradient(loss, naive_bce(logits, target, weight, True), logits)
    loss = weighted_bce(logits, target[:, :2].to(dtype), weight, has_ignore=False)
    assert_same_with_gradient(loss, naive_bce(logits, target[:, :2], weight, False), logits)


def test_gradchecks():
    logits, target, weight = batch((1, 2, 3))
    weight = weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w: weighted_cross_entropy(x, target, w, ignore_label=IGNORE), (logits, weight)
    )
    logits, target, weight = batch((1, 2, 3), regions=True)
    weight = weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: weighted_bce(x, target, w, has_ignore=True), (logits, weight))


def test_halving_the_weight_halves_the_loss():
    logits, target, weight = batch()
    whole = weighted_cross_entropy(logits, target, weight, ignore_label=IGNORE)
    torch.testing.assert_close(weighted_cross_entropy(logits, target, weight / 2, ignore_label=IGNORE), whole / 2)


@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_get_exactly_zero_gradient(regions):
    logits, target, weight = batch(regions=regions)
    dice = build_label_loss(REGIONS if regions else PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE).dc
    module = UncertaintyWeightedLoss(regions=regions, ignore_label=IGNORE, dice=dice)
    gradient = torch.autograd.grad(module(logits, target, weight), logits)[0]
    ignored = (target[:, -1:].bool() if regions else target == IGNORE).expand_as(gradient)
    assert ignored.any()
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()


@pytest.mark.parametrize("with_dice", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_all_ignored_is_finite_without_gradient(regions, with_dice):
    logits, target, weight = batch(regions=regions, dtype=torch.float16)
    target = torch.ones_like(target) if regions else torch.full_like(target, IGNORE)
    manager = REGIONS if regions else PLAIN
    dice = build_label_loss(manager, batch_dice=True, ddp=False, ignore_index=IGNORE).dc if with_dice else None
    loss = UncertaintyWeightedLoss(regions=regions, ignore_label=IGNORE, dice=dice)(logits, target, weight)
    assert loss.item() == pytest.approx(-1 if with_dice else 0)
    assert (torch.autograd.grad(65536 * loss, logits)[0] == 0).all()


def test_half_precision_logits_give_a_float32_loss():
    logits, target, weight = batch(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = weighted_cross_entropy(logits.bfloat16(), target, weight, ignore_label=IGNORE)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(naive_cross_entropy(logits, target, weight, IGNORE).item(), rel=0.02)


def test_wrong_shapes_are_refused():
    logits, target, weight = batch()
    with pytest.raises(ValueError, match=r"target must have shape \(2, 1, 2, 4, 4\)"):
        weighted_cross_entropy(logits, target[:, 0], weight)
    with pytest.raises(ValueError, match="weight must have shape"):
        weighted_cross_entropy(logits, target, weight[:1])
    logits, target, weight = batch(regions=True)
    with pytest.raises(ValueError, match=r"target must have shape \(2, 2, 2, 4, 4\), got \(2, 3, 2, 4, 4\)"):
        weighted_bce(logits, target, weight, has_ignore=False)


def test_weight_of_uncertainty():
    uncertainty = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(uncertainty_to_weight(uncertainty), torch.tensor([1.0, 0.505, 0.01]))
    torch.testing.assert_close(uncertainty_to_weight(uncertainty, strength=0), torch.ones(3))
    with pytest.raises(ValueError, match=r"strength must be in \[0, 1\], got 2"):
        uncertainty_to_weight(uncertainty, strength=2)


def test_downsampled_weights_are_block_means():
    weight = torch.rand(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    pooled = downsample_uncertainty(weight, (4, 3, 2))
    torch.testing.assert_close(pooled, weight.reshape(2, 1, 4, 3, 2, 2, 4).mean(dim=(4, 6)))
    assert downsample_uncertainty(weight, (4, 6, 8)) is weight
    for size in [(3, 4, 5), (2, 6, 8), (1, 1, 1)]:
        expected = nn.functional.adaptive_avg_pool3d(weight, size)
        torch.testing.assert_close(downsample_uncertainty(weight, size), expected)
    # Pooling U and pooling the weights made of it are the same.
    torch.testing.assert_close(
        uncertainty_to_weight(downsample_uncertainty(weight, (2, 3, 4))),
        downsample_uncertainty(uncertainty_to_weight(weight), (2, 3, 4)),
    )


@pytest.mark.parametrize("regions", [False, True])
def test_deep_supervision_is_the_weighted_sum_of_the_scales(regions):
    scales = [batch(size, regions=regions, seed=i) for i, size in enumerate([(2, 8, 8), (2, 4, 4), (1, 2, 2)])]
    outputs, targets = [scale[0] for scale in scales], [scale[1] for scale in scales]
    weight = scales[0][2]
    loss = UncertaintyWeightedLoss((0.75, 0.25, 0), regions=regions, ignore_label=IGNORE)(outputs, targets, weight)
    pooled = weight.reshape(2, 1, 2, 4, 2, 4, 2).mean(dim=(4, 6))
    naive = naive_bce if regions else naive_cross_entropy
    last = True if regions else IGNORE
    expected = 0.75 * naive(outputs[0], targets[0], weight, last) + 0.25 * naive(outputs[1], targets[1], pooled, last)
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    references = torch.autograd.grad(expected, outputs[:2])
    torch.testing.assert_close(gradients[:2], references)
    assert gradients[2] is None


@pytest.mark.parametrize("regions", [False, True])
def test_weight_one_with_dice_is_the_stock_loss_without_ignore(regions):
    """Where nothing is uncertain, L_u with Dice is what nnU-Net trains with."""
    logits, target, weight = batch(regions=regions, dtype=torch.float32)
    target = target[:, :2] if regions else target.clamp(max=2)
    stock = build_label_loss(REGIONS if regions else PLAIN, batch_dice=True, ddp=False, ignore_index=None)
    module = UncertaintyWeightedLoss(regions=regions, dice=stock.dc)
    torch.testing.assert_close(module(logits, target, torch.ones_like(weight)), stock(logits, target))


def test_dice_weight_and_ignored_voxels_in_the_dice():
    logits, target, weight = batch(dtype=torch.float32)
    stock = build_label_loss(PLAIN, batch_dice=True, ddp=False, ignore_index=IGNORE)
    entropy = UncertaintyWeightedLoss(ignore_label=IGNORE)(logits, target, weight)
    both = UncertaintyWeightedLoss(ignore_label=IGNORE, dice=stock.dc, dice_weight=0.5)(logits, target, weight)
    stock.weight_ce = 0
    torch.testing.assert_close(both, entropy + 0.5 * stock(logits, target))


def test_uncertainty_weighted_loss_refuses_what_does_not_fit():
    logits, target, weight = batch()
    with pytest.raises(ValueError, match="targets must be as many as the 1 outputs, got 2"):
        UncertaintyWeightedLoss()(logits, [target, target], weight)
    with pytest.raises(ValueError, match="outputs must be as many as the 2 weight factors, got 1"):
        UncertaintyWeightedLoss((1, 1))(logits, target, weight)
    with pytest.raises(ValueError, match="weight_factors must hold a factor other than 0"):
        UncertaintyWeightedLoss((0, 0))
    # nnU-Net divides 0 by 0 where the only output of a network of two stages counts nothing
    with pytest.raises(ValueError, match=r"weight_factors must be finite, got \(nan,\).*at least 3 stages"):
        UncertaintyWeightedLoss([float("nan")])


FACTOR = 2


class Teacher:
    """Fixed random features at half the in-plane size, which depend on both inputs and record the calls."""

    def __init__(self, channels=4):
        generator = torch.Generator().manual_seed(9)
        self.kernel = torch.randn(channels, 2, 1, 2, 2, generator=generator, requires_grad=True)
        self.calls = []

    def __call__(self, image, labels):
        self.calls.append((image, labels, torch.is_grad_enabled()))
        stacked = torch.cat([image, labels.float()], dim=1)
        return nn.functional.conv3d(stacked, self.kernel, stride=(1, 2, 2))


def training_batch(*, deep_supervision=True):
    sizes = [(4, 8, 8), (4, 4, 4)] if deep_supervision else [(4, 8, 8)]
    scales = [batch(size, seed=i, dtype=torch.float32) for i, size in enumerate(sizes)]
    hr_logits, hr_target, _ = batch((4 * FACTOR, 8, 8), seed=7, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(2, 6, 4, 4, 2, generator=generator, requires_grad=True)
    adapted = torch.randn(2, 4, 4, 4, 2, generator=generator, requires_grad=True)
    image = torch.randn(2, 1, 4, 8, 8, generator=generator)
    lr = [scale[0] for scale in scales] if deep_supervision else scales[0][0]
    outputs = TrainingOutputs(lr=lr, hr=hr_logits, student=student, adapted=adapted, image=image)
    uncertainty = torch.rand(2, 1, 4, 8, 8, generator=generator)
    return outputs, [*(scale[1] for scale in scales), hr_target, uncertainty]


def build_loss(teacher, factors=(0.6, 0.4), **kwargs):
    stock = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)
    return REHRSegLoss(
        UncertaintyWeightedLoss(factors, ignore_label=IGNORE),
        stock,
        DeepSupervisionWrapper(stock, factors),
        teacher=teacher,
        **kwargs,
    )


@pytest.mark.parametrize("per_slice", [False, True])
def test_total_is_equation_11(per_slice):
    outputs, targets = training_batch()
    teacher = Teacher()
    module = build_loss(teacher, distillation_weight=0.3, per_slice=per_slice, pool=(2, 1, 1))
    loss = module(outputs, targets)
    weight = 1 - 0.99 * targets[3]
    pooled = weight.reshape(2, 1, 4, 4, 2, 4, 2).mean(dim=(4, 6))
    lr = 0.6 * naive_cross_entropy(outputs.lr[0], targets[0], weight, IGNORE)
    lr = lr + 0.4 * naive_cross_entropy(outputs.lr[1], targets[1], pooled, IGNORE)
    hr = build_label_loss(PLAIN, batch_dice=False, ddp=False, ignore_index=IGNORE)(outputs.hr, targets[2])
    features = resize_to(Teacher()(outputs.image, targets[0]).detach(), (4, 4, 2))
    affinity = affinity_loss(outputs.student, features, (2, 1, 1), per_slice=per_slice)
    spatial = spatial_loss(outputs.adapted, features)
    expected = lr + hr + 0.3 * (affinity + spatial)
    torch.testing.assert_close(loss, expected)
    inputs = [*outputs.lr, outputs.hr, outputs.student, outputs.adapted]
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs))
    components = {"lr": lr, "hr": hr, "affinity": affinity, "spatial": spatial}
    assert module.components.keys() == components.keys()
    for name, term in components.items():
        torch.testing.assert_close(module.components[name], term.detach())
        assert not module.components[name].requires_grad


@pytest.mark.parametrize("method", ["correlation", "spatial", "mimic", "ifvd"])
def test_other_distillations_take_the_place_of_the_papers(method):
    outputs, targets = training_batch()
    module = build_loss(Teacher(), distillation=method, distillation_weight=0.3)
    loss = module(outputs, targets)
    features = resize_to(Teacher()(outputs.image, targets[0]).detach(), (4, 4, 2))
    labels = targets[0][:, :, :, 1::2, 2::4]  # of 8 x 8 voxels those nearest to the centres of 4 x 2
    name, expected = {
        "correlation": ("affinity", affinity_loss(outputs.student, features)),
        "spatial": ("spatial", spatial_loss(outputs.adapted, features)),
        "mimic": ("mimic", mimic_loss(outputs.adapted, features)),
        "ifvd": ("ifvd", ifvd_loss(outputs.student, features, torch.cat([labels == c for c in range(3)], dim=1))),
    }[method]
    assert module.components.keys() == {"lr", "hr", name}
    torch.testing.assert_close(module.components[name], expected.detach())
    torch.testing.assert_close(loss, module.components["lr"] + module.components["hr"] + 0.3 * expected)
    inputs = [outputs.student, outputs.adapted]  # one of the two has a zero gradient
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
    references = torch.autograd.grad(0.3 * expected, inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradients, references)


def test_an_unknown_distillation_is_refused():
    with pytest.raises(ValueError, match=r"distillation must be one of .*'mimic', 'ifvd'\), got 'kd'"):
        build_loss(None, distillation="kd")


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_classes_of_labels_leave_ignored_voxels_out(dtype):
    target = torch.tensor([0, 1, 2, IGNORE]).reshape(1, 1, 1, 1, 4).to(dtype)
    maps = class_maps(target, 3, regions=False, has_ignore=True)
    assert maps.flatten(2)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_classes_of_regions_overlap_and_have_a_background():
    whole, core, ignored = [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]
    target = torch.tensor([whole, core, ignored]).reshape(1, 3, 1, 1, 4)
    maps = class_maps(target, 2, regions=True, has_ignore=True).flatten(2)[0].int().tolist()
    assert maps == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    maps = class_maps(target[:, :2].float(), 2, regions=True, has_ignore=False).flatten(2)[0].int().tolist()
    assert maps == [[1, 0, 0, 0], whole, core]


def test_teacher_is_called_without_gradient_on_image_and_full_resolution_target():
    outputs, targets = training_batch()
    teacher = Teacher()
    build_loss(teacher)(outputs, targets).backward()
    [(image, labels, grad_enabled)] = teacher.calls
    assert image is outputs.image
    assert labels is targets[0]
    assert not grad_enabled
    assert teacher.kernel.grad is None


@pytest.mark.parametrize("disable", ["no teacher", "weight 0"])
def test_without_distillation_the_adaptor_keeps_a_zero_gradient(disable):
    outputs, targets = training_batch()
    with torch.no_grad():
        outputs.adapted[0, 0, 0, 0, 0] = float("inf")
    teacher = Teacher()
    module = build_loss(None) if disable == "no teacher" else build_loss(teacher, distillation_weight=0)
    loss = module(outputs, targets)
    torch.testing.assert_close(loss, module.components["lr"] + module.components["hr"])
    assert (torch.autograd.grad(loss, outputs.adapted)[0] == 0).all()
    assert module.components.keys() == {"lr", "hr"}
    assert not teacher.calls


def test_one_lr_output_without_deep_supervision():
    outputs, targets = training_batch(deep_supervision=False)
    listed = outputs._replace(lr=[outputs.lr])
    module = build_loss(Teacher(), factors=(1,))
    torch.testing.assert_close(module(outputs, targets), module(listed, targets))
    with pytest.raises(ValueError, match="targets must be 1 LR targets, the HR target and the uncertainty, got 2"):
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
    teacher = Teacher()
    module = build_loss(teacher)
    torch.testing.assert_close(module(outputs.lr, targets[:2]), module.validation_loss(outputs.lr, targets[:2]))
    assert not teacher.calls
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
    module = build_loss(Teacher())
    loss = module(half, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(module(outputs, targets).item(), rel=1e-2)
    gradients = torch.autograd.grad(65536 * loss, [half.hr, half.student, half.adapted])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_strength_0_weights_all_voxels_alike():
    outputs, targets = training_batch()
    loss = build_loss(Teacher(), uncertainty_strength=0.0)(outputs, targets)
    certain = [*targets[:-1], torch.zeros_like(targets[-1])]
    torch.testing.assert_close(loss, build_loss(Teacher())(outputs, certain))
    assert not torch.allclose(loss, build_loss(Teacher())(outputs, targets))

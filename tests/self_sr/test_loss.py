import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.self_sr.loss import SelfSRLoss, label_error, uncertainty_l1
from rehrseg_nnunet.self_sr.network import SelfSROutput

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
SIZE = (2, 3, 4)


def image_batch(seed=0, channels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    prediction = torch.randn(2, channels, *SIZE, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randn(2, channels, *SIZE, generator=generator, dtype=dtype)
    uncertainty = (0.05 + 0.9 * torch.rand(2, 1, *SIZE, generator=generator, dtype=dtype)).requires_grad_()
    mask = torch.rand(2, 1, *SIZE, generator=generator) > 0.3
    return prediction, target, uncertainty, mask


def naive_l1(prediction, target, mask):
    errors = [
        abs(prediction[i, c, z, y, x].item() - target[i, c, z, y, x].item())
        for i, _, z, y, x in mask.nonzero().tolist()
        for c in range(prediction.shape[1])
    ]
    return sum(errors) / len(errors)


def naive_uncertainty_l1(prediction, target, uncertainty, mask, floor):
    """Eq. 6 by selection of the voxels, differentiable, the mask spread over the channels."""
    select = mask.bool().expand_as(prediction)
    error = (prediction - target).abs()[select]
    u = uncertainty.expand_as(prediction)[select].clamp(min=floor)
    return (error / u + u.log()).mean()


@pytest.mark.parametrize("target_outside", [0.0, float("nan"), float("inf")])
def test_masked_voxels_get_exactly_zero_gradient(target_outside):
    prediction, target, uncertainty, mask = image_batch()
    expected = uncertainty_l1(prediction, target, uncertainty, mask)
    target = torch.where(mask, target, target_outside)
    loss = uncertainty_l1(prediction, target, uncertainty, mask)
    assert loss.item() == expected.item()
    loss.backward()
    assert (prediction.grad[~mask.expand_as(prediction)] == 0).all()
    assert (prediction.grad[mask.expand_as(prediction)] != 0).all()
    assert (uncertainty.grad[~mask] == 0).all()
    assert (uncertainty.grad[mask] != 0).all()


def test_uncertainty_l1_equals_naive():
    prediction, target, uncertainty, mask = image_batch()
    for floor in (1e-3, 0.3):
        loss = uncertainty_l1(prediction, target, uncertainty, mask, floor)
        expected = naive_uncertainty_l1(prediction, target, uncertainty, mask, floor)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, prediction), torch.autograd.grad(expected, prediction))
    loss = uncertainty_l1(prediction, target, uncertainty, mask)
    expected = naive_uncertainty_l1(prediction, target, uncertainty, mask, 1e-3)
    torch.testing.assert_close(torch.autograd.grad(loss, uncertainty), torch.autograd.grad(expected, uncertainty))


def test_uncertainty_l1_gradcheck():
    prediction, target, uncertainty, mask = image_batch()
    assert torch.autograd.gradcheck(lambda p, u: uncertainty_l1(p, target, u, mask), (prediction, uncertainty))


@pytest.mark.parametrize("error", [0.02, 0.2, 0.7])
def test_the_best_uncertainty_is_the_error(error):
    prediction = torch.full((1, 1, 1, 1, 1), error, dtype=torch.float64)
    target, mask = torch.zeros_like(prediction), torch.ones_like(prediction)
    candidates = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
    losses = [uncertainty_l1(prediction, target, u.reshape(1, 1, 1, 1, 1), mask).item() for u in candidates]
    assert candidates[torch.tensor(losses).argmin()].item() == pytest.approx(error, abs=1e-3)
    best = prediction.clone().requires_grad_()
    assert torch.autograd.grad(uncertainty_l1(prediction, target, best, mask), best)[0].item() == pytest.approx(0)


def test_with_several_channels_the_best_uncertainty_is_the_mean_error():
    prediction = torch.tensor([0.1, 0.5], dtype=torch.float64).reshape(1, 2, 1, 1, 1)
    u = torch.full((1, 1, 1, 1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    loss = uncertainty_l1(prediction, torch.zeros_like(prediction), u, torch.ones_like(u))
    assert torch.autograd.grad(loss, u)[0].item() == pytest.approx(0, abs=1e-12)


def test_floored_uncertainty_can_only_come_back_up():
    prediction = torch.tensor([0.0, 0.1]).reshape(1, 1, 1, 1, 2)
    u = torch.full((1, 1, 1, 1, 2), 1e-6, requires_grad=True)
    loss = uncertainty_l1(prediction, torch.zeros_like(prediction), u, torch.ones(1, 1, 1, 1, 2))
    floor = torch.tensor(1e-3)
    assert loss.item() == pytest.approx((floor.log() + 0.1 / floor + floor.log()).item() / 2, rel=1e-5)
    small, large = torch.autograd.grad(loss, u)[0].flatten().tolist()
    assert small == 0
    assert large < 0


def test_losses_are_float32_for_half_precision():
    prediction, target, uncertainty, mask = image_batch(dtype=torch.float32)
    expected = uncertainty_l1(prediction, target, uncertainty, mask).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = uncertainty_l1(prediction.bfloat16(), target, uncertainty.bfloat16(), mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.05, abs=0.02)
    tiny = torch.full((1, 1, 1, 1, 1), 1e-7, dtype=torch.float16)
    assert uncertainty_l1(60000 * torch.ones_like(tiny), tiny, tiny, torch.ones_like(tiny)).item() == pytest.approx(
        6e7, rel=1e-3
    )


def test_nothing_counts_gives_zero_in_the_graph():
    prediction, target, uncertainty, mask = image_batch()
    none = torch.zeros_like(mask)
    loss = uncertainty_l1(prediction, target, uncertainty, none)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [prediction, uncertainty])
    assert all((gradient == 0).all() for gradient in gradients)


def test_maps_of_other_shapes_are_refused():
    prediction, target, uncertainty, mask = image_batch()
    with pytest.raises(ValueError, match="target must have the prediction's shape"):
        uncertainty_l1(prediction, target[:, :1], uncertainty, mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        uncertainty_l1(prediction, target, uncertainty, mask[:, 0])
    with pytest.raises(ValueError, match="uncertainty must have shape"):
        uncertainty_l1(prediction, target, uncertainty[:1], mask)
    with pytest.raises(ValueError, match="floor must be positive, got 0"):
        uncertainty_l1(prediction, target, uncertainty, mask, floor=0)


def output_of(labels, seed=0):
    prediction, target, uncertainty, mask = image_batch(seed, dtype=torch.float32)
    return SelfSROutput(prediction, labels, uncertainty), target, mask


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


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_windows_without_labels_train_the_image_only(manager, dtype, batch_dice):
    """All voxels ignored: finite, no gradient for the labels, also scaled as in mixed precision."""
    labels, target = plain_batch() if manager is PLAIN else region_batch()
    target = torch.full_like(target, 3) if manager is PLAIN else torch.ones_like(target)
    half = labels.to(dtype)
    output, image, mask = output_of(half)
    loss = SelfSRLoss(build_label_loss(manager, batch_dice=batch_dice, ddp=False, ignore_index=3))(
        output, [image, target, mask]
    )
    assert loss.isfinite()
    image_gradient, label_gradient = torch.autograd.grad(65536 * loss, [output.image, half])
    assert (label_gradient == 0).all()
    assert image_gradient.abs().max() > 0


class HalfSumOfSquares(nn.Module):
    """A label loss whose value is easy to know."""

    def forward(self, logits, labels):
        return 0.5 * ((logits - labels) ** 2).sum()


def test_first_phase_is_l1_and_labels_with_a_zero_gradient_of_u():
    logits, labels = plain_batch()
    output, image, mask = output_of(logits)
    loss = SelfSRLoss(HalfSumOfSquares())(output, [image, labels, mask])
    expected = naive_l1(output.image, image, mask) + 0.5 * ((logits - labels) ** 2).sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    label_gradient, uncertainty_gradient = torch.autograd.grad(loss, [logits, output.uncertainty])
    torch.testing.assert_close(label_gradient, logits - labels)
    assert (uncertainty_gradient == 0).all()


def test_second_phase_adds_equation_6():
    logits, labels = plain_batch()
    output, image, mask = output_of(logits)
    module = SelfSRLoss(HalfSumOfSquares(), floor=0.2)
    first = module(output, [image, labels, mask])
    module.use_uncertainty = True
    second = module(output, [image, labels, mask])
    extra = naive_uncertainty_l1(output.image, image, output.uncertainty, mask, 0.2)
    torch.testing.assert_close(second, first + extra)
    label_gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (first, second)]
    torch.testing.assert_close(*label_gradients)
    assert torch.autograd.grad(second, output.uncertainty)[0].abs().max() > 0


def test_an_overflowing_half_uncertainty_does_not_spoil_the_first_phase():
    logits, labels = plain_batch()
    output, image, mask = output_of(logits)
    output = output._replace(uncertainty=torch.full_like(output.uncertainty, float("inf")))
    assert SelfSRLoss(HalfSumOfSquares())(output, [image, labels, mask]).isfinite()


def test_target_must_have_three_entries():
    logits, labels = plain_batch()
    output, image, _ = output_of(logits)
    with pytest.raises(ValueError, match="target must be image, labels and mask, got 2 entries"):
        SelfSRLoss(HalfSumOfSquares())(output, [image, labels])


@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_label_errors_are_the_wrong_labels_that_count(manager):
    logits, labels = plain_batch() if manager is PLAIN else region_batch()
    error, valid = label_error(logits, labels)
    assert error.shape == valid.shape == (2, 1, *SIZE)
    for b, z, y, x in torch.ones(2, *SIZE).nonzero().tolist():
        voxel, found = labels[b, :, z, y, x].tolist(), logits[b, :, z, y, x].tolist()
        counts = voxel[0] < 3 if manager is PLAIN else not voxel[-1]
        wrong = (
            max(range(3), key=found.__getitem__) != voxel[0]
            if manager is PLAIN
            else [f > 0 for f in found] != voxel[:2]
        )
        assert valid[b, 0, z, y, x] == counts
        assert error[b, 0, z, y, x] == (counts and wrong)
    assert not error.requires_grad


class SumOfSquares(nn.Module):
    """A label loss that does without labels."""

    def forward(self, logits, labels):
        return logits.square().sum()


@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_u_learns_the_share_of_wrong_labels_and_leaves_the_labels_alone(manager):
    """The loss of a U that is the same everywhere is smallest at the share of wrong labels."""
    logits, labels = plain_batch() if manager is PLAIN else region_batch()
    output, image, mask = output_of(logits)
    error, valid = label_error(logits, labels)
    share = (error.sum() / valid.sum()).item()

    def gradients(level):
        uncertainty = torch.full((2, 1, *SIZE), level, requires_grad=True)
        module = SelfSRLoss(SumOfSquares(), error="labels")
        losses = []
        for module.use_uncertainty in (False, True):
            losses.append(module(output._replace(uncertainty=uncertainty), [image, labels, mask]))
        difference = losses[1] - losses[0]
        return torch.autograd.grad(difference, [uncertainty, logits, output.image], materialize_grads=True)

    at_share, of_labels, of_image = gradients(share)
    assert at_share.sum().item() == pytest.approx(0, abs=1e-4)
    assert (gradients(0.9 * share)[0].sum() < 0) & (gradients(1.1 * share)[0].sum() > 0)
    torch.testing.assert_close(of_labels, torch.zeros_like(of_labels), rtol=0, atol=1e-5)
    assert of_image.abs().max() < 1e-6


def test_both_errors_add_up():
    logits, labels = plain_batch()
    output, image, mask = output_of(logits)
    losses = {
        error: SelfSRLoss(HalfSumOfSquares(), error=error, use_uncertainty=True)(output, [image, labels, mask])
        for error in ("image", "labels", "both")
    }
    without = SelfSRLoss(HalfSumOfSquares())(output, [image, labels, mask])
    torch.testing.assert_close(losses["both"], losses["image"] + losses["labels"] - without)

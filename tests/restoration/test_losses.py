"""Image losses: voxels outside the volume do not count."""

import pytest
import torch
from torch import nn

from rehrseg_nnunet.restoration.losses import masked_l1

SIZE = (2, 3, 4)


def image_batch(channels=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(2, channels, *SIZE, generator=generator, dtype=dtype).requires_grad_()
    target = torch.randn(2, channels, *SIZE, generator=generator, dtype=dtype)
    mask = torch.rand(2, 1, *SIZE, generator=generator) > 0.3
    return prediction, target, mask


def naive_l1(prediction, target, mask):
    errors = [
        abs(prediction[i, c, z, y, x].item() - target[i, c, z, y, x].item())
        for i, _, z, y, x in mask.nonzero().tolist()
        for c in range(prediction.shape[1])
    ]
    return sum(errors) / len(errors)


def test_masked_l1_equals_naive():
    prediction, target, mask = image_batch()
    assert masked_l1(prediction, target, mask).item() == pytest.approx(naive_l1(prediction, target, mask))
    everywhere = torch.ones_like(mask)
    torch.testing.assert_close(masked_l1(prediction, target, everywhere), nn.functional.l1_loss(prediction, target))


def test_masked_l1_gradcheck():
    prediction, target, mask = image_batch()
    assert torch.autograd.gradcheck(lambda p: masked_l1(p, target, mask.float()), prediction)


@pytest.mark.parametrize("target_outside", [0.0, float("nan"), float("inf")])
def test_masked_voxels_get_exactly_zero_gradient(target_outside):
    prediction, target, mask = image_batch()
    expected = masked_l1(prediction, target, mask)
    loss = masked_l1(prediction, torch.where(mask, target, target_outside), mask)
    assert loss.item() == expected.item()
    loss.backward()
    assert (prediction.grad[~mask.expand_as(prediction)] == 0).all()
    assert (prediction.grad[mask.expand_as(prediction)] != 0).all()


def test_the_loss_is_float32_for_half_precision():
    prediction, target, mask = image_batch(dtype=torch.float32)
    expected = masked_l1(prediction, target, mask).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_l1(prediction.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.05)
    large = torch.full((1, 2, 1, 1, 1), 60000, dtype=torch.float16)
    assert masked_l1(large, -large, torch.ones(1, 1, 1, 1, 1)).item() == pytest.approx(120000, rel=1e-3)


def test_nothing_counts_gives_zero_in_the_graph():
    prediction, target, mask = image_batch()
    loss = masked_l1(prediction, target, torch.zeros_like(mask))
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, prediction)[0] == 0).all()


def test_maps_of_other_shapes_are_refused():
    prediction, target, mask = image_batch()
    with pytest.raises(ValueError, match="target must have the prediction's shape"):
        masked_l1(prediction, target[:, :1], mask)
    with pytest.raises(ValueError, match="mask must have shape"):
        masked_l1(prediction, target, mask[:, 0])

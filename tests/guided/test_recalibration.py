"""Position-aware recalibration against a loop over voxels, and what must not change it."""

import itertools
import math

import pytest
import torch

from rehrseg_nnunet.guided.recalibration import PositionRecalibration

SIZES = [(5, 4), (1, 7), (3, 4, 5), (2, 6, 3), (1, 4, 4)]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def taught(dimension, **values):
    """With random scalars, as after training."""
    module = PositionRecalibration(dimension).double()
    for parameter in module.parameters():
        torch.nn.init.uniform_(parameter, 0.3, 1.5)
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).fill_(value)
    return module


def features(size, batch=3, channels=4):
    return torch.randn(batch, channels, *size, dtype=torch.float64)


def by_loops(module, batch):
    """The module's formula, voxel by voxel."""
    theta, scale = module.theta.tolist(), module.scale.item()
    results = []
    for sample in batch:
        places = list(itertools.product(*(range(n) for n in sample.shape[1:])))
        at = {place: sample[(slice(None), *place)] for place in places}
        peak = max(places, key=lambda place: at[place].sum().item())
        mean = torch.stack(list(at.values())).mean(0)
        similarity = {}
        for place in places:
            densities = [
                math.exp(-((t * abs(p - q) / scale) ** 2) / 2) / (scale * math.sqrt(2 * math.pi))
                for t, p, q in zip(theta, place, peak, strict=True)
            ]
            to_peak = (at[place] @ at[peak]).item() * sum(densities) / len(densities)
            similarity[place] = module.zero.item() * to_peak + module.one.item() * (at[place] @ mean).item()
        values = list(similarity.values())
        middle = sum(values) / len(values)
        std = math.sqrt(sum((value - middle) ** 2 for value in values) / len(values))
        out = torch.empty_like(sample)
        for place in places:
            context = (similarity[place] - middle) / (std + 1e-5)
            factor = 1 / (1 + math.exp(-(module.weight.item() * context + module.bias.item())))
            out[(slice(None), *place)] = factor * at[place]
        results.append(out)
    return torch.stack(results)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_what_a_loop_over_voxels_gives(size):
    module = taught(len(size))
    batch = features(size)
    torch.testing.assert_close(module(batch).detach(), by_loops(module, batch))


@pytest.mark.parametrize("size", [(5, 4), (2, 6, 3)])
def test_the_nearer_the_peak_the_larger(size):
    """Equal features but for one voxel: only the distance to that one, wherever it is, tells the others apart."""
    module = taught(len(size), one=0.0, weight=1.0)
    for peak in itertools.product(*(range(n) for n in size)):
        batch = torch.ones(1, 1, *size, dtype=torch.float64)
        batch[(0, 0, *peak)] = 1.01
        factor = (module(batch) / batch)[0, 0]
        assert factor.argmax() == batch[0, 0].argmax()


def test_at_the_start_it_is_one_factor():
    batch = features((3, 4, 5)).float()
    torch.testing.assert_close(PositionRecalibration(3)(batch), batch * 0.7310586)


def test_the_start_is_that_of_the_paper():
    module = PositionRecalibration(3)
    values = {name: parameter.item() for name, parameter in module.named_parameters() if name != "theta"}
    assert values == {"scale": 1.0, "zero": 0.0, "one": 1.0, "weight": 0.0, "bias": 1.0}
    thetas = torch.cat([PositionRecalibration(3).theta.detach() for _ in range(300)])
    assert (thetas.min() >= 0) & (thetas.max() < 1)
    assert thetas.mean().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("axes", [(2,), (3,), (4,), (2, 4), (2, 3, 4)])
def test_flipping_the_input_flips_the_output(axes):
    module = taught(3)
    batch = features((3, 4, 6))
    torch.testing.assert_close(module(batch.flip(axes)), module(batch).flip(axes))


def test_samples_and_channel_order_are_independent():
    module = taught(2)
    batch = features((5, 4))
    alone = torch.cat([module(sample[None]) for sample in batch])
    torch.testing.assert_close(module(batch), alone)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(module(batch[:, order]), module(batch)[:, order])


def test_gradients():
    module = taught(2)
    batch = features((3, 4), batch=2, channels=2).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def call(batch, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (batch,))

    assert torch.autograd.gradcheck(call, (batch, *module.parameters()))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features_have_finite_gradients(value):
    module = taught(3)
    batch = torch.full((2, 3, 2, 3, 4), value, dtype=torch.float64, requires_grad=True)
    output = module(batch)
    output.sum().backward()
    assert output.isfinite().all()
    assert batch.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive_stays_finite(scale):
    module = taught(2, scale=scale)
    output = module(features((5, 4)))
    output.sum().backward()
    assert output.isfinite().all()
    assert module.scale.grad.isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_are_of_full_precision(dtype):
    """The products of 64 channels of about 60 are beyond float16."""
    module = taught(3).float()
    batch = 60 * features((4, 4, 4), channels=64).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        output = module(batch)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), module(batch.float()), rtol=2e-2, atol=1e-3)

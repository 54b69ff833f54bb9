"""Fusion against its equations, and what is nothing."""

import pytest
import torch
from guidance_counts import counted
from torch.nn import functional

from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.guided.fusion import GAMMA_SCALE, Aggregation, GuideAdaptor, ScalarFusion, build_fusion

WIDTHS = (4, 8, 16)
C = 20


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def fusion(channels=C, widths=WIDTHS, kernel=(3, 3), **config):
    return build_fusion(FusionConfig(**config), channels, widths, kernel).double()


def features(dimension=2, channels=C):
    size = (6, 8, 10)[-dimension:]
    return torch.randn(2, channels, *size, dtype=torch.float64)


def guides(dimension=2, widths=WIDTHS):
    """Of other sizes than the features."""
    sizes = [(6, 8, 10), (3, 5, 7), (2, 2, 3)]
    return [torch.randn(2, w, *size[-dimension:], dtype=torch.float64) for w, size in zip(widths, sizes, strict=False)]


def normalised(x):
    return (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()


def gate(module, part):
    """Weights of one gate, from its matrices."""
    first, second = module[0], module[2]
    hidden = (part.mean((2, 3)) @ first.weight.T + first.bias).clamp_min(0)
    return (hidden @ second.weight.T + second.bias).clamp_min(0)[:, :, None, None]


def by_equations(module, own, given, gamma):
    aggregation, (convolution, _) = module.aggregation, module.assimilation
    # resized first, then the pointwise convolution
    resized = [functional.interpolate(g, own.shape[2:], mode="bilinear") for g in given]
    pointwise = [p.weight[:, :, 0, 0] for p in aggregation.projections]
    u = [torch.einsum("oi,bihw->bohw", weight, g) for weight, g in zip(pointwise, resized, strict=True)]
    first, _, _, second = aggregation.mix
    hidden = normalised(functional.conv2d(torch.cat(u, 1), first.weight, padding=1)).clamp_min(0)
    a = functional.conv2d(hidden, second.weight, padding=1)
    q = normalised(functional.conv2d(torch.cat([a, own], 1), convolution.weight, padding=1))
    positive, negative = torch.where(q > 0, q, 0), torch.where(q < 0, q, 0)
    refined = gate(module.refinement.positive, positive) * positive
    refined = refined + gate(module.refinement.negative, negative) * negative
    return own + gamma[:, None, None] * refined


@pytest.mark.parametrize("start", ["identity", "paper"])
@pytest.mark.parametrize("hidden", [0.25, 1.0])
def test_adaptive_fusion_is_what_its_equations_say(hidden, start):
    module = fusion(hidden=hidden, start=start)
    for parameter in module.refinement.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 1.0)
    gamma = torch.ones(C, dtype=torch.float64)
    if start == "identity":
        torch.nn.init.normal_(module.gamma)
        gamma = GAMMA_SCALE * module.gamma.detach()
    own, given = features(), guides()
    torch.testing.assert_close(module(own, given), by_equations(module, own, given, gamma))


@pytest.mark.parametrize(("hidden", "share"), [(1.0, 20), (0.25, 5), (0.01, 3)])
def test_weights_are_as_many_as_the_layers_say(hidden, share):
    module = fusion(hidden=hidden)
    inner = share // 3
    aggregation = sum(WIDTHS) * inner + 9 * (3 * inner * share + share * share)
    gates = 2 * (C * C // 2 + C // 2 + C // 2 * C + C)
    assert counted(module) == aggregation + 9 * (share + C) * C + gates + C
    assert counted(fusion(hidden=hidden, start="paper")) == counted(module) - C
    assert counted(fusion(hidden=hidden, refinement=False)) == counted(module) - gates


def test_the_paper_s_fusion_of_the_default_network_has_its_weights():
    """Full width, all stages of nnU-Net's default 3D network, nf 16."""
    widths = (16, 32, 64, 128, 256)
    config = FusionConfig(hidden=1.0, start="paper")
    total = sum(counted(build_fusion(config, channels, widths, (3,) * 3)) for channels in (32, 64, 128, 256, 320, 320))
    assert total == pytest.approx(32.2e6, rel=0.01)


@pytest.mark.parametrize("dimension", [2, 3])
def test_at_the_start_it_is_nothing(dimension):
    own = features(dimension)
    assert torch.equal(fusion(kernel=(3,) * dimension)(own, guides(dimension)), own)


def test_closed_gates_are_nothing_and_negative_evidence_has_its_own():
    module = fusion(start="paper")
    own, given = features(), guides()
    for each in (module.refinement.positive, module.refinement.negative):
        torch.nn.init.zeros_(each[2].weight)
    assert torch.equal(module(own, given), own)
    torch.nn.init.ones_(module.refinement.positive[2].bias)
    raised = module(own, given) - own
    assert (raised >= 0).all()
    assert (raised > 0).any()
    torch.nn.init.zeros_(module.refinement.positive[2].bias)
    torch.nn.init.ones_(module.refinement.negative[2].bias)
    lowered = module(own, given) - own
    assert (lowered <= 0).all()
    assert (lowered < 0).any()


def test_equal_gates_of_one_are_no_refinement():
    module, plain = fusion(start="paper"), fusion(start="paper", refinement=False)
    for each in (module.refinement.positive, module.refinement.negative):
        torch.nn.init.zeros_(each[2].weight)
        torch.nn.init.ones_(each[2].bias)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "refinement" not in k})
    own, given = features(), guides()
    torch.testing.assert_close(module(own, given), plain(own, given))


def test_gamma_is_taught_first_and_all_else_after_it():
    module = fusion()
    own, given = features(), guides()
    module(own, given).square().sum().backward()
    others = [parameter.grad for name, parameter in module.named_parameters() if name != "gamma"]
    assert (module.gamma.grad != 0).any()
    assert all((gradient == 0).all() for gradient in others)
    with torch.no_grad():
        module.gamma -= 0.01 * module.gamma.grad.sign()
    module(own, given).square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in module.parameters())


def test_guides_are_heard_within_a_fine_tuning():
    """What must be added to the features is seen in a guide alone."""
    module = fusion(hidden=1.0).float()
    own, given = features().float(), [guide.float() for guide in guides()]
    missing = functional.interpolate(given[0][:, :1], own.shape[2:], mode="bilinear")
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.99, nesterov=True)  # as in nnU-Net
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        loss = (module(own, given) - own - missing).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]  # 0.1; without gamma's factor 0.65


def test_no_channel_begins_with_dead_gates():
    torch.manual_seed(1)
    means = torch.rand(4, 64) * 0.8  # of instance-normalised evidence's positive part: about 0.4
    shares = []
    for start in ("identity", "paper"):
        module = build_fusion(FusionConfig(start=start), 64, WIDTHS, (3, 3)).refinement
        gates = torch.cat([module.positive(means), module.negative(-means)])
        shares.append(float((gates > 0).any(dim=0).float().mean()))
    assert shares[0] > 0.95
    assert shares[1] < 0.95


def test_closed_gates_would_be_dead():
    """Why there is a gamma."""
    module = fusion(start="paper")
    for each in (module.refinement.positive, module.refinement.negative):
        torch.nn.init.zeros_(each[2].weight)
    module(features(), guides()).square().sum().backward()
    assert all((parameter.grad == 0).all() for parameter in module.parameters())


def test_every_guide_counts():
    module = fusion(start="paper")
    own, given = features(), guides()
    before = module(own, given)
    for level in range(len(WIDTHS)):
        changed = list(given)
        changed[level] = changed[level].flip(2)
        assert not torch.allclose(module(own, changed), before)


def test_axes_that_the_plan_does_not_mix_are_not_mixed():
    """Aggregation without its normalisation sees one slice at a time."""
    kernels = {layer.kernel_size for layer in fusion(kernel=(1, 3, 3)).modules() if isinstance(layer, torch.nn.Conv3d)}
    assert kernels == {(1, 3, 3), (1, 1, 1)}


def test_scalar_fusion():
    module = fusion(widths=(8,), kind="scalar")
    assert isinstance(module, ScalarFusion)
    own, (given,) = features(), guides(widths=(8,))
    resized = functional.interpolate(given, own.shape[2:], mode="bilinear")
    adapted = torch.einsum("oi,bihw->bohw", module.guide.adaptor.weight[:, :, 0, 0], resized)
    torch.testing.assert_close(module(own, [given]), 0.5 * adapted + 0.5 * own)
    with torch.no_grad():
        module.alpha.fill_(-3.0)
        module.beta.fill_(2.0)
    torch.testing.assert_close(module(own, [given]), 2 * own)


def test_a_guide_of_the_right_width_needs_no_adaptor():
    assert counted(GuideAdaptor(8, 8, dimension=2)) == 0
    given = torch.randn(2, 8, 4, 5)
    assert torch.equal(GuideAdaptor(8, 8, dimension=2)([given], (4, 5)), given)
    assert counted(GuideAdaptor(12, 8, dimension=3)) == 96


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["adaptive", "scalar"])
def test_mixed_precision_stays_in_its_type(kind, dtype):
    module = fusion(widths=(8,), kind=kind).float()
    own, given = features().to(dtype), [guides(widths=(8,))[0].to(dtype)]
    with torch.autocast("cpu", dtype=dtype):
        fused = module(own, given)
    assert fused.dtype == dtype
    assert fused.isfinite().all()


def test_aggregation_has_at_least_one_map_a_guide():
    assert Aggregation(WIDTHS, 2, (3, 3))(guides=[g.float() for g in guides()], size=(4, 4)).shape == (2, 2, 4, 4)

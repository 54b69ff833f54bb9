import pytest
import torch
from slice_positions import lr_slice_positions
from torch import nn

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.self_sr import network as module
from rehrseg_nnunet.self_sr.flavr import ChannelGate
from rehrseg_nnunet.self_sr.network import (
    METHOD_VERSION,
    SelfSRNetwork,
    SliceInterpolation,
    UASRHead,
    build_self_sr_network,
    interpolate_middle,
    mix_candidates,
    target_fractions,
)

MODES = ("residual", "direct")


def make_network(*, seed: int = 0, image_channels: int = 1, label_channels: int = 2, factor: int = 3, **options):
    torch.manual_seed(seed)
    return SelfSRNetwork(image_channels, label_channels, factor, base_features=2, candidates=3, **options).double()


def make_window(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 6])
def test_targets_lie_where_the_lr_slices_are_centred(factor):
    k = 2
    hr = factor * k + factor // 2 + torch.arange(factor)
    before, after = lr_slice_positions(k + 2, factor)[k : k + 2]
    expected = (hr.double() - before) / (after - before)
    torch.testing.assert_close(target_fractions(factor, like=expected), expected)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_interpolation_keeps_a_ramp(factor):
    k, slope = 5, 0.7
    lr = slope * torch.as_tensor(lr_slice_positions(k + 3, factor))[k - 1 : k + 3]
    hr = slope * (factor * k + factor // 2 + torch.arange(factor, dtype=torch.float64))
    out = interpolate_middle(lr.view(1, 1, 4, 1, 1).expand(1, 2, 4, 3, 2), factor)
    torch.testing.assert_close(out, hr.view(1, 1, -1, 1, 1).expand(1, 2, factor, 3, 2))


def test_residual_mode_without_a_residual_is_the_interpolation():
    network = make_network(factor=4)
    nn.init.zeros_(network.head.image_branch.weight)
    window = make_window(2, 3, 4, 5, 6)
    window[:, 0] = torch.arange(4, dtype=torch.float64).view(1, 4, 1, 1)
    expected = 1 + (torch.arange(4, dtype=torch.float64) + 0.5) / 4
    torch.testing.assert_close(network(window).image, expected.view(1, 1, 4, 1, 1).expand(2, 1, 4, 5, 6))


def test_direct_mode_without_a_mixture_is_the_mean_of_the_case():
    network = make_network(image_mode="direct")
    nn.init.zeros_(network.head.image_branch.weight)
    image = network(make_window(2, 3, 4, 5, 6)).image
    torch.testing.assert_close(image, torch.zeros_like(image))


def test_training_starts_near_the_interpolation_and_undecided():
    torch.manual_seed(0)
    network = SelfSRNetwork(1, 3, 4, base_features=8)
    window = torch.rand(2, 4, 4, 16, 16)
    with torch.no_grad():
        image, _, uncertainty = network(window)
    assert (image - interpolate_middle(window[:, :1], 4)).abs().max() < 0.1
    assert (uncertainty - 0.5).abs().max() < 0.3


def test_features_do_not_fade_before_training():
    torch.manual_seed(0)
    network = SelfSRNetwork(1, 3, 2, base_features=8)
    with torch.no_grad():
        levels = network.encoder(torch.randn(2, 4, 4, 16, 16))
        decoded = network.decoder(levels)
    assert all(0.1 < features.std() < 10 for features in (*levels, decoded))


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_range_of_tissue_is_reachable(mode):
    network = make_network(image_mode=mode)
    window = make_window(1, 3, 4, 8, 8) - 0.5
    for bias, sign in ((9.0, 1), (-9.0, -1)):
        nn.init.constant_(network.head.image_branch.bias, bias)
        assert (sign * network(window).image > 0.5 - 1e-3).all()


@pytest.mark.parametrize("mode", MODES)
def test_a_window_is_not_normalised_by_what_it_happens_to_hold(mode):
    """Far from a bright rim, the same tissue gives the same result whether the window sees the rim or not."""
    network = make_network(image_mode=mode, label_mode="direct", smooth_upsampling=False)
    for gate in (m for m in network.modules() if isinstance(m, ChannelGate)):  # whose means are over the window
        nn.init.zeros_(gate.attn_layer[0].weight)
    window = make_window(1, 3, 4, 8, 240)
    rim = window.clone()
    rim[:, 0, ..., -8:] += 50
    for plain, other in zip(network(window), network(rim), strict=True):
        torch.testing.assert_close(plain[..., :80], other[..., :80])


def test_image_and_labels_are_fed_as_they_are():
    network = make_network()
    seen = []
    network.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    window = make_window(2, 3, 4, 8, 8) * 5 + 2
    network(window)
    torch.testing.assert_close(seen[0], window, rtol=0, atol=0)


def test_weights_of_another_version_do_not_load():
    network = make_network()
    weights = network.state_dict()
    assert weights["version"] == METHOD_VERSION
    del weights["version"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"version"'):
        make_network().load_state_dict(weights)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 16), (9, 3), (13, 24)])
@pytest.mark.parametrize("label_channels", [1, 3])
def test_any_plane_size(height, width, label_channels):
    network = make_network(label_channels=label_channels, factor=2)
    window = make_window(2, 1 + label_channels, 4, height, width)
    image, labels, uncertainty = network(window)
    assert image.shape == (2, 1, 2, height, width)
    assert labels.shape == (2, label_channels, 2, height, width)
    assert uncertainty.shape == (2, 1, 2, height, width)
    assert 0 < uncertainty.min() <= uncertainty.max() < 1
    assert network.layer1_features(window).shape == (2, 2, 4, (height + 1) // 2, (width + 1) // 2)


def test_the_plane_is_extended_by_its_last_pixels():
    network = make_network(label_mode="direct")
    window = make_window(1, 3, 4, 7, 6)
    rows, columns = [0, 1, 2, 3, 4, 5, 6, 6], [0, 1, 2, 3, 4, 5, 5, 5]
    inputs = window[..., rows, :][..., columns]
    features = network.encoder(inputs)
    mixture, labels, uncertainty = network.head(network.decoder(features))
    output = network(window)
    torch.testing.assert_close(output.labels, labels[..., :7, :6])
    torch.testing.assert_close(output.uncertainty, uncertainty[..., :7, :6])
    expected = interpolate_middle(window[:, :1], 3) + mixture[..., :7, :6]
    torch.testing.assert_close(output.image, expected)
    torch.testing.assert_close(network.layer1_features(window), features[1][..., :4, :3])


def naive_head(head: UASRHead, features: torch.Tensor, candidates: int) -> list[torch.Tensor]:
    """Eq. 2-5 slice by slice and candidate by candidate, with all maps in memory."""
    slices = features.unbind(2)
    merged = nn.functional.leaky_relu(head.fuse(torch.cat(slices, dim=1)), 0.2)
    outputs: list[list[torch.Tensor]] = [[], [], []]
    for part in merged.chunk(head.factor, dim=1):

        def branch(conv: nn.Conv3d, part: torch.Tensor = part) -> torch.Tensor:
            return torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0, 0], part) + conv.bias.view(1, -1, 1, 1)

        attention = torch.exp(branch(head.attention_branch))
        attention = attention / attention.sum(dim=1, keepdim=True)
        image_maps = torch.tanh(branch(head.image_branch)).chunk(candidates, dim=1)
        label_maps = branch(head.label_branch).chunk(candidates, dim=1)
        weights = attention.split(1, dim=1)
        outputs[0].append(sum(w * p for w, p in zip(weights, image_maps, strict=True)))
        outputs[1].append(sum(w * p for w, p in zip(weights, label_maps, strict=True)))
        logits = torch.einsum("n,bnhw->bhw", head.uncertainty.weight.flatten(), candidates * attention)
        logits = logits + head.uncertainty.bias
        outputs[2].append((1 / (1 + torch.exp(-logits)))[:, None])
    return [torch.stack(parts, dim=2) for parts in outputs]


@pytest.mark.parametrize("chunk_maps", [1, 7, 64])
def test_head_equals_the_equations_in_value_and_gradient(chunk_maps, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_MAPS", chunk_maps)
    torch.manual_seed(0)
    head = UASRHead(4, 2, 3, factor=2, candidates=5).double()
    nn.init.normal_(head.image_branch.weight)
    nn.init.normal_(head.uncertainty.bias)
    features = make_window(2, 4, 4, 3, 5).requires_grad_()
    wanted = [features, *head.parameters()]
    outputs, naive = head(features), naive_head(head, features, 5)
    weights = [torch.randn_like(output) for output in outputs]
    for output, expected in zip(outputs, naive, strict=True):
        torch.testing.assert_close(output, expected)
    gradients = torch.autograd.grad(sum((w * o).sum() for w, o in zip(weights, outputs, strict=True)), wanted)
    expected = torch.autograd.grad(sum((w * o).sum() for w, o in zip(weights, naive, strict=True)), wanted)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_gradcheck_of_the_chunked_mixture(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_MAPS", 2)
    torch.manual_seed(0)
    branch = nn.Conv3d(2, 6, 1).double()
    features, attention = make_window(1, 2, 2, 2, 1), make_window(1, 3, 2, 2, 1, seed=2)

    def mix(features: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        return mix_candidates(features, attention, branch, bounded=True)

    assert torch.autograd.gradcheck(mix, (features.requires_grad_(), attention.requires_grad_()))


def test_many_heads_are_never_all_in_memory(monkeypatch):
    heads, chunks, saved = 80, [], []
    convolve = nn.functional.conv3d

    def watch(features, weight, bias, *options):
        if not options:  # the modules' own calls pass stride and padding
            chunks.append(weight.shape[0])
        return convolve(features, weight, bias, *options)

    monkeypatch.setattr(module.functional, "conv3d", watch)
    network = SelfSRNetwork(1, heads, 2, base_features=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        network(torch.rand(1, 1 + heads, 4, 16, 16))
    assert sum(chunks) == 16 + 16 * heads
    assert max(chunks) == heads
    assert sum(saved) < 16 * heads * 2 * 16 * 16


def test_gradients_reach_every_parameter():
    network = make_network()
    image, labels, uncertainty = network(make_window(2, 3, 4, 8, 8))
    (image.square().mean() + labels.square().mean() + uncertainty.square().mean()).backward()
    dead = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_mixed_precision_returns_the_windows_dtype():
    network = make_network().float()
    window = make_window(1, 3, 4, 8, 8).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(window)
    assert {output.dtype for output in outputs} == {torch.float32}
    torch.testing.assert_close(outputs.image, network(window).image, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"factor": 1}, "factor must be at least 2, got 1"),
        ({"label_channels": 0}, "label_channels must be at least 1, got 0"),
        ({"image_channels": 0}, "image_channels must be at least 1, got 0"),
        ({"image_mode": "absolute"}, "image_mode must be one of .* got 'absolute'"),
        ({"label_mode": "absolute"}, "label_mode must be one of .* got 'absolute'"),
        ({"candidates": 0}, "candidates must be at least 1, got 0"),
    ],
)
def test_bad_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SelfSRNetwork(**{"image_channels": 1, "label_channels": 1, "factor": 2, "base_features": 1} | change)


@pytest.mark.parametrize("shape", [(1, 3, 4, 8), (1, 2, 4, 8, 8), (1, 3, 5, 8, 8), (1, 3, 4, 0, 8)])
def test_bad_windows_are_refused(shape):
    network = make_network().float()
    for method in (network, network.layer1_features):
        with pytest.raises(ValueError, match=r"window must be \(B, 3, 4, H, W\), got"):
            method(torch.zeros(shape))


def test_network_is_built_from_the_plans_block():
    block = {
        "factor": 5,
        "self_sr": {"base_features": 3, "candidates": 7, "image_mode": "direct", "label_mode": "direct"},
    }
    config = load_config({"spacing": [5.0, 1.0, 1.0], "rehrseg": block})
    network = build_self_sr_network(config, 2, 4)
    assert (network.factor, network.base_features) == (5, 3)
    assert (network.image_mode, network.label_mode) == ("direct", "direct")
    assert (network.image_channels, network.label_channels) == (2, 4)
    assert network.head.attention_branch.out_channels == 7


def test_trained_interpolation_starts_linear_and_keeps_constants_whatever_its_taps():
    interpolation = SliceInterpolation(4)
    window = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(interpolation(window), interpolate_middle(window, 4))
    with torch.no_grad():
        interpolation.change.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
    assert not torch.allclose(interpolation(window), interpolate_middle(window, 4), atol=0.1)
    torch.testing.assert_close(interpolation(torch.full((1, 1, 4, 2, 2), 7.0)), torch.full((1, 1, 4, 2, 2), 7.0))
    torch.testing.assert_close(interpolation(2 * window + 3), 2 * interpolation(window) + 3, atol=1e-5, rtol=1e-5)

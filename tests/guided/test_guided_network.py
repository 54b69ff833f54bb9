"""Guided networks: nothing changes at the start, old weights keep their names, the keeper stays as it is."""

import copy

import pytest
import torch
from guided_unets import FEATURES, KINDS, as_list, guided, images, keeper_for, stock
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from torch import nn

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.guided.guided_network import guidance_of, is_guided
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.training_start import load_baseline
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.segmentation.hr_network import output_mode
from rehrseg_nnunet.segmentation.thin_input import add_thin_input

kinds = pytest.mark.parametrize(("kind", "dimension"), KINDS)
deep = pytest.mark.parametrize("deep_supervision", [False, True])


def opened(network, seed=5):
    """With random gammas, as after training."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter)
    return network


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(as_list(first), as_list(second), strict=True))


@kinds
@deep
def test_at_the_start_it_is_the_baseline_bit_for_bit(kind, dimension, deep_supervision):
    plain = stock(kind, dimension, deep_supervision=deep_supervision)
    network = guided(copy.deepcopy(plain))
    for mode in (True, False):
        assert equal(network.train(mode)(images(dimension)), plain.train(mode)(images(dimension)))
    assert is_guided(network)
    assert not is_guided(plain)


@kinds
def test_after_one_step_gamma_and_then_all_else_learns(kind, dimension):
    network = guided(stock(kind, dimension))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    fusions = guidance_of(network).fusions
    for step in range(2):
        optimiser.zero_grad()
        network(images(dimension)).square().mean().backward()
        for name, parameter in fusions.named_parameters():
            assert (parameter.grad != 0).any() == (step > 0 or name.endswith("gamma")), name
        optimiser.step()
    plain = stock(kind, dimension)
    assert not equal(network(images(dimension)), plain(images(dimension)))


@kinds
def test_as_in_the_paper_it_starts_elsewhere_and_learns_at_once(kind, dimension):
    network = guided(stock(kind, dimension), start="paper")
    assert not equal(network(images(dimension)), stock(kind, dimension)(images(dimension)))
    network(images(dimension)).square().mean().backward()
    assert all((p.grad != 0).any() for p in guidance_of(network).fusions.parameters())


@kinds
def test_skips_are_fused_stage_by_stage(kind, dimension):
    """Every stage gets all guides, and its own features."""
    plain = stock(kind, dimension)
    network = opened(guided(copy.deepcopy(plain)))
    skips, guides = plain.encoder(images(dimension)), keeper_for(dimension)(images(dimension)[:, :1])
    fused = network.encoder(images(dimension))
    guidance = guidance_of(network)
    assert list(guidance.fusions) == ["0", "1", "2"]
    for own, after, fusion in zip(skips, fused, guidance.fusions.values(), strict=True):
        torch.testing.assert_close(after, fusion(own, guides))
        assert not torch.equal(after, own)
    assert equal(network(images(dimension)), network.decoder(fused))


@pytest.mark.parametrize("levels", [2, 4])
def test_the_keeper_may_have_more_or_fewer_levels_than_the_network_stages(levels):
    keeper = keeper_for(levels=levels)
    network = opened(guided(stock(), keeper=keeper))
    assert not equal(network(images()), stock()(images()))


@pytest.mark.parametrize("levels", [2, 4])
def test_of_the_same_level_or_the_coarsest(levels):
    keeper = keeper_for(levels=levels)
    network = opened(guided(stock(), keeper=keeper, guides="same_level"))
    guides, skips = keeper(images()[:, :1]), stock().encoder(images())
    fused = network.encoder(images())
    for stage, fusion in enumerate(guidance_of(network).fusions.values()):
        torch.testing.assert_close(fused[stage], fusion(skips[stage], [guides[min(stage, levels - 1)]]))


def test_stages_are_counted_from_1_and_others_stay():
    network = opened(guided(stock(), stages=(3, 1)))
    skips, fused = stock().encoder(images()), network.encoder(images())
    assert [torch.equal(own, after) for own, after in zip(skips, fused, strict=True)] == [False, True, False]
    assert list(guidance_of(network).fusions) == ["0", "2"]


def test_scalar_fusion_starts_from_halves():
    network = guided(stock(), kind="scalar")
    skips, fused = stock().encoder(images()), network.encoder(images())
    guides = keeper_for()(images()[:, :1])
    for own, after, guide, fusion in zip(skips, fused, guides, guidance_of(network).fusions.values(), strict=True):
        torch.testing.assert_close(after, 0.5 * own + 0.5 * fusion.guide([guide], own.shape[2:]))


@kinds
@deep
def test_decoder_only_never_runs_the_encoder(kind, dimension, deep_supervision):
    plain = stock(kind, dimension, deep_supervision=deep_supervision)
    network = guided(copy.deepcopy(plain), kind="decoder_only")
    network.encoder.stages.register_forward_hook(lambda *_: pytest.fail("the encoder ran"))
    skips = network.encoder(images(dimension))
    assert [skip.shape for skip in skips] == [skip.shape for skip in plain.encoder(images(dimension))]
    output = network(images(dimension))
    sum(part.square().mean() for part in as_list(output)).backward()
    unused = {
        name for name, parameter in network.named_parameters() if parameter.requires_grad and parameter.grad is None
    }
    assert all("seg_layers" in name for name in unused)  # of deep supervision, as in nnU-Net
    assert not any(parameter.requires_grad for parameter in network.encoder.parameters())


def test_decoder_only_rounds_sizes_as_the_encoder_does():
    plain = stock(dimension=2)
    image = images(2)[..., :15, :21]
    sizes = [skip.shape for skip in plain.encoder(image)]
    assert [skip.shape for skip in guided(plain, kind="decoder_only").encoder(image)] == sizes


@kinds
def test_new_weights_are_named_as_segmentation_layers(kind, dimension):
    plain, network = stock(kind, dimension), guided(stock(kind, dimension))
    old, new = plain.state_dict(), network.state_dict()
    assert [key for key in new if key in old] == list(old)
    added = set(new) - set(old)
    assert all(".seg_layers." in key for key in added)
    keys = {key.split("guidance.")[1].split(".")[0] for key in added}
    assert keys == {"keeper", "fusions"}
    number = sum(parameter.numel() for parameter in network.parameters())
    assert number == sum(new[key].numel() for key in added) + sum(p.numel() for p in plain.parameters())


@kinds
def test_weights_and_copies_give_the_same(kind, dimension):
    network = opened(guided(stock(kind, dimension)))
    other = guided(stock(kind, dimension, seed=7), keeper=keeper_for(dimension, seed=8), seed=9)
    other.load_state_dict(network.state_dict(), strict=True)
    copied = copy.deepcopy(network)
    for same in (other, copied):
        assert equal(same(images(dimension)), network(images(dimension)))
        assert guidance_of(same) is same.decoder.seg_layers[-1].guidance
    nn.init.zeros_(guidance_of(copied).fusions["0"].gamma)
    assert not equal(copied(images(dimension)), network(images(dimension)))


@kinds
def test_pretrained_weights_of_a_plain_network(kind, dimension, tmp_path):
    plain = stock(kind, dimension, seed=7)
    torch.save({"network_weights": plain.state_dict()}, tmp_path / "plain.pth")
    network = guided(stock(kind, dimension))
    before = {name: value.clone() for name, value in guidance_of(network).state_dict().items()}
    load_pretrained_weights(network, str(tmp_path / "plain.pth"))
    assert all(torch.equal(value, before[name]) for name, value in guidance_of(network).state_dict().items())
    # nnU-Net leaves the segmentation layers out
    assert equal(network.encoder(images(dimension)), plain.encoder(images(dimension)))
    load_baseline(network, tmp_path / "plain.pth")
    assert equal(network(images(dimension)), plain(images(dimension)))


def trained(network, *, steps=3):
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    for _ in range(steps):
        network.train()
        optimiser.zero_grad()
        network(images()).square().mean().backward()
        optimiser.step()
    return {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}


def test_the_keeper_is_frozen():
    network = guided(stock())
    changed = trained(network)
    keeper = guidance_of(network).keeper
    assert not any(".keeper." in name for name in changed)
    # not only without gradient: DistributedDataParallel waits for all that ask for one
    assert not any(parameter.requires_grad for parameter in keeper.parameters())
    assert all(parameter.grad is None for parameter in keeper.parameters())
    assert not any(module.training for module in keeper.modules())
    assert network.training
    assert guidance_of(network).fusions.training
    assert {name.split(".")[0] for name in changed} == {"encoder", "decoder"}


@pytest.mark.parametrize("residual", [False, True])
def test_a_keeper_that_learns_learns(residual):
    """All of it: DistributedDataParallel would wait for what asks for a gradient and gets none."""
    network = guided(stock(), keeper=keeper_for(residual=residual), learns=True)
    keeper = guidance_of(network).keeper
    for gamma in keeper.gamma if residual else ():
        torch.nn.init.ones_(gamma)  # as the control begins
    changed = trained(network)
    learnt = {name.split(".keeper.")[1] for name in changed if ".keeper." in name}
    assert learnt == {name for name, _ in keeper.named_parameters()}
    assert keeper.training


def test_the_keeper_sees_its_own_channels_only():
    network = opened(guided(stock(), keeper=keeper_for(sources=1), channels=(1,)))
    guides = guidance_of(network).guides(images())
    image = images()
    image[:, 0] = float("nan")
    assert equal(guidance_of(network).guides(image), guides)
    assert equal(list(keeper_for()(images()[:, 1:])), guides)


def test_another_grid():
    view = SourceView(channels=(0,), axes=(0, 2, 1), spacing_ratio=(1.0, 1.5, 0.5))
    network = opened(guided(stock(), view=view))
    guides = guidance_of(network).guides(images())
    assert [tuple(guide.shape[2:]) for guide in guides] == [(4, 8, 36), (4, 4, 18), (2, 2, 9)]
    assert network(images()).shape == (2, 3, 4, 16, 24)


def with_hr_head(network):
    torch.manual_seed(4)
    config = HRHeadConfig(hidden_features=4)
    return add_hr_head(network, factor=2, teacher_channels=5, config=config)


@pytest.mark.parametrize("kind", ["plain", "residual"])
@pytest.mark.parametrize("guided_first", [True, False])
@deep
def test_it_composes_with_the_hr_head(kind, guided_first, deep_supervision):
    plain = with_hr_head(stock(kind, deep_supervision=deep_supervision))
    network = stock(kind, deep_supervision=deep_supervision)
    network = with_hr_head(guided(network)) if guided_first else guided(with_hr_head(network))
    assert all(".seg_layers." in key for key in set(network.state_dict()) - set(stock(kind).state_dict()))
    assert guidance_of(network) is network.decoder.seg_layers[-1].guidance
    assert equal(network(images()), plain(images()))
    with output_mode(network, "hr"), output_mode(plain, "hr"):
        assert all(torch.equal(a, b) for a, b in zip(network(images()), plain(images()), strict=True))
        opened(network)
        assert not any(torch.equal(a, b) for a, b in zip(network(images()), plain(images()), strict=True))
    assert not equal(network(images()), plain(images()))
    with output_mode(network, "training"):
        assert torch.equal(network(images()).student, network.encoder(images())[1])


@pytest.mark.parametrize("guided_first", [True, False])
def test_it_composes_with_thin_input(guided_first):
    """Keeper and fusion see the interpolated slices, as the encoder does."""
    plain = add_thin_input(stock(), factor=2, teacher_channels=5, interpolation="spline")
    network = stock()
    network = (
        add_thin_input(guided(network), factor=2, teacher_channels=5, interpolation="spline")
        if guided_first
        else guided(add_thin_input(network, factor=2, teacher_channels=5, interpolation="spline"))
    )
    assert equal(network(images()), plain(images()))
    seen = []
    guidance_of(network).keeper.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with output_mode(network, "hr"):
        thick, thin = opened(network)(images())
    assert (thick.shape, thin.shape) == ((2, 3, 4, 16, 24), (2, 3, 8, 16, 24))
    assert seen == [(2, 1, 8, 16, 24)]
    assert not equal(network(images()), plain(images()))


@pytest.mark.parametrize(("kind", "learns"), [("adaptive", False), ("decoder_only", True)])
def test_it_compiles_to_one_graph(kind, learns):
    network = opened(guided(stock(deep_supervision=True), kind=kind, learns=learns))
    torch.compiler.reset()  # graphs of other tests of the same code count otherwise
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    output, expected = compiled(images()), network(images())
    torch.testing.assert_close(output, expected)
    sum(part.sum() for part in output).backward()
    assert (guidance_of(network).keeper.guides[0].block[0].weight.grad is not None) == learns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision(dtype):
    plain, network = stock(), guided(stock())
    with torch.autocast("cpu", dtype=dtype):
        assert equal(network(images()), plain(images()))
        assert {skip.dtype for skip in opened(network).encoder(images())} == {dtype}


def test_inference_without_gradients():
    network = opened(guided(stock())).eval()
    expected = network(images()).detach()
    with torch.inference_mode():
        assert torch.equal(network(images()), expected)


class Other(nn.Module):
    """A decoder without an encoder of stages."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Module()
        self.decoder.seg_layers = nn.ModuleList([nn.Conv3d(1, 1, 1)])


def test_what_does_not_fit_is_refused():
    with pytest.raises(NotImplementedError, match=r"ResidualEncoderUNet\), not Other"):
        guided(Other())
    with pytest.raises(ValueError, match="keeper must be of the network's dimension 2, got one of 3"):
        guided(stock(dimension=2), keeper=keeper_for(3))
    for kind in ("adaptive", "decoder_only"):
        with pytest.raises(ValueError, match="network must be without guidance"):
            guided(guided(stock(), kind=kind))
    with pytest.raises(ValueError, match=r"view must have the keeper's 2 channels, got \(0,\)"):
        guided(stock(), keeper=keeper_for(sources=2))
    with pytest.raises(ValueError, match=r"stages must be at most 3, got \[1, 4\]"):
        guided(stock(), stages=(1, 4))
    with pytest.raises(ValueError, match="stages must be null for decoder_only"):
        guided(stock(), kind="decoder_only", stages=(1,))
    with pytest.raises(ValueError, match=r"axes must be 3, got \(0, 1\)"):
        guided(stock(), view=SourceView(channels=(0,), axes=(0, 1)))
    with pytest.raises(ValueError, match="network must be guided, got a PlainConvUNet"):
        guidance_of(stock())


def test_a_refused_network_is_as_it_was():
    network = stock()
    with pytest.raises(ValueError, match="stages"):
        guided(network, stages=(4,))
    assert list(network.state_dict()) == list(stock().state_dict())
    assert not is_guided(network)
    assert len(FEATURES) == len(network.encoder(images()))


class Means(nn.Module):
    """In a keeper's place: means over each level's voxels, which say what the level has seen."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, source):
        guides = [source]
        for strides in self.shape.strides[1:]:
            guides.append(nn.functional.avg_pool3d(guides[-1], strides))
        return guides


@pytest.mark.parametrize("size", [(4, 16, 24), (5, 14, 25), (3, 5, 7), (1, 3, 9)])
def test_the_coarsest_guide_has_seen_the_whole_patch(size):
    """Whatever the keeper's strides do not divide, of patches smaller than they are too."""
    network = guided(stock())
    guidance = guidance_of(network)
    guidance.keeper = Means(keeper_for(levels=4).shape)  # strides 4, 8, 8
    ramp = torch.arange(float(size[2])).expand(2, 2, *size)
    for guide in guidance.guides(ramp):
        torch.testing.assert_close(guide.mean(), ramp.mean(), atol=1e-4, rtol=0)
    image = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    for axis in (2, 3, 4):
        for guide, expected in zip(guidance.guides(image.flip(axis)), guidance.guides(image), strict=True):
            torch.testing.assert_close(guide.flip(axis), expected)

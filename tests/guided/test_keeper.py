"""The keeper: sizes of the teacher's features, what is frozen, levels of the synthesised image."""

import copy
import pickle

import pytest
import torch
from guidance_counts import counted, decoder_count, keeper_count
from guidance_shapes import PATCHES, TABLES, patch_of, shape_of

from rehrseg_nnunet.guided.keeper import ExtractionBlock, GuideBlock, Keeper, KeeperNetwork
from rehrseg_nnunet.guided.losses import KeeperLoss
from rehrseg_nnunet.guided.shape import GuidanceShape
from rehrseg_nnunet.guided.teacher import Teacher


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def keeper_network(shape, **settings):
    return KeeperNetwork(Keeper(shape, **settings))


def patch(name, channels=1, batch=2, dtype=torch.float32):
    return torch.randn(batch, channels, *patch_of(name), dtype=dtype)


def taught(network):
    """Recalibration and gamma with random numbers, as after training."""
    for name, parameter in network.named_parameters():
        if "recalibration" in name or "gamma" in name:
            torch.nn.init.uniform_(parameter, 0.3, 1.5)
    return network


def test_the_paper_s_networks_have_their_weights():
    strides = [(1, 1, 1), *[(2, 2, 2)] * 4]
    shape = {"strides": strides, "kernels": [(3, 3, 3)] * 5}
    widths = (16, 32, 64, 128, 256)
    assert counted(Keeper(GuidanceShape(**shape, widths=widths, convs_per_block=1), kernel=7)) == 34_960_356
    plane = {"strides": [axes[:2] for axes in strides], "kernels": [(3, 3)] * 5}
    assert counted(Keeper(GuidanceShape(**plane, widths=(16,) * 5, convs_per_block=2), kernel=7)) == 161_831


@pytest.mark.parametrize("settings", [{}, {"recalibration": False}, {"residual": True}])
@pytest.mark.parametrize(("kernel", "channels"), [(3, (2, 3)), (7, (2, 2))])
@pytest.mark.parametrize("name", TABLES)
def test_weights_are_as_many_as_the_layers_say(name, kernel, channels, settings):
    sources, privileged = channels
    shape = shape_of(name, source_channels=sources, privileged_channels=privileged)
    network = keeper_network(shape, kernel=kernel, **settings)
    assert counted(network.keeper) == keeper_count(shape, kernel, **settings)
    assert counted(network.decoder) == decoder_count(shape)
    assert counted(network.level) == 2 * (sources * privileged + privileged)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("sources", "privileged"), [(1, 1), (3, 2)])
@pytest.mark.parametrize(("name", "size"), PATCHES)
def test_guides_have_the_sizes_of_the_teacher_s_features(name, size, sources, privileged, residual):
    shape = shape_of(name, source_channels=sources, privileged_channels=privileged)
    image = torch.randn(2, privileged, *size)
    features = Teacher(shape).features(image)
    output = keeper_network(shape, kernel=3, residual=residual)(torch.randn(2, sources, *size))
    assert [own.shape for own in output.guides] == [own.shape for own in features]
    assert output.image.shape == image.shape


def test_axes_that_the_plan_does_not_mix_are_not_mixed():
    """With kernels of 1 along z at all levels only recalibration joins the slices."""
    shape = shape_of("thick slices", strides=[(1, 1, 1), *[(1, 2, 2)] * 3], kernels=[(1, 3, 3)] * 4)
    keeper = Keeper(shape, recalibration=False, level_restoration=False).double()
    kernels = {layer.kernel_size[0] for layer in keeper.modules() if isinstance(layer, torch.nn.Conv3d)}
    assert kernels == {1}


@pytest.mark.parametrize("kernel", [0, 4, -1])
def test_even_kernels_are_refused(kernel):
    with pytest.raises(ValueError, match=f"kernel must be an odd number, got {kernel}"):
        Keeper(shape_of("cube"), kernel=kernel)


def test_a_dense_block_appends_what_it_extracts_from_all_before():
    block = ExtractionBlock(3, 2, (3, 3), convs=1).double()
    image = torch.randn(1, 3, 8, 10).double()
    first = block.blocks[0](image)
    second = block.blocks[1](torch.cat([image, first], dim=1))
    third = block.blocks[2](torch.cat([image, first, second], dim=1))
    torch.testing.assert_close(block(image), torch.cat([image, first, second, third], dim=1))


def test_a_guide_is_the_sum_of_both_sides_by_their_own_maps():
    block = GuideBlock(6, 4, coarser=8, kernel=(3, 3), convs=1, recalibration=False).double()
    extracted, coarser = torch.randn(1, 6, 8, 10).double(), torch.randn(1, 8, 4, 5).double()
    above = torch.nn.functional.interpolate(coarser, scale_factor=2, mode="bilinear")
    above = torch.einsum("oi,bihw->bohw", block.projection.weight[:, :, 0, 0], above)
    own = block.block(extracted)
    weight, bias = block.attention.weight[:, :, 0, 0], block.attention.bias
    both = torch.cat([above, own], dim=1)
    first, second = (torch.sigmoid(torch.einsum("i,bihw->bhw", weight[n], both) + bias[n])[:, None] for n in (0, 1))
    torch.testing.assert_close(block(extracted, coarser), first * above + second * own)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("name", TABLES)
def test_a_times_x_plus_b_gives_the_same_guides(name, residual):
    keeper = taught(Keeper(shape_of(name, source_channels=2), kernel=3, residual=residual)).double()
    image = patch(name, 2, dtype=torch.float64)
    a, b = (torch.rand(2, 2, *(1,) * (image.ndim - 2), dtype=torch.float64) + 0.1 for _ in range(2))
    for guide, other in zip(keeper(image), keeper(100 * a * image - 30 * b), strict=True):
        torch.testing.assert_close(other, guide)


def test_the_synthesised_image_follows_the_source_s_level_at_the_start():
    """Four scalars at the identity: patches of one scan join as the scan's own do."""
    network = keeper_network(shape_of("thick slices"), kernel=3).double()
    image = patch("thick slices", dtype=torch.float64)
    torch.testing.assert_close(network(3 * image - 5).image, 3 * network(image).image - 5)


def test_a_constant_source_patch_gives_a_constant_image():
    network = keeper_network(shape_of("cube"), kernel=3)
    image = torch.full((2, 1, 16, 16, 16), 4.0)
    torch.testing.assert_close(network(image).image, image, rtol=0, atol=1e-4)


def test_four_scalars_can_learn_the_privileged_level():
    network = keeper_network(shape_of("cube"), kernel=3).double()
    image = patch("cube", dtype=torch.float64)
    before = network(image).image
    with torch.no_grad():
        network.level.mean.weight.fill_(2.0)
        network.level.mean.bias.fill_(7.0)
        network.level.log_std.bias.fill_(torch.tensor(3.0).log())
    mean = image.mean((2, 3, 4), keepdim=True)
    torch.testing.assert_close(network(image).image, 3 * (before - mean) + 2 * mean + 7)


def test_without_restoration_there_is_no_level():
    network = keeper_network(shape_of("cube"), kernel=3, level_restoration=False).double()
    image = patch("cube", dtype=torch.float64)
    assert network.level is None
    output = network(image)
    torch.testing.assert_close(output.image, network.decoder(output.guides))


def test_synthesis_is_the_teacher_s_decoder_on_the_guides():
    teacher = Teacher(shape_of("cube")).eval()
    network = keeper_network(shape_of("cube"), kernel=3)
    network.take_from(teacher)
    image = patch("cube")
    guides, synthesised = network(image)
    mean, std = image.mean((2, 3, 4), keepdim=True), image.std((2, 3, 4), correction=0, keepdim=True)
    torch.testing.assert_close(synthesised, teacher.decoder(guides) * std + mean)
    with pytest.raises(RuntimeError, match="size mismatch"):
        network.take_from(Teacher(shape_of("cube", widths=(4, 8, 32))))


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", TABLES)
def test_a_residual_keeper_starts_from_what_the_teacher_makes_of_the_source(name, channels):
    shape = shape_of(name, source_channels=channels, privileged_channels=channels)
    teacher, image = Teacher(shape).eval(), patch(name, channels)
    network = keeper_network(shape, kernel=3, residual=True)
    network.take_from(teacher)
    output = network(image)
    torch.testing.assert_close(output.guides, teacher.features(image))
    if channels == 1:  # each of several starts at the source's mean level
        torch.testing.assert_close(output.image, teacher(image).image)


def test_a_residual_keeper_of_more_channels_starts_from_their_mean():
    """Each channel as it is standardised."""
    shape = shape_of("cube", source_channels=3, widths=(4, 8, 16))
    teacher, image = Teacher(shape, level_restoration=False).eval(), patch("cube", 3)
    network = keeper_network(shape, kernel=3, residual=True)
    network.take_from(teacher)
    mean, std = image.mean((2, 3, 4), keepdim=True), image.std((2, 3, 4), correction=0, keepdim=True)
    seen = ((image - mean) / std).mean(1, keepdim=True)
    torch.testing.assert_close(network(image).guides, teacher.features(seen))


def test_a_residual_keeper_adds_to_that_what_a_plain_one_gives_by_one_number_a_channel():
    plain = taught(Keeper(shape_of("cube"), kernel=3)).double()
    keeper = Keeper(shape_of("cube"), kernel=3, residual=True).double()
    keeper.load_state_dict({**keeper.state_dict(), **plain.state_dict()})
    image = patch("cube", dtype=torch.float64)
    seen = keeper(image)
    taught(keeper)
    keeper.load_state_dict({**keeper.state_dict(), **plain.state_dict()})
    expected = [own + gamma * more for own, gamma, more in zip(seen, keeper.gamma, plain(image), strict=True)]
    torch.testing.assert_close(keeper(image), tuple(expected))


def taught_steps(network, loss, *, steps=3):
    """Steps as the trainer makes them, with weight decay."""
    teacher = Teacher(shape_of("cube")).requires_grad_(False).eval()
    network.take_from(teacher)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(steps):
        network.train()
        source, privileged = patch("cube"), patch("cube")
        optimiser.zero_grad()
        loss(network(source), teacher.features(privileged), privileged).backward()
        optimiser.step()
    return before


@pytest.mark.parametrize("residual", [True, False])
def test_the_teacher_s_parts_are_frozen_and_all_else_learns(residual):
    frozen = ("decoder.", "keeper.source_features.encoder.")
    network = keeper_network(shape_of("cube"), kernel=3, residual=residual)
    before = taught_steps(network, KeeperLoss([1.0]))
    assert network.training
    assert network.keeper.training
    assert not network.decoder.training
    assert not any(module.training for module in network.decoder.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen), name


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"image_weight": 0.0, "adversarial_weight": 0.0},
        {"distillation_weight": 0.0, "matching_weight": 0.0},
    ],
)
@pytest.mark.parametrize("name", ["thick slices", "plane"])
def test_every_weight_gets_a_finite_gradient(name, weights):
    shape = shape_of(name)
    network, teacher = taught(keeper_network(shape, kernel=3, residual=True)), Teacher(shape).requires_grad_(False)
    for image in (patch(name), torch.ones_like(patch(name))):
        network.zero_grad()
        KeeperLoss([1.0], **weights)(network(image), teacher.features(image), image).backward()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        assert all(parameter.grad.isfinite().all() for parameter in trained)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1.0), (torch.float16, 0.3)])
@pytest.mark.parametrize("name", ["cube", "plane"])
def test_mixed_precision(name, dtype, share):
    """Normalising a few voxels of an untaught network magnifies the rounding; nothing overflows."""
    network = taught(keeper_network(shape_of(name), kernel=3, residual=True))
    image = 1000 + 5 * patch(name)
    expected = network(image)
    with torch.autocast("cpu", dtype=dtype):
        output = network(image)
    assert {guide.dtype for guide in output.guides} == {dtype}
    assert output.image.dtype == torch.float32
    assert (output.image - expected.image).std() < share * expected.image.std()
    output.image.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("network", [keeper_network, Keeper])
def test_it_compiles_to_one_graph(network):
    network = taught(network(shape_of("thick slices"), kernel=3, residual=True))
    torch.compiler.reset()  # graphs of other tests of the same code count otherwise
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    image = patch("thick slices")
    output, expected = compiled(image), network(image)
    torch.testing.assert_close(output, expected)
    output[-1].sum().backward()


def test_copies_and_weights_give_the_same():
    network = taught(keeper_network(shape_of("cube"), kernel=3, residual=True))
    image = patch("cube")
    other = keeper_network(shape_of("cube"), kernel=3, residual=True)
    other.load_state_dict(network.state_dict())
    for same in (copy.deepcopy(network), pickle.loads(pickle.dumps(network)), other):
        assert torch.equal(same(image).image, network(image).image)
        assert not any(parameter.requires_grad for parameter in same.decoder.parameters())

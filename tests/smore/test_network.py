"""SMORE's network: where its rows are, what it is before training, and that it learns."""

import pytest
import torch
from torch.nn.functional import one_hot

from rehrseg_nnunet.config.rehrseg import parse_block
from rehrseg_nnunet.slices.slice_profile import degrade, interpolate
from rehrseg_nnunet.smore import network as module
from rehrseg_nnunet.smore.network import WDSR, build_wdsr

HEADS = 3


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slices(rows=6, columns=7, batch=2, channels=1, dtype=torch.float64):
    labels = one_hot(torch.randint(HEADS, (batch, rows, columns)), HEADS).movedim(-1, 1)
    return torch.cat([torch.randn(batch, channels, rows, columns), labels], dim=1).to(dtype)


def trained(network):
    """Random weights where training starts from zero."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("rows", [1, 2, 6])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_untrained_it_interpolates(factor, rows):
    network = WDSR(2, HEADS, factor, blocks=2, features=4).double()
    data = slices(rows, channels=2)
    output = network(data)
    torch.testing.assert_close(output.image, interpolate(data[:, :2], factor, 2, order=3), rtol=0, atol=1e-12)
    share = interpolate(data[:, 2:], factor, 2, order=1)
    assert torch.equal(output.labels > 0, share > 0.5)
    assert torch.equal(output.labels.argmax(1)[share.amax(1) > 0.5], share.argmax(1)[share.amax(1) > 0.5])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_constants_and_ramps_stay_in_place(factor):
    """The centre of thin row j is at (j + 1/2)/r - 1/2 thick rows."""
    network = WDSR(3, HEADS, factor, blocks=1, features=4).double()
    data = slices(channels=3)
    data[:, 0] = 7
    data[:, 1] = torch.arange(6)[:, None]
    data[:, 2] = torch.arange(7)
    image = network(data).image
    position = (torch.arange(6 * factor, dtype=torch.float64) + 0.5) / factor - 0.5
    torch.testing.assert_close(image[:, 0], torch.full_like(image[:, 0], 7))
    torch.testing.assert_close(image[:, 1], position[:, None].expand_as(image[:, 1]))
    torch.testing.assert_close(image[:, 2], torch.arange(7, dtype=torch.float64).expand_as(image[:, 2]))


@pytest.mark.parametrize("factor", [2, 3])
def test_what_a_row_reaches_is_centred_on_it(factor):
    """Stem, one block and the last convolution reach 4 thick rows either way."""
    network = trained(WDSR(1, HEADS, factor, blocks=1, features=8).double())
    data = slices(15)
    changed = data.clone()
    changed[:, 1:, 7] += 1
    moved = (network(changed).image != network(data).image).flatten(0, 1).any(dim=(0, 2))
    assert moved.nonzero().flatten().tolist() == list(range(factor * 3, factor * 12))


def test_the_result_follows_the_intensity_scale():
    network = trained(WDSR(1, HEADS, 4, blocks=2, features=8).double())
    data = slices()
    rescaled = data.clone()
    rescaled[:, :1] = 300 * data[:, :1] - 50
    before, after = network(data), network(rescaled)
    torch.testing.assert_close(after.image, 300 * before.image - 50)
    torch.testing.assert_close(after.labels, before.labels)


def test_gradients():
    network = trained(WDSR(1, HEADS, 2, blocks=1, features=2).double())
    data = slices(3, 3, batch=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(network(x)), data)


def test_it_starts_as_the_interpolation_and_learns_to_undo_the_slice_profile():
    network = WDSR(1, 2, 4, blocks=2, features=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    position = torch.arange(32.0)
    phase = 6.3 * torch.rand(8, 1, 1, 1)
    truth = torch.sin(0.55 * position[:, None] + 0.2 * position + phase)
    labels = torch.cat([truth < 0.3, truth >= 0.3], dim=1).float()
    data = degrade(torch.cat([truth, labels], dim=1), 4, 2)
    losses = []
    for _ in range(60):
        output = network(data)
        loss = (output.image - truth).abs().mean() + (output.labels.sigmoid() - labels).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_interpolation_is_exact_in_mixed_precision():
    network = WDSR(1, HEADS, 4, blocks=1, features=4)
    data = slices(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        image = network(data).image
    torch.testing.assert_close(image, interpolate(data[:, :1], 4, 2, order=3), rtol=0, atol=1e-6)


def test_a_compiled_step_is_one_graph(monkeypatch):
    network, data = trained(WDSR(1, HEADS, 4, blocks=1, features=4)), slices(dtype=torch.float32)
    expected = network(data)
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(data), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    compiled(data).labels.sum().backward()
    assert all(parameter.grad is not None for parameter in network.blocks.parameters())
    monkeypatch.setattr(module, "interpolation_matrix", None)
    network(data)  # the matrices are kept


def test_compiled_for_other_lengths():
    network = trained(WDSR(1, HEADS, 3, blocks=1, features=4))
    torch.compiler.reset()
    compiled = torch.compile(network, backend="aot_eager")
    for rows in (5, 7, 9):
        data = slices(rows, dtype=torch.float32)
        torch.testing.assert_close(compiled(data).image, network(data).image)


def test_matrices_of_a_prediction_serve_training_and_are_no_weights():
    network, data = trained(WDSR(1, HEADS, 5, blocks=1, features=4)).double(), slices(13)
    names = list(network.state_dict())
    with torch.inference_mode():
        network(data)
    network(data.requires_grad_()).image.sum().backward()
    assert data.grad.abs().sum() > 0
    assert list(network.state_dict()) == names


def test_the_block_sets_the_sizes():
    network = build_wdsr(parse_block({"factor": 3, "smore": {"blocks": 5, "features": 6}}), 2, 4)
    assert (len(network.blocks), network.stem.out_channels, network.factor) == (5, 6, 3)
    assert network(torch.zeros(1, 6, 2, 2)).labels.shape == (1, 4, 6, 2)
    paper = build_wdsr(parse_block({"factor": 4}), 1, 2)
    assert (len(paper.blocks), paper.stem.out_channels) == (16, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"factor": 1}, "factor must be at least 2, got 1"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"label_channels": 0}, "label_channels must be at least 1, got 0"),
    ],
)
def test_impossible_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        WDSR(**{"image_channels": 1, "label_channels": 2, "factor": 4, **arguments})


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4, 4), (1, 4, 0, 4)])
def test_slices_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"slices must be \(B, 4, L, W\)"):
        WDSR(1, HEADS, 2, blocks=1, features=2)(torch.zeros(shape))

"""The adversary's steps, and both optimisers in one checkpoint."""

import copy
import os
from pathlib import Path

import pytest
import torch
from commands import server
from guidance_shapes import shape_of
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from rehrseg_nnunet.guided.adversary import Adversary, OptimizerPair, descend
from rehrseg_nnunet.guided.discriminator import Discriminator
from rehrseg_nnunet.nnunet.weights import hash_weights

SIZE = (24, 24)


class Generator(nn.Module):
    """A stand-in for the keeper."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image):
        return self.convolution(image)


def networks(seed=0):
    torch.manual_seed(seed)
    generator = Generator()
    adversary = Adversary(Discriminator(shape_of("plane"), 2), learning_rate=1e-3, weight=0.5)
    own = torch.optim.Adam(generator.parameters(), lr=1e-3)
    return generator, OptimizerPair(own, adversary)


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(2, 1, *SIZE, generator=generator), torch.randn(2, 1, *SIZE, generator=generator)


def train(generator, pair, steps, scaler=None):
    """What the keeper's trainer does."""
    for step in steps:
        source, true = batch(step)
        made = generator(source)
        pair.adversary.train_step(true, made.detach(), scaler)
        loss = (made - true).abs().mean() + (pair.adversary.scores(made) - 1).square().mean()
        descend(loss, pair.own, generator.parameters(), scaler)
        if scaler is not None:
            scaler.update()


def state(generator, pair):
    return hash_weights(generator.state_dict()), hash_weights(pair.adversary.discriminator.state_dict())


def test_each_step_changes_its_own_network_alone():
    generator, pair = networks()
    source, true = batch(0)
    made = generator(source)
    own, others = state(generator, pair)
    pair.adversary.train_step(true, made.detach(), None)
    after, discriminator = state(generator, pair)
    assert after == own
    assert discriminator != others
    assert all(parameter.grad is None for parameter in generator.parameters())

    gradients = [p.grad.clone() for p in pair.adversary.discriminator.parameters()]
    descend(pair.adversary.scores(made).square().mean(), pair.own, generator.parameters(), None)
    after, last = state(generator, pair)
    assert after != own
    assert last == discriminator
    for parameter, gradient in zip(pair.adversary.discriminator.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)
        assert parameter.requires_grad


def test_the_loss_is_the_papers():
    _, pair = networks()
    true, made = batch(0)
    discriminator = copy.deepcopy(pair.adversary.discriminator)
    expected = 0.5 * ((discriminator(true) - 1).square().mean() + discriminator(made).square().mean())
    torch.testing.assert_close(pair.adversary.train_step(true, made, None), expected.detach())


@pytest.mark.parametrize("mixed", [False, True])
def test_stopped_and_continued_as_if_never_stopped(mixed, tmp_path):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) if mixed else None

    generator, pair = networks()
    undisturbed = scaler()
    train(generator, pair, range(6), undisturbed)

    first, first_pair = networks()
    own = scaler()
    train(first, first_pair, range(3), own)
    saved = {"network": first.state_dict(), "optimizer": first_pair.state_dict(), "scaler": own and own.state_dict()}
    torch.save(saved, tmp_path / "checkpoint.pth")

    loaded = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    second, second_pair = networks(seed=1)
    second.load_state_dict(loaded["network"])
    second_pair.load_state_dict(loaded["optimizer"])
    other = scaler()
    if other is not None:
        other.load_state_dict(loaded["scaler"])
    train(second, second_pair, range(3, 6), other)
    assert state(second, second_pair) == state(generator, pair)
    if other is not None:
        assert other.state_dict() == undisturbed.state_dict()


def test_an_overflow_in_the_discriminator_skips_its_step_alone():
    generator, pair = networks()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = state(generator, pair)
    source, true = batch(0)
    pair.adversary.train_step(torch.full_like(true, torch.inf), generator(source).detach(), scaler)
    descend(generator(source).square().mean(), pair.own, generator.parameters(), scaler)
    scaler.update()
    after = state(generator, pair)
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert scaler.get_scale() == 512


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_clipped_as_nnunet_clips_them(mixed):
    """At their own scale, not the scaler's."""
    generator, pair = networks()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if mixed else None
    descend(1e3 * generator(batch(0)[0]).square().mean(), pair.own, generator.parameters(), scaler)
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in generator.parameters()]))
    assert float(norm) == pytest.approx(12, rel=1e-4)


def test_a_schedule_reaches_both():
    _, pair = networks()
    for group in pair.param_groups:
        group["lr"] = 0.25
    assert pair.own.param_groups[0]["lr"] == pair.adversary.optimizer.param_groups[0]["lr"] == 0.25


def test_without_an_adversary_it_is_the_one_optimiser():
    _, pair = networks()
    alone = OptimizerPair(pair.own, None)
    assert alone.param_groups == pair.own.param_groups
    alone.load_state_dict(alone.state_dict())
    with pytest.raises(ValueError, match=r"training without adversary, got one with; continue with the adversarial_w"):
        alone.load_state_dict(pair.state_dict())
    with pytest.raises(ValueError, match=r"training with adversary, got one without; continue"):
        pair.load_state_dict(alone.state_dict())


def rank_main(rank, folder):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": Path(folder, "port").read_text()}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    generator, pair = networks(seed=rank)
    generator = DistributedDataParallel(generator)
    pair.own = torch.optim.Adam(generator.parameters(), lr=1e-3)
    pair.adversary.distribute()
    hashes = []
    for step in range(3):
        train(generator, pair, [2 * step + rank])
        hashes.append(
            (hash_weights(generator.module.state_dict()), hash_weights(pair.adversary.state_dict()["weights"]))
        )
    torch.save(hashes, Path(folder, f"{rank}.pth"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_have_equal_weights_after_every_step(tmp_path):
    """Other starts, other batches."""
    import socket

    with socket.socket() as free:
        free.bind(("localhost", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    server()
    multiprocessing.start_processes(rank_main, args=(str(tmp_path),), nprocs=2, start_method="forkserver")
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    assert first == second
    assert len(set(first)) == 3

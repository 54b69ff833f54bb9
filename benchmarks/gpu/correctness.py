"""Whether trainings do on the GPU what they do on the CPU: same losses, no nan, resumption, DDP."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from nnunetv2.run.run_training import cleanup_ddp, find_free_network_port, maybe_load_checkpoint, setup_ddp
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.gpu.data import SMALL
from benchmarks.gpu.scheduler import Context
from benchmarks.gpu.trainings import build, next_epoch, show_companions, start, without_companions
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.weights import hash_weights

REFERENCE_THREADS = 2
EPOCHS = 2  # stage 1 has a phase for each
LOADED_BATCHES = 10  # an epoch: without workers a loader takes longer than a step
RESERVE_S = 3
# float16 keeps 11 bits; the sums over a batch and the layers before them lose a few more
LOSS_TOLERANCE, LEAST_COSINE = 0.02, 0.95


def steps(context: Context, *, trainer: str) -> Iterator[dict[str, Any]]:
    """Compare every step with one on the CPU in float32 from the same weights on the same batch."""
    settings, per_epoch = context.settings, -(-context.settings.lengths.steps // EPOCHS)
    show_companions(trainer, settings.data, context.results)
    torch.set_num_threads(REFERENCE_THREADS)
    dataset, devices = settings.data.dataset_of(trainer), (settings.device, "cpu")
    pair = [build(trainer, dataset, SMALL, device=on, steps=per_epoch) for on in devices]
    tested, reference = pair
    comparison = Comparison()
    for epoch in range(EPOCHS):
        for one in pair:
            next_epoch(one) if epoch else start(one)
        until = time.monotonic() + _share(context, epoch)
        for step in range(per_epoch):
            if step and time.monotonic() > until:
                break
            comparison.add(tested, reference, next(reference.dataloader_train))
    compiled = hasattr(tested.network, "_orig_mod")
    yield {"trainer": trainer, "compiled": compiled, "of": EPOCHS * per_epoch, **comparison.result()}


def _share(context: Context, epoch: int) -> float:
    """Seconds of the epochs to come that this one may take, without some for the results."""
    return (context.seconds_left - RESERVE_S) / (EPOCHS - epoch)


class Comparison:
    """Losses and gradients of two trainers' steps from the first one's weights."""

    def __init__(self) -> None:
        self.losses: list[tuple[float, float]] = []
        self.cosines: list[float] = []
        self.overflows = 0

    def add(self, trainer: Any, reference: Any, batch: dict[str, Any]) -> None:
        """One step of both."""
        pairs = list(zip(_networks(trainer), _networks(reference), strict=True))
        for own, other in pairs:
            other.load_state_dict({key: value.cpu() for key, value in own.state_dict().items()})
        losses = [float(one.train_step(batch)["loss"]) for one in (trainer, reference)]
        self.losses.append((losses[0], losses[1]))
        gradients = [(_gradient(own), _gradient(other)) for own, other in pairs]
        if all(bool(torch.isfinite(mine).all()) for mine, _ in gradients):
            self.cosines += [float(torch.nn.functional.cosine_similarity(*both, dim=0)) for both in gradients]
        else:
            self.overflows += 1  # the scaler leaves such a step out and halves its factor

    def result(self) -> dict[str, Any]:
        """The worst of all steps, and whether it is within the tolerances."""
        relative = [abs(mine - theirs) / max(abs(theirs), 0.1) for mine, theirs in self.losses]
        worst = max(relative) if all(map(math.isfinite, relative)) else math.inf
        cosine = min(self.cosines, default=-1.0)
        return {
            "steps": len(self.losses),
            "worst_loss_difference": worst,
            "worst_gradient_cosine": cosine,
            "overflows": self.overflows,
            "first_losses": self.losses[0],
            "last_losses": self.losses[-1],
            "passed": worst <= LOSS_TOLERANCE and cosine >= LEAST_COSINE,
        }


def _adversary(trainer: Any) -> Any:
    """Of a keeper's training, None for others."""
    return getattr(getattr(trainer, "optimizer", None), "adversary", None)


def _networks(trainer: Any) -> list[nn.Module]:
    """All that learn: a keeper's discriminator learns beside its network."""
    adversary = _adversary(trainer)
    return [unwrap(trainer.network), *([] if adversary is None else [unwrap(adversary.discriminator)])]


def _optimizers(trainer: Any) -> list[Any]:
    adversary = _adversary(trainer)
    return [trainer.optimizer] if adversary is None else [trainer.optimizer.own, adversary.optimizer]


def _gradient(network: nn.Module) -> torch.Tensor:
    """All gradients as one float64 vector on the CPU; a parameter that got none has zeros."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([part.detach().flatten().double().cpu() for part in parts])


def finite(context: Context, *, trainer: str, plans: str) -> Iterator[dict[str, Any]]:
    """Train two epochs, which are stage 1's two phases, and look for nan and inf in losses and weights."""
    settings, length = context.settings, context.settings.lengths.long_steps
    show_companions(trainer, settings.data, context.results)
    training = build(trainer, settings.data.dataset_of(trainer), plans, device=settings.device, steps=length)
    if plans != SMALL:
        without_companions(training)
    batches: list[dict[str, Any]] = []
    for epoch in range(EPOCHS):
        next_epoch(training) if epoch else start(training)
        batches += [next(training.dataloader_train) for _ in range(min(length, LOADED_BATCHES))]
        losses = _losses(training, batches, length, seconds=_share(context, epoch))
        weights = all(bool(torch.isfinite(p).all()) for net in _networks(training) for p in net.parameters())
        good = len(losses) > 0 and all(map(math.isfinite, losses)) and weights
        scaler = training.grad_scaler
        yield {
            "trainer": trainer,
            "plans": plans,
            "phase": epoch + 1,
            "steps": len(losses),
            "of": length,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "scale": None if scaler is None else scaler.get_scale(),
            "passed": good,
        }


def _losses(trainer: Any, batches: Sequence[dict[str, Any]], count: int, *, seconds: float) -> list[float]:
    """Losses of up to `count` steps on batches that come again and again, at least one."""
    until, losses = time.monotonic() + seconds, []
    while not losses or (len(losses) < count and time.monotonic() < until):
        batch = batches[-1 - len(losses) % len(batches)]  # an epoch's own batches come first
        losses.append(float(trainer.train_step(batch)["loss"]))
    return losses


class _KilledError(Exception):
    pass


def resume(context: Context, *, trainer: str) -> Iterator[dict[str, Any]]:
    """Stop after the first of two epochs, go on as `nnUNetv2_train --c` does."""
    settings, length = context.settings, context.settings.lengths.steps
    show_companions(trainer, settings.data, context.results)
    dataset, device = settings.data.dataset_of(trainer), settings.device
    # both before a training has threads: what these import can disturb nnU-Net's search for a trainer
    before, after = (build(trainer, dataset, SMALL, device=device, steps=length) for _ in range(2))
    finish_epoch = before.on_epoch_end

    def stop() -> None:
        finish_epoch()
        raise _KilledError

    before.on_epoch_end = stop
    with suppress(_KilledError):
        before.run_training()
    saved = _state(before)
    maybe_load_checkpoint(after, continue_training=True, validation_only=False)
    loaded = _state(after)
    after.run_training()
    losses = after.logger.get_value("train_losses", step=None)
    good = saved == loaded and len(losses) == 2 and all(map(math.isfinite, losses))
    yield {"trainer": trainer, "same_state": saved == loaded, "losses": list(losses), "passed": good}


def _state(trainer: Any) -> tuple[Any, ...]:
    """What a checkpoint must bring back."""
    moments = [
        float(value.double().norm())
        for optimizer in _optimizers(trainer)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    scale = None if trainer.grad_scaler is None else trainer.grad_scaler.get_scale()
    return [hash_weights(net.state_dict()) for net in _networks(trainer)], moments, scale, trainer.current_epoch


def distributed(context: Context, *, trainer: str) -> Iterator[dict[str, Any]]:
    """A few steps under DDP of one process: NCCL, set up as nnU-Net does; gloo on the CPU."""
    settings, length = context.settings, context.settings.lengths.steps
    show_companions(trainer, settings.data, context.results)
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(find_free_network_port()))
    if settings.device == "cuda":
        setup_ddp(0, 1)
        torch.cuda.set_device(torch.device("cuda", 0))
        training = build(trainer, settings.data.dataset_of(trainer), SMALL, device="cuda", steps=length)
    else:
        training = build(trainer, settings.data.dataset_of(trainer), SMALL, device="cpu", steps=length)
        training.initialize()
        dist.init_process_group("gloo", rank=0, world_size=1)
        _join(training)
    start(training)
    losses = [float(training.train_step(next(training.dataloader_train))["loss"]) for _ in range(length)]
    good = isinstance(training.network, DistributedDataParallel) and all(map(math.isfinite, losses))
    backend = dist.get_backend()
    cleanup_ddp()
    yield {"trainer": trainer, "backend": backend, "steps": len(losses), "last_loss": losses[-1], "passed": good}


def _join(trainer: Any) -> None:
    """What nnU-Net does where a group is up when the trainer is built, which it supports on CUDA only."""
    trainer.is_ddp, trainer.local_rank = True, dist.get_rank()
    trainer.network = DistributedDataParallel(trainer.network)
    trainer.loss = trainer._build_loss()
    if (adversary := _adversary(trainer)) is not None:
        adversary.distribute()

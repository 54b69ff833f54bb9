"""The keeper's adversary in training: its steps, and both optimisers as one object for nnU-Net's checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from rehrseg_nnunet.guided.losses import discriminator_loss
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.precision import mixed_precision

MAX_GRADIENT_NORM = 12.0  # nnU-Net's


class Adversary:
    """A discriminator that learns to tell synthesised images from true ones.

    Args:
        discriminator: (B, C, ...) to scores of patches, on its device.
        learning_rate: Adam's.
        weight: of its loss, lambda_adv.
    """

    def __init__(self, discriminator: nn.Module, *, learning_rate: float, weight: float):
        self.discriminator = discriminator
        self.weight = weight
        self.optimizer: Optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate)

    def distribute(self, device_ids: Sequence[int] | None = None) -> None:
        """Share every step with the other DDP ranks."""
        self.discriminator = DistributedDataParallel(self.discriminator, device_ids=device_ids)

    def train_step(self, true: Tensor, made: Tensor, scaler: GradScaler | None) -> Tensor:
        """One step of the discriminator.

        True and synthesised images go through it at once, which DDP wants; its norms are of each image alone.

        Args:
            true: images (B, C, ...).
            made: synthesised ones, cut off from the network that made them.
            scaler: the training's, None without mixed precision.

        Returns:
            L_C, a scalar.
        """
        with mixed_precision(true.device):
            scores = self.discriminator(torch.cat([true, made]))
            loss = discriminator_loss(*scores.chunk(2), adversarial_weight=self.weight)
        descend(loss, self.optimizer, self.discriminator.parameters(), scaler)
        return loss.detach()

    def scores(self, made: Tensor) -> Tensor:
        """C's scores of synthesised images (B, C, ...), which get a gradient from them; C's weights get none.

        They go past DDP's wrapper, whose hooks never hear of it.
        """
        discriminator = unwrap(self.discriminator)
        with _frozen(discriminator):
            return discriminator(made)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"weights": unwrap(self.discriminator).state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` returned."""
        unwrap(self.discriminator).load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])


class OptimizerPair:
    """The network's optimiser and its adversary as one, where nnU-Net keeps a trainer's only optimiser.

    nnU-Net assembles its checkpoints itself: it saves and loads `state_dict`, and logs the first group's rate.

    Args:
        own: of the network.
        adversary: with its optimiser and weights; None: there is none.
    """

    def __init__(self, own: Optimizer, adversary: Adversary | None):
        self.own = own
        self.adversary = adversary

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of both, the network's first."""
        return [*self.own.param_groups, *(self.adversary.optimizer.param_groups if self.adversary else [])]

    def state_dict(self) -> dict[str, Any]:
        """Both optimisers and the discriminator's weights."""
        return {"own": self.own.state_dict(), "adversary": self.adversary and self.adversary.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` returned.

        Raises:
            ValueError: one has an adversary and the other has none.
        """
        if (state["adversary"] is None) != (self.adversary is None):
            found, own = ("without", "with") if state["adversary"] is None else ("with", "without")
            raise ValueError(
                f"the checkpoint must be of a training {own} adversary, got one {found}; continue with the "
                "adversarial_weight that it was begun with"
            )
        self.own.load_state_dict(state["own"])
        if self.adversary:
            self.adversary.load_state_dict(state["adversary"])


def descend(loss: Tensor, optimizer: Optimizer, parameters: Iterable[nn.Parameter], scaler: GradScaler | None) -> None:
    """One step down a loss, with nnU-Net's clipping; the scaler's `update` is the caller's, once for all optimisers.

    Args:
        loss: a scalar.
        optimizer: steps, unless the scaler finds gradients that are not finite.
        parameters: all that it changes.
        scaler: None without mixed precision.
    """
    parameters = list(parameters)
    optimizer.zero_grad(set_to_none=True)
    if scaler is None:
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        return
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    scaler.step(optimizer)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

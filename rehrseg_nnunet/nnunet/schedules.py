"""Learning rates as closed forms of epoch and step, as a resumed run needs them (nnU-Net steps per epoch)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

WARM_UP = 0.3
START_OVER_PEAK = 1 / 25
END_OVER_PEAK = 1e-3
EXPONENT = 0.9  # of nnU-Net's PolyLRScheduler


def one_cycle(progress: float, peak: float) -> float:
    """Cosine rise from peak/25 over the first 30 % and cosine fall to peak/1000 after it.

    Args:
        progress: 0 (first step) to 1 (end).
        peak: largest learning rate.

    Example:
        >>> [round(one_cycle(progress, peak=1.0), 3) for progress in (0.0, 0.15, 0.3, 1.0)]
        [0.04, 0.52, 1.0, 0.001]
    """
    if progress < WARM_UP:
        start, stop, part = peak * START_OVER_PEAK, peak, progress / WARM_UP
    else:
        start, stop, part = peak, peak * END_OVER_PEAK, (progress - WARM_UP) / (1 - WARM_UP)
    return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2


class RatePerStep:
    """Sets an optimiser's learning rate from epoch and step alone; in place of one of PyTorch's schedulers.

    Args:
        optimizer: its parameter groups all get the same rate; momenta stay as they are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer

    def rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate of a step."""
        raise NotImplementedError

    def step(self, epoch: int, step: int = 0) -> None:
        """Set the learning rate of a step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(epoch, step)


class ConstantRate(RatePerStep):
    """One learning rate throughout.

    Args:
        optimizer: see `RatePerStep`.
        learning_rate: of every step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, learning_rate: float):
        super().__init__(optimizer)
        self.learning_rate = learning_rate

    def rate(self, epoch: int, step: int = 0) -> float:
        """The one."""
        return self.learning_rate


class PolynomialRate(RatePerStep):
    """nnU-Net's own schedule, step by step: peak * (1 - progress)^0.9.

    Args:
        optimizer: see `RatePerStep`.
        peak: learning rate of the first step.
        epochs: of the training.
        steps_per_epoch: steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, peak: float, epochs: int, steps_per_epoch: int):
        super().__init__(optimizer)
        self.peak, self.steps = peak, epochs * steps_per_epoch
        self.steps_per_epoch = steps_per_epoch

    def rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate of a step; 0 after the last."""
        return self.peak * max(0.0, 1 - (epoch * self.steps_per_epoch + step) / self.steps) ** EXPONENT


class PhasedOneCycle(RatePerStep):
    """One cycle per training phase.

    Args:
        optimizer: see `RatePerStep`.
        peak: largest learning rate of every phase.
        phase_epochs: epochs of each phase, in order; phases of 0 epochs are skipped.
        steps_per_epoch: steps.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, peak: float, phase_epochs: Sequence[int], steps_per_epoch: int
    ):
        super().__init__(optimizer)
        self.peak = peak
        self.phase_epochs = [epochs for epochs in phase_epochs if epochs > 0]
        self.steps_per_epoch = steps_per_epoch

    def rate(self, epoch: int, step: int = 0) -> float:
        """Learning rate of a step; after the last phase that of its end."""
        for epochs in self.phase_epochs:
            if epoch < epochs:
                return one_cycle((epoch * self.steps_per_epoch + step) / (epochs * self.steps_per_epoch), self.peak)
            epoch -= epochs
        return one_cycle(1.0, self.peak)

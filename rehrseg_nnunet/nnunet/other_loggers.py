"""Values for the loggers that nnU-Net keeps beside its own, such as Weights & Biases.

nnU-Net's own log holds what `progress.png` and checkpoints need, one value of each for every epoch; these have no place
in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def log_elsewhere(logger: Any, values: Mapping[str, float], *, step: int) -> None:
    """Log values of an epoch.

    Args:
        logger: nnU-Net's `MetaLogger`.
        values: by name.
        step: the epoch.
    """
    for other in logger.loggers:
        for name, value in values.items():
            other.log(name, value, step)


def summarise_elsewhere(logger: Any, values: Mapping[str, float]) -> None:
    """Log values of a whole training; `logger` is nnU-Net's `MetaLogger`."""
    for name, value in values.items():
        logger.log_summary(name, value)

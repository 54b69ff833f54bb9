"""Trainers of any length, named as nnU-Net names its own: `REHRSegTrainer_1epoch`, `SelfSRTrainer_100epochs`, ..."""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = re.compile(r"(?P<trainer>\w+)_(?P<length>1epoch|[2-9]epochs|[1-9]\d+epochs)")


def trainer_name(base: str, epochs: int) -> str:
    """Name of a trainer for a number of epochs.

    Example:
        >>> trainer_name("SelfSRTrainer", 100), trainer_name("SelfSRTrainer", 1)
        ('SelfSRTrainer_100epochs', 'SelfSRTrainer_1epoch')
    """
    return f"{base}_{epochs}epoch" + ("s" if epochs > 1 else "")


def trainer_of_length(name: str, trainers: Mapping[str, type], *, module: str) -> type:
    """The subclass that a name with a length means; its attribute `length` is the number of epochs.

    Args:
        name: what nnU-Net looks for.
        trainers: classes with an attribute `length`, by name.
        module: module of the new class, which nnU-Net found it in.

    Raises:
        AttributeError: another name, as a module's `__getattr__` must raise it.
    """
    match = NAME.fullmatch(name)
    if match is None or match["trainer"] not in trainers:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    epochs = int(match["length"].partition("epoch")[0])
    own = {"__module__": module, "__doc__": f"{match['trainer']} for {epochs} epochs.", "length": epochs}
    return type(name, (trainers[match["trainer"]],), own)

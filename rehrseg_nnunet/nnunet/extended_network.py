"""A network that gets another forward and keeps its layers: see `extend`.

nnU-Net builds a network from the plans, loads weights into it by their names and calls it. What a method adds must
therefore leave the names of the stock weights alone, and come back wherever nnU-Net builds the network. So the network
object stays, with all its layers, and only its class changes: to a subclass whose forward is the extension's, which
reaches the former one by `super()`. Layers that the extension adds are children like any others.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn


class Extension(nn.Module if TYPE_CHECKING else object):
    """Base of extensions: mixins for networks, with a `forward` that may call `super().forward`."""


def extend(network: nn.Module, extension: type[Extension], **attributes: Any) -> nn.Module:
    """Give a network another forward, in place.

    Weights keep their names, values and order, and the network stays an instance of its class. Extensions compose: the
    last one is called first.

    Args:
        network: any module, not wrapped by DistributedDataParallel or torch.compile.
        extension: what it gets; its class attributes and methods too.
        **attributes: set on the network; modules become children, with their weights.

    Returns:
        The same object.

    Raises:
        ValueError: the network has this extension already.
    """
    if isinstance(network, extension):
        raise ValueError(f"network must be without {extension.__name__}, got a {type(network).__name__}")
    for name, value in attributes.items():
        setattr(network, name, value)
    network.__class__ = _extended_class(type(network), extension)
    return network


@cache
def _extended_class(base: type[nn.Module], extension: type[Extension]) -> type[nn.Module]:
    """One class for each pair, so that networks of one kind have one type."""
    name = f"{extension.__name__}{base.__name__}"
    return type(name, (extension, base), {"__doc__": f"{base.__name__} with {extension.__name__}."})


def is_extended(network: nn.Module, extension: type[Extension]) -> bool:
    """Whether a network, wrapped or not, has an extension."""
    return isinstance(unwrap(network), extension)


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel and torch.compile wrappers."""
    while True:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network = network.module
        elif hasattr(network, "_orig_mod"):
            network = network._orig_mod  # pyright: ignore[reportAssignmentType] # a module, though declared as any child
        else:
            return network

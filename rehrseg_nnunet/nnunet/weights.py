"""Weights of networks: read from nnU-Net's checkpoints, and told apart by a hash."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

# what torch.load raises for damaged files and for files of something else, and indexing for other contents
UNREADABLE = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, pickle.PickleError)

Network = TypeVar("Network", bound=nn.Module)


def read_checkpoint(checkpoint: Path, *, remedy: str) -> dict[str, Any]:
    """One of nnU-Net's checkpoints on the CPU, its tensors mapped from the file.

    Raises:
        ValueError: the file is missing, damaged or no such checkpoint; the message ends with `remedy`.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        return {**content, "network_weights": dict(content["network_weights"])}
    except UNREADABLE as error:
        raise ValueError(
            f"{checkpoint} must be an nnU-Net checkpoint, got an unreadable file ({error}); {remedy}"
        ) from None


def read_weights(checkpoint: Path, *, remedy: str) -> dict[str, torch.Tensor]:
    """The network's state dict in one of nnU-Net's checkpoints, see `read_checkpoint`."""
    return read_checkpoint(checkpoint, remedy=remedy)["network_weights"]


def hash_weights(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of network weights: names, dtypes, shapes and values, whatever their order, device or file.

    Raises:
        ValueError: an entry that is no tensor.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name]
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"state_dict must hold tensors only, got {type(tensor).__name__} for {name}")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def first_not_finite(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """Name of an entry with NaN or infinite values, as a training that diverged leaves them; None without any."""
    return next((name for name, values in state_dict.items() if not torch.isfinite(values).all()), None)


def load_frozen(
    network: Network, checkpoint: Path, *, sizes: str, remedy: str, without: tuple[str, ...] = ()
) -> Network:
    """Fill a network with a run's weights and freeze it: evaluation mode, no gradients.

    Args:
        network: built for the training that needs it, on the CPU; changed in place.
        checkpoint: one of nnU-Net's.
        sizes: what `network` was built for, for the message.
        remedy: end of the message.
        without: beginnings of the names of weights that the network lacks and does not need.

    Returns:
        The same object.

    Raises:
        ValueError: the checkpoint is unreadable, of a training that diverged, or of a network of other sizes; names
            what differs.
    """
    weights = {k: v for k, v in read_weights(checkpoint, remedy=remedy).items() if not k.startswith(without)}
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{checkpoint} must fit the plans ({sizes}), but {key} is {found.get(key, 'missing')} and not "
            f"{expected.get(key, 'expected')}; {remedy}"
        )
    if name := first_not_finite(weights):
        raise ValueError(f"{checkpoint} must hold finite weights, got NaN or infinite ones in {name}; {remedy}")
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)

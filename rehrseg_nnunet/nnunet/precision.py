"""What the losses share: full precision inside mixed-precision training, and zeros that stay in the graph."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float32, or unchanged when it is float64.

    Args:
        tensor: any shape, any real dtype.

    Returns:
        The tensor itself where no conversion is needed.
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def without_autocast(device_type: str) -> AbstractContextManager:
    """Return a context in which matrix products keep their inputs' precision.

    Args:
        device_type: ``tensor.device.type``. For ``mps`` the context does nothing: older PyTorch versions refuse an
            autocast context there even when it is switched off, and nnU-Net never autocasts on it.
    """
    return nullcontext() if device_type == "mps" else torch.autocast(device_type, enabled=False)


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """Return the context in which nnU-Net computes on a device: autocast on CUDA, nothing elsewhere."""
    return torch.autocast("cuda") if device.type == "cuda" else nullcontext()


def connected_zero(tensor: Tensor) -> Tensor:
    """Return a scalar 0 through which ``tensor`` receives an all-zero gradient.

    DistributedDataParallel waits for a gradient of every parameter, also for those that no loss uses. Summing an
    empty slice rather than 0 * sum keeps an overflow in ``tensor`` from turning the 0 into NaN.

    Args:
        tensor: any shape with at least one axis.
    """
    return at_least_float32(tensor[:0]).sum()

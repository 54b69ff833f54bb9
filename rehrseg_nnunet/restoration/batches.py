"""A network applied to all windows or slices of a case, in batches that fit the memory of its device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

logger = logging.getLogger(__name__)


class Batches:
    """Applies a network on its device; what finds no memory there goes in smaller batches, in the end on the CPU.

    One object serves one case: what did not fit is not tried again. Mixed precision as in training, so on CUDA only.

    Args:
        network: returns tensors with the batch first; its mode and device are left as they are.
        size: items of a batch, as long as they fit.

    Attributes:
        size: items of the next batch; 0: not even one fits, so the CPU computes, one by one.
    """

    def __init__(self, network: nn.Module, *, size: int) -> None:
        self.network, self.size = network, size

    def apply(self, take: Callable[[int, int], torch.Tensor], count: int) -> list[torch.Tensor]:
        """Compute all items.

        Args:
            take: items `first` to `end - 1` as a batch (B, ...), for `first` and `end`.
            count: number of items, at least 1.

        Returns:
            What the network returns for all items, (count, ...) float32 on the CPU.

        Raises:
            torch.cuda.OutOfMemoryError: on the CPU.
        """
        parts: list[list[torch.Tensor]] = []
        first = 0
        with _device_kept(self.network):
            while first < count:
                batch = take(first, min(first + max(self.size, 1), count))
                outputs = self._compute(batch)
                # out of the handler, which would keep the failed computation's tensors
                if outputs is None:
                    self._shrink(len(batch))
                else:
                    parts.append(outputs)
                    first += len(batch)
        return [torch.cat(tensors) for tensors in zip(*parts, strict=True)]

    def _compute(self, batch: torch.Tensor) -> list[torch.Tensor] | None:
        """The outputs, None for lack of memory."""
        if self.size == 0:
            self.network.cpu()
        device = _device(self.network)
        try:
            with torch.autocast("cuda") if device.type == "cuda" else nullcontext():
                outputs: Sequence[torch.Tensor] = self.network(batch.to(device))
            return [tensor.float().cpu() for tensor in outputs]
        except torch.cuda.OutOfMemoryError:
            if self.size == 0:
                raise
            return None

    def _shrink(self, tried: int) -> None:
        torch.cuda.empty_cache()
        self.size = tried // 2
        if self.size == 0:
            logger.warning("%s memory is too small for this case: it goes on on the CPU", _device(self.network))


@contextmanager
def _device_kept(network: nn.Module) -> Iterator[None]:
    device = _device(network)
    try:
        yield
    finally:
        network.to(device)


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device

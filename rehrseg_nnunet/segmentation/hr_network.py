"""What all networks of stage 2 have in common: they take thick slices and give thin ones too, if they are asked to.

There are two: nnU-Net's network of thick slices with an HR head (`hr_head`), and its network of thin slices behind an
interpolation (`thin_input`). Both return what nnU-Net's own network of thick slices returns until `set_output_mode`
says otherwise, so nnU-Net's commands need not know of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import nn

from rehrseg_nnunet.nnunet.extended_network import Extension, is_extended, unwrap

OutputMode = Literal["lr", "hr", "training"]
OUTPUT_MODES = ("lr", "hr", "training")


class TrainingOutputs(NamedTuple):
    """What one pass of the network gives in mode "training".

    Attributes:
        lr: logits (B, K, D, H, W), or the list of logits from fine to coarse with deep supervision.
        hr: logits (B, K, r*D, H, W) of the thin slices; a list from fine to coarse where these are supervised deeply.
        student: (B, C, D, H', W') encoder features at in-plane stride 2.
        adapted: (B, Ct, D, H', W') the student after a 1x1x1 convolution to the teacher's channel count (Eq. 10).
    """

    lr: torch.Tensor | list[torch.Tensor]
    hr: torch.Tensor | list[torch.Tensor]
    student: torch.Tensor
    adapted: torch.Tensor


class HRNetwork(Extension):
    """Base of the extensions that give thin slices."""

    if TYPE_CHECKING:  # attributes or properties

        @property
        def factor(self) -> int:
            """r, thin slices per thick one."""
            ...

        output_mode: OutputMode


def gives_hr_logits(network: nn.Module) -> bool:
    """Whether the network, wrapped or not, is one of stage 2."""
    return is_extended(network, HRNetwork)


def _hr_network(network: nn.Module) -> HRNetwork:
    unwrapped = unwrap(network)
    if not isinstance(unwrapped, HRNetwork):
        raise ValueError(f"network must have an HR head or thin input, got a {type(unwrapped).__name__}")
    return unwrapped


def hr_factor(network: nn.Module) -> int:
    """The factor r of a network of stage 2.

    Raises:
        ValueError: another network.
    """
    return _hr_network(network).factor


def set_output_mode(network: nn.Module, mode: OutputMode) -> None:
    """Choose what the network returns.

    Args:
        network: one of stage 2, possibly inside DistributedDataParallel or torch.compile.
        mode: "lr": exactly what a stock network of thick slices returns. "hr": the pair of LR logits (B, K, D, H, W)
            and HR logits (B, K, r*D, H, W), whatever deep supervision is set to. "training": `TrainingOutputs`.

    Raises:
        ValueError: unknown mode, or another network.
    """
    if mode not in OUTPUT_MODES:
        raise ValueError(f"mode must be one of {OUTPUT_MODES}, got {mode!r}")
    _hr_network(network).output_mode = mode


def get_output_mode(network: nn.Module) -> OutputMode:
    """The mode set by `set_output_mode`; "lr" for a new network."""
    return _hr_network(network).output_mode


@contextmanager
def output_mode(network: nn.Module, mode: OutputMode) -> Iterator[None]:
    """`set_output_mode` for the duration of a with statement."""
    before = get_output_mode(network)
    set_output_mode(network, mode)
    try:
        yield
    finally:
        set_output_mode(network, before)

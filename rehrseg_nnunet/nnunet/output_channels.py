"""Another number of output channels than a dataset has labels, for nnU-Net's sliding window."""

from __future__ import annotations

from typing import Any


class OutputChannels:
    """A label manager with another number of heads: nnU-Net's sliding window asks it for the output channels.

    Args:
        label_manager: nnU-Net's.
        channels: of the network's output.
    """

    def __init__(self, label_manager: Any, channels: int) -> None:
        self._label_manager = label_manager
        self.num_segmentation_heads = channels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._label_manager, name)

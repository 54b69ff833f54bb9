"""Which channels of a paired dataset are there at prediction, and which are privileged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY = "rehrseg_privileged_channels"


@dataclass(frozen=True)
class PairedChannels:
    """Channels of a paired dataset by role.

    Attributes:
        source: indices of those that prediction has.
        privileged: indices of those that only the paired dataset has.
    """

    source: tuple[int, ...]
    privileged: tuple[int, ...]

    @classmethod
    def of_dataset(cls, dataset_json: Mapping[str, Any]) -> PairedChannels:
        """As dataset.json says by `rehrseg_privileged_channels`; without it the second of two is privileged."""
        number = len(dataset_json["channel_names"])
        privileged = sorted(int(channel) for channel in dataset_json.get(KEY, ["1"]))
        return cls(tuple(c for c in range(number) if c not in privileged), tuple(privileged))

"""Which channels of a paired dataset are there at prediction, and which are privileged: see `PairedChannels`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rehrseg_nnunet.nnunet.dataset_json import check_keys

KEY = "rehrseg_privileged_channels"  # of dataset.json; nnU-Net passes over keys that it does not know


@dataclass(frozen=True)
class PairedChannels:
    """Channels of a paired dataset by role.

    Attributes:
        source: indices of those that prediction has too.
        privileged: indices of those that only the paired dataset has.
    """

    source: tuple[int, ...]
    privileged: tuple[int, ...]

    @classmethod
    def of_dataset(cls, dataset_json: Mapping[str, Any]) -> PairedChannels:
        """As dataset.json says by `rehrseg_privileged_channels`; without it the second of two channels is privileged.

        Args:
            dataset_json: content of dataset.json.

        Raises:
            ValueError: the key is missing where it is needed, or does not leave channels on both sides; or there is no
                `channel_names`.

        Example:
            >>> names = {"0": "T1_3T", "1": "T2_3T", "2": "T1_7T"}
            >>> PairedChannels.of_dataset({"channel_names": names, "rehrseg_privileged_channels": ["2"]})
            PairedChannels(source=(0, 1), privileged=(2,))
        """
        check_keys(dataset_json, required=("channel_names",))
        names = {int(channel): name for channel, name in dataset_json["channel_names"].items()}
        given = dataset_json.get(KEY, ["1"] if len(names) == 2 else None)
        privileged = _as_indices(given)
        if not privileged or not set(privileged) < set(names):
            raise ValueError(_describe(given, names))
        return cls(tuple(sorted(set(names) - set(privileged))), privileged)


def _as_indices(given: Any) -> tuple[int, ...]:
    """Channel numbers, in ascending order; empty if they are none, or name one twice."""
    channels = [str(channel) for channel in given] if isinstance(given, list | tuple) else []
    if not all(channel.isdecimal() for channel in channels):  # 1.7 and True are no channel 1
        return ()
    indices = sorted(map(int, channels))
    return tuple(indices) if len(set(indices)) == len(indices) else ()


def _describe(given: Any, names: Mapping[int, str]) -> str:
    channels = ", ".join(f"{number} {name}" for number, name in sorted(names.items()))
    if len(names) < 2:
        return (
            f"channel_names of dataset.json must have a channel of the usual scan and one of the better scan, got "
            f"{channels} alone; `rehrseg pair` makes such a dataset"
        )
    got = "no such key" if given is None else f"{given}"
    return (
        f"{KEY} of dataset.json must list the channels of the better scan by their numbers, such as "
        f'["{max(names)}"], and leave a channel of the usual scan, got {got} for channels {channels}; '
        "mend it there, and in its copy in nnUNet_preprocessed, which nnU-Net reads"
    )

"""What a surface or a viewer's segment is made of: the labels of a dataset, or its regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.label_channels import head_labels
from rehrseg_nnunet.nnunet.label_values import label_manager_of, unknown_labels
from rehrseg_nnunet.surfaces.colours import colour

MOST_UNNAMED = 1000  # atlases have hundreds of labels, scans thousands of values


@dataclass(frozen=True)
class Structure:
    """A label or region.

    Attributes:
        name: in dataset.json.
        labels: values in a label map that belong to it.
        head: index of its logits.
    """

    name: str
    labels: tuple[int, ...]
    head: int

    def inside(self, labels: np.ndarray) -> np.ndarray:
        """Where a label map shows it."""
        return labels == self.labels[0] if len(self.labels) == 1 else np.isin(labels, self.labels)


@dataclass(frozen=True)
class Structures:
    """Labels without background and ignore label, or regions; travels to worker processes.

    Attributes:
        all: in the order of their heads.
        heads: number of segmentation heads.
        class_order: nnU-Net's `regions_class_order`, the label that each region writes in turn; empty without regions.
    """

    all: tuple[Structure, ...]
    heads: int
    class_order: tuple[int, ...] = ()

    def colour(self, structure: Structure) -> tuple[int, int, int]:
        """Red, green, blue from 0 to 255; label 1 or the first region has the first colour."""
        return colour(structure.head if self.class_order else structure.head - 1)


def structures_of(dataset_json: Mapping[str, Any], *, source: str = "dataset.json") -> Structures:
    """Structures of a dataset.

    Args:
        dataset_json: content of dataset.json, of which `labels` and `regions_class_order` count.
        source: the file, for messages.

    Raises:
        ValueError: labels that nnU-Net does not accept.

    Example:
        >>> structures_of({"labels": {"background": 0, "liver": 1}}).all
        (Structure(name='liver', labels=(1,), head=1),)
    """
    manager = label_manager_of(dataset_json, source=source)
    groups = head_labels(manager)
    names = {_values(value): name for name, value in dataset_json["labels"].items() if name != "ignore"}
    found = [Structure(names[group], group, head) for head, group in enumerate(groups) if set(group) != {0}]
    order = manager.regions_class_order if manager.has_regions else None
    return Structures(tuple(found), len(groups), tuple(int(label) for label in order or ()))


def structures_in(labels: np.ndarray) -> Structures:
    """Structures of a label map that comes without dataset.json: `label_1`, `label_2`, ...

    Raises:
        ValueError: so many different values, or negative ones, that it is a scan.
    """
    found = unknown_labels(labels, {0})
    if len(found) > MOST_UNNAMED or (found and found[0] < 0):
        raise ValueError(
            f"labels must be up to {MOST_UNNAMED} and not negative where no dataset.json names them, got {len(found)} "
            f"from {found[0]} to {found[-1]}; give a segmentation if this is a scan, or dataset.json with -djfile"
        )
    return Structures(tuple(Structure(f"label_{value}", (value,), value) for value in found), 0)


def _values(entry: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in entry) if isinstance(entry, Sequence) else (int(entry),)

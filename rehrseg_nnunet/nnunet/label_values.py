"""Labels are integers: what is a hair off is rounded and said, what is not is refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.raw_files import listed

logger = logging.getLogger(__name__)

LARGEST = int(np.iinfo(np.int32).max)
TOLERANCE = 1e-3  # a header with a scale factor gives labels back as 1.0000153


def integer_labels(values: np.ndarray, *, file: str) -> np.ndarray:
    """Labels of a file as int32.

    Args:
        values: label map as a reader returned it, finite.
        file: its name, for messages.

    Raises:
        ValueError: values that are no integers, by more than `TOLERANCE`, or too large for int32.
    """
    lowest, highest = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if max(-lowest, highest) > LARGEST:
        got = highest if highest > LARGEST else lowest
        raise ValueError(f"{file} must hold integer labels up to {LARGEST}, got {got:.10g}; number them anew")
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int32, copy=False)
    labels = np.rint(values)
    off = np.abs(values - labels)
    furthest = int(off.argmax()) if off.size else 0
    distance = float(off.flat[furthest]) if off.size else 0.0
    if distance > TOLERANCE:
        raise ValueError(
            f"{file} must hold integer labels, got {values.flat[furthest]:.6g}; label maps must be resampled with "
            "nearest neighbour and saved as integers; if this is a scan, give its segmentation"
        )
    if distance:
        logger.warning("%s: labels up to %.2g off an integer are rounded; save the file as integers", file, distance)
    return labels.astype(np.int32)


def label_manager_of(content: Mapping[str, Any], *, source: str = "dataset.json") -> LabelManager:
    """nnU-Net's label manager of a dataset.json.

    Args:
        content: of dataset.json.
        source: the file, for the message.

    Raises:
        ValueError: labels that nnU-Net does not accept, or that it would round.
    """
    names = content["labels"]
    try:
        manager = LabelManager(names, content.get("regions_class_order"))
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"labels of {source} must be what nnU-Net accepts, got {names}: {error}") from error
    values = [part for value in names.values() for part in (value if isinstance(value, (tuple, list)) else [value])]
    if any(float(value) != int(value) for value in values):
        raise ValueError(f"labels of {source} must be integers, got {names}")
    return manager


def known_labels(label_manager: LabelManager) -> set[int]:
    """All labels that dataset.json has, background and ignore label included."""
    labels = {int(label) for label in label_manager.all_labels}
    return labels if label_manager.ignore_label is None else {*labels, int(label_manager.ignore_label)}


def unknown_labels(labels: np.ndarray, known: Collection[int]) -> list[int]:
    """Labels of an integer map, in ascending order, that are not among the known ones."""
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if lowest >= 0 and highest < 1 << 16:  # counting is much faster than sorting
        present: Iterable[int] = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    else:
        present = np.unique(labels).tolist()
    return [label for label in present if label not in known]


def describe_unknown(unknown: Collection[int]) -> str:
    """That a file, whose name comes before, has labels that dataset.json does not have."""
    return f"has label {listed([str(label) for label in unknown])}, which dataset.json does not have"

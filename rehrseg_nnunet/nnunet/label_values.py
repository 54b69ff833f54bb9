"""Labels are integers: what is a hair off is rounded and said, what is not is refused."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3  # a header with a scale factor gives labels back as 1.0000153


def integer_labels(values: np.ndarray, *, file: str) -> np.ndarray:
    """Labels of a file as int32.

    Args:
        values: label map as a reader returned it, finite.
        file: its name, for messages.

    Raises:
        ValueError: values that are no integers, by more than `TOLERANCE`.
    """
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int32, copy=False)
    labels = np.rint(values)
    off = np.abs(values - labels)
    furthest = int(off.argmax()) if off.size else 0
    distance = float(off.flat[furthest]) if off.size else 0.0
    if distance > TOLERANCE:
        raise ValueError(
            f"{file} must hold integer labels, got {values.flat[furthest]:.6g}; label maps must be resampled with "
            "nearest neighbour and saved as integers"
        )
    if distance:
        logger.warning("%s: labels up to %.2g off an integer are rounded; save the file as integers", file, distance)
    return labels.astype(np.int32)


def known_labels(label_manager: LabelManager) -> set[int]:
    """All labels that dataset.json has, background and ignore label included."""
    labels = {int(label) for label in label_manager.all_labels}
    return labels if label_manager.ignore_label is None else {*labels, int(label_manager.ignore_label)}


def unknown_labels(labels: np.ndarray, known: Collection[int]) -> list[int]:
    """Labels of a map, in ascending order, that are not among the known ones."""
    lowest, highest = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    if lowest >= 0 and highest < 1 << 16:  # counting is much faster than sorting
        present: Iterable[int] = np.flatnonzero(np.bincount(labels.ravel())).tolist()
    else:
        present = np.unique(labels).tolist()
    return [label for label in present if label not in known]


def describe_unknown(unknown: Collection[int]) -> str:
    """That a file, whose name comes before, has labels that dataset.json does not have."""
    return f"has label {', '.join(f'{label:g}' for label in unknown)}, which dataset.json does not have"

"""Logits brought onto another grid one class at a time: what is made on the way is as large as one class's map.

Logits of many classes on fine grids are the largest arrays of a prediction. nnU-Net holds them in float16, and so does
what is returned here; one class at a time is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

Logits: TypeAlias = np.ndarray | torch.Tensor
ClassMap: TypeAlias = Callable[[int], torch.Tensor]  # number of a class -> its map, float32

SMALLEST_PROBABILITY = 1e-7


def map_classes(change: ClassMap, classes: int, shape: Sequence[int], *, dtype: Any) -> np.ndarray:
    """Maps of all classes, made one by one.

    Args:
        change: the map of a class, of the given shape.
        classes: K.
        shape: of a map.
        dtype: numpy's, of the result.

    Returns:
        (K, *shape).
    """
    result = np.empty((classes, *shape), dtype=dtype)
    for number in range(classes):
        result[number] = change(number).numpy()
    return result


def average_classes(
    logits: ClassMap,
    average: Callable[[int, torch.Tensor], torch.Tensor],
    classes: int,
    shape: Sequence[int],
    *,
    has_regions: bool,
    dtype: Any,
) -> np.ndarray:
    """Logits of averaged probabilities: thick slices see the probabilities of the thin ones, not their logits.

    Args:
        logits: the logits of a class; called twice for each.
        average: averages the probabilities of a class, given with its number.
        classes: K.
        shape: of the averaged map.
        has_regions: sigmoid of every map, not softmax over the maps.
        dtype: numpy's, of the result.

    Returns:
        (K, *shape), whose softmax (sigmoid for regions) is the averaged probabilities.
    """
    normaliser = None if has_regions else _log_sum_exp(logits, classes)

    def averaged(number: int) -> torch.Tensor:
        values = logits(number)
        if normaliser is None:
            return average(number, values.sigmoid()).logit(eps=SMALLEST_PROBABILITY)
        return average(number, (values - normaliser).exp()).clamp_min(SMALLEST_PROBABILITY).log()

    return map_classes(averaged, classes, shape, dtype=dtype)


def background_value(number: int, *, has_regions: bool, logit: bool) -> float:
    """What a class's map holds where nothing is known: the first class is the background, no region is it."""
    is_background = number == 0 and not has_regions
    if not logit:
        return float(is_background)
    return 0.0 if is_background else math.log(SMALLEST_PROBABILITY)


def as_dtype(logits: Logits) -> Any:
    """Numpy's type of an array's or tensor's values."""
    return logits.dtype if isinstance(logits, np.ndarray) else logits.numpy().dtype


def _log_sum_exp(logits: ClassMap, classes: int) -> torch.Tensor:
    total = logits(0).clone()
    for number in range(1, classes):
        torch.logaddexp(total, logits(number), out=total)
    return total

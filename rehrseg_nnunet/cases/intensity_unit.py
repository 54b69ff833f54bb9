"""The intensity unit of a case, in which stage 1 and whoever reuses its network see the case's image.

Convention:
    One unit per case and channel, from the whole preprocessed thick-slice image: 0 is its mean, 1 is the distance from
    its 0.5th to its 99.5th percentile. Nothing is clipped. Crops, pseudo-HR images and patches of a case keep the
    case's unit, so the same tissue has the same value in all of them, and a*I + b (a > 0) has those of I.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

INTENSITY_UNIT = "rehrseg_intensity_unit"  # key of `IntensityUnit.as_property` in a derived case's properties
PERCENTILES = (0.5, 99.5)
# Share of the largest magnitude; a smaller range is rounding, which must not be stretched.
SMALLEST_RANGE = 1e-6


@dataclass(frozen=True)
class IntensityUnit:
    """Zero and length of one unit of intensity.

    Attributes:
        zero: for each channel, the intensity that becomes 0.
        length: for each channel, the difference in intensity that becomes 1; 0 for a constant.
    """

    zero: tuple[float, ...]
    length: tuple[float, ...]

    @classmethod
    def of_case(cls, image: np.ndarray) -> IntensityUnit:
        """The unit of a whole case.

        Args:
            image: (C, D, H, W), the preprocessed thick-slice image.
        """
        channels = [np.asarray(channel, dtype=np.float64) for channel in image]
        return cls(
            zero=tuple(float(channel.mean()) for channel in channels),
            length=tuple(_length(channel) for channel in channels),
        )

    @classmethod
    def of_properties(cls, properties: Mapping[str, Any]) -> IntensityUnit:
        """The unit that is stored with an interpolated or pseudo-HR case.

        Raises:
            ValueError: the case has none: it was made before units were stored.
        """
        stored = properties.get(INTENSITY_UNIT)
        if stored is None:
            raise ValueError(f"properties must have {INTENSITY_UNIT}, got a case of an earlier version: make it anew")
        return cls(zero=tuple(stored["zero"]), length=tuple(stored["length"]))

    def as_property(self) -> dict[str, dict[str, list[float]]]:
        """The entry for a case's properties."""
        return {INTENSITY_UNIT: {"zero": list(self.zero), "length": list(self.length)}}

    def apply(self, image: torch.Tensor) -> torch.Tensor:
        """Intensities (C, ...) of the case in its unit."""
        zero, length = self._columns(image)
        return (image - zero) / torch.where(length == 0, 1, length)

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """What is in the unit, (C, ...), in the case's intensities."""
        zero, length = self._columns(image)
        return image * length + zero

    def _columns(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if len(image) != len(self.zero):
            raise ValueError(f"image must have {len(self.zero)} channels, got {len(image)}")
        shape = (-1, *[1] * (image.ndim - 1))
        return tuple(
            torch.tensor(values, dtype=image.dtype, device=image.device).view(shape)
            for values in (self.zero, self.length)
        )


def _length(channel: np.ndarray) -> float:
    """Between the percentiles, or the extremes of a channel that is nearly all background; 0 for a constant."""
    smallest = SMALLEST_RANGE * float(np.abs(channel).max())
    low, high = np.percentile(channel, PERCENTILES)
    for length in (float(high - low), float(np.ptp(channel))):
        if length > smallest:
            return length
    return 0.0  # whatever a network adds in this unit, a constant stays one

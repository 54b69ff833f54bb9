"""What brings a patch's targets to the scale of its whole case: the intensity unit, and the norm of Eq. 7."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.segmentation.targets import PatchTargets

PERCENTILES = (0.5, 99.5)  # a single extreme voxel must not decide what all others weigh


@dataclass(frozen=True)
class CaseScale:
    """A case's intensity unit, and which downsampled U become 0 and 1.

    Attributes:
        unit: of the image.
        lowest: downsampled U that becomes 0.
        highest: downsampled U that becomes 1; not above `lowest` where all U become 0.
    """

    unit: IntensityUnit
    lowest: float = 0.0
    highest: float = 1.0

    @classmethod
    def of_case(
        cls, data: Any, properties: Mapping[str, Any], *, factor: int, normalise_uncertainty: bool = True
    ) -> CaseScale:
        """The scale of a pseudo-HR case.

        Eq. 7 downsamples U, as the labels, before it brings it to [0, 1]. The scale is one for the thick slices of all
        phases.

        Args:
            data: (C + 1, r*D, H, W), U last.
            properties: with the case's intensity unit.
            factor: r.
            normalise_uncertainty: whether U is brought to [0, 1] by its own extremes; not where it means something as
                it is.
        """
        unit = IntensityUnit.of_properties(properties)
        if not normalise_uncertainty:
            return cls(unit)
        uncertainty = np.asarray(data[-1:, :, :, :])[0].astype(np.float64)
        first, last = (factor - 1) // 2, factor // 2  # the slices whose mean a thick slice's U is: one for odd r
        slices = len(uncertainty) - factor + 1  # thick ones, of all phases
        thick = (uncertainty[first : first + slices] + uncertainty[last : last + slices]) / 2
        lowest, highest = np.percentile(thick, PERCENTILES)
        return cls(unit, float(lowest), float(highest))

    def apply(self, targets: PatchTargets) -> PatchTargets:
        """Targets of one sample, without the batch axis, in the case's scale."""
        return targets._replace(image=self.unit.apply(targets.image), uncertainty=self._norm(targets.uncertainty))

    def _norm(self, uncertainty: torch.Tensor) -> torch.Tensor:
        if self.highest <= self.lowest:
            return torch.zeros_like(uncertainty)
        return ((uncertainty - self.lowest) / (self.highest - self.lowest)).clamp(0, 1)

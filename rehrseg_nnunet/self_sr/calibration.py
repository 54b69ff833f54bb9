"""U as a probability: what share of the pseudo labels with a given U is wrong, measured on simulated pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import JsonValue
from scipy.optimize import isotonic_regression

BINS = 64  # at most
FEWEST = 50  # voxels of a bin, so that its share of wrong labels is one


@dataclass(frozen=True)
class Calibration:
    """A map from U to the probability that the pseudo label is wrong, which never falls.

    Attributes:
        uncertainty: U at the knots, rising.
        wrong: probability at the knots, straight in between and constant beyond.
    """

    uncertainty: tuple[float, ...]
    wrong: tuple[float, ...]

    @classmethod
    def fit(cls, samples: Iterable[tuple[np.ndarray, np.ndarray]]) -> Calibration:
        """The map that fits best: isotonic regression over bins that share the sum of U, so that rare high U count.

        Where a structure is a thousandth of the scan, bins of as many voxels each would have all that is uncertain in
        one of them, together with voxels that are sure.

        Args:
            samples: of each case, U and whether the pseudo label is wrong, both (voxels,).

        Raises:
            ValueError: no voxel at all.
        """
        pairs = list(samples)
        uncertainty = np.concatenate([u for u, _ in pairs]) if pairs else np.zeros(0)
        if not len(uncertainty):
            raise ValueError("samples must have at least one voxel with a label, got none")
        wrong = np.concatenate([w for _, w in pairs]).astype(np.float64)[np.argsort(uncertainty, kind="stable")]
        uncertainty = np.sort(uncertainty).astype(np.float64)
        bins = np.split(np.arange(len(uncertainty)), _edges(uncertainty))
        centres = np.array([uncertainty[b].mean() for b in bins])
        rates, sizes = np.array([wrong[b].mean() for b in bins]), np.array([len(b) for b in bins])
        fitted = isotonic_regression(rates, weights=sizes).x
        return cls(uncertainty=tuple(centres.tolist()), wrong=tuple(fitted.tolist()))

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> Calibration:
        """What `as_json` gave."""
        return cls(uncertainty=tuple(content["uncertainty"]), wrong=tuple(content["wrong"]))

    def as_json(self) -> dict[str, JsonValue]:
        """For a manifest."""
        return {"uncertainty": list(self.uncertainty), "wrong": list(self.wrong)}

    def apply(self, uncertainty: np.ndarray) -> np.ndarray:
        """Probability that the label is wrong, float32, for U of any shape."""
        return np.interp(uncertainty, self.uncertainty, self.wrong).astype(np.float32)


def _edges(uncertainty: np.ndarray) -> list[int]:
    """Where sorted U (voxels,) is cut, so that parts have about the same sum and none under `FEWEST` voxels."""
    shares = np.cumsum(uncertainty - uncertainty[0])
    if shares[-1] <= 0:
        return []  # one value
    edges: list[int] = []
    for edge in np.searchsorted(shares, shares[-1] * np.arange(1, BINS) / BINS):
        if edge - (edges[-1] if edges else 0) >= FEWEST and len(uncertainty) - edge >= FEWEST:
            edges.append(int(edge))
    return edges

"""Does U mark what is wrong? Uncertainty maps against the true errors of image and labels.

Convention:
    Voxels whose label is unknown do not count. *Edge* are the voxels on either side of a boundary (by face) between
    different true labels, *near* those within 3 voxels of an edge voxel. Phase j is HR slice j of its thick slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.ndimage import distance_transform_edt, gaussian_filter, uniform_filter1d
from scipy.special import entr, expit, softmax
from scipy.stats import rankdata, spearmanr

from rehrseg_nnunet.restoration.report import Row, Volumes

NEAR_VOXELS = 3
CEILING = "true error, smoothed"
SMOOTHING_VOXELS = 1.5  # standard deviation: about what a map can hope to know of errors that are partly noise
TILE = 8  # pixels; even, so that a constant with alternating signs has mean 0
RANKED_VOXELS = 200_000


@dataclass(frozen=True)
class TrueErrors:
    """What is wrong with a restored case.

    Attributes:
        image: (r*D, H, W), absolute error, mean over the channels.
        wrong: (r*D, H, W), whether the label is wrong.
        labels: (r*D, H, W), the true labels.
        known: (r*D, H, W), whether the label is known, in truth and in the nearest thick slice.
    """

    image: np.ndarray
    wrong: np.ndarray
    labels: np.ndarray
    known: np.ndarray

    @classmethod
    def of_case(cls, restored: Volumes, truth: Volumes, label_manager: LabelManager) -> TrueErrors:
        """From image (C, r*D, H, W) and labels (1, r*D, H, W) of a restored case and of the truth.

        nnU-Net's -1 counts as background; where the restored case has the ignore label, its labels are unknown.
        """
        labels, true_labels = (np.maximum(volumes[1][0], 0) for volumes in (restored, truth))
        known = np.ones(labels.shape, dtype=bool)
        if label_manager.has_ignore_label:
            known = (labels != label_manager.ignore_label) & (true_labels != label_manager.ignore_label)
        error = np.abs(restored[0] - truth[0]).mean(axis=0)
        return cls(image=error, wrong=labels != true_labels, labels=true_labels, known=known)

    @cached_property
    def edge(self) -> np.ndarray:
        """Voxels on either side of a boundary."""
        edge = np.zeros(self.labels.shape, dtype=bool)
        for axis in range(3):
            differs = np.diff(self.labels, axis=axis) != 0
            for side in (slice(None, -1), slice(1, None)):
                index = [slice(None)] * 3
                index[axis] = side
                edge[tuple(index)] |= differs
        return edge

    @cached_property
    def near(self) -> np.ndarray:
        """Voxels near a boundary whose label is known; none where there is no boundary."""
        if not self.edge.any():
            return np.zeros_like(self.edge)
        return self.known & (np.asarray(distance_transform_edt(~self.edge)) <= NEAR_VOXELS)


def judge(maps: Mapping[str, np.ndarray], errors: TrueErrors, *, factor: int) -> dict[str, Row]:
    """Score uncertainty maps of one case, and beside them what the smoothed true errors reach.

    Args:
        maps: by name, (r*D, H, W).
        errors: of the case.
        factor: r.

    Returns:
        For each map `spearman` (with the image's error), `auroc` (for wrong labels near a boundary); of the maps
        themselves the means `inside`, `edge` and `outside` of structures and for every `phase`, and `checkerboard`.
    """
    rows = {name: _row(uncertainty, errors, factor) for name, uncertainty in maps.items()}
    image, wrong = (gaussian_filter(e.astype(np.float32), SMOOTHING_VOXELS) for e in (errors.image, errors.wrong))
    rows[CEILING] = {
        "spearman": rank_correlation(image, errors.image),
        "auroc": auroc(wrong[errors.near], errors.wrong[errors.near]),
    }
    return rows


def _row(uncertainty: np.ndarray, errors: TrueErrors, factor: int) -> Row:
    foreground = errors.labels > 0
    regions = {"inside": foreground & ~errors.edge, "edge": errors.edge, "outside": ~foreground & ~errors.edge}
    means = {name: _mean(uncertainty[mask & errors.known]) for name, mask in regions.items()}
    phases = {f"phase {j}": _mean(uncertainty[j::factor][errors.known[j::factor]]) for j in range(factor)}
    return {
        "spearman": rank_correlation(uncertainty, errors.image),
        "auroc": auroc(uncertainty[errors.near], errors.wrong[errors.near]),
        **means,
        **phases,
        "checkerboard": checkerboard_share(uncertainty),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def label_entropy(logits: np.ndarray, label_manager: LabelManager) -> np.ndarray:
    """Entropy (nat) of the labels' probabilities, of logits (K, r*D, H, W); for regions summed over them."""
    if label_manager.has_regions:
        probability = expit(logits)
        return (entr(probability) + entr(1 - probability)).sum(axis=0)
    return entr(softmax(logits, axis=0)).sum(axis=0)


def checkerboard_share(uncertainty: np.ndarray) -> float:
    """Share of a map's variance, (D, H, W), that alternates from pixel to pixel in plane, in step over tiles."""
    total = float(uncertainty.var())
    if total == 0:
        return 0.0
    rows, columns = (1.0 - 2 * (np.arange(n) % 2) for n in uncertainty.shape[1:])
    patterns = (rows[:, None], columns[None, :], rows[:, None] * columns[None, :])
    power = sum(float((_tile_means(uncertainty * signs) ** 2).mean()) for signs in patterns)
    return power / total


def _tile_means(maps: np.ndarray) -> np.ndarray:
    return uniform_filter1d(uniform_filter1d(maps, TILE, axis=1, mode="mirror"), TILE, axis=2, mode="mirror")


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two maps of the same shape, from `RANKED_VOXELS` voxels if there are more.

    Ranking all voxels of a case can take minutes. The voxels are drawn with a fixed seed; the standard error is 0.002.
    Maps that are the same everywhere have none: nan.
    """
    a, b = _sample(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue] # made at run time


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive voxel scores higher than another, ties half; nan where one kind is missing."""
    score, positive = _sample(score, positive)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _sample(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = a.ravel(), b.ravel()
    if a.size <= RANKED_VOXELS:
        return a, b
    chosen = np.random.default_rng(0).integers(a.size, size=RANKED_VOXELS)
    return a[chosen], b[chosen]

"""Do thin labels agree with those on the acquired slices?"""

from __future__ import annotations

import numpy as np
import torch

from rehrseg_nnunet.evaluation.metrics import dice
from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.slices.slice_profile import degrade_labels
from rehrseg_nnunet.surfaces.structures import Structures


def agreement(thin: Volume, acquired: Volume, structures: Structures) -> float:
    """Mean Dice of labels, brought to the acquired slices, with those there; nan where neither has any.

    Args:
        thin: labels on other slices of the same scan.
        acquired: labels on the acquired slices.
        structures: of the dataset.
    """
    brought = on_acquired_slices(thin, acquired)
    scores = [dice(s.inside(acquired.values), s.inside(brought)) for s in structures.all]
    return float(np.mean(defined)) if (defined := [score for score in scores if not np.isnan(score)]) else float("nan")


def on_acquired_slices(thin: Volume, acquired: Volume) -> np.ndarray:
    """Labels on the acquired slices: at every slice's centre where r slices lie in each, else those of the nearest."""
    axis, factor = _thinner_axis(thin, acquired)
    if factor > 1 and np.allclose(thin.box, acquired.box, atol=0.1 * min(thin.grid.spacing_mm)):
        labels = torch.from_numpy(np.ascontiguousarray(thin.values))
        return degrade_labels(labels, factor, axis).numpy()
    return thin.with_voxels_of(acquired, order=0).values


def _thinner_axis(thin: Volume, acquired: Volume) -> tuple[int, int]:
    """The one axis along which there are more slices, and how many times as many; 0, 1 if there is no such axis."""
    pairs = list(zip(thin.grid.shape, acquired.grid.shape, strict=True))
    differing = [axis for axis, (more, fewer) in enumerate(pairs) if more != fewer]
    if len(differing) != 1:
        return 0, 1
    more, fewer = pairs[differing[0]]
    return (differing[0], more // fewer) if more % fewer == 0 else (0, 1)

"""Whole cases whose truth is known: near-isotropic ones made thick along an in-plane axis.

Report and calibration restore them as the export restores thick-slice cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rehrseg_nnunet.restoration.report import Comparison, Volumes
from rehrseg_nnunet.self_sr.voxel_size import simulated_grids
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

NAMES = {1: "simulated along y", 2: "simulated along x"}


def simulated_cases(
    fine: Volumes, factor: int, spacing_mm: Sequence[float], *, upper_ties: bool
) -> Iterator[Comparison]:
    """A near-isotropic case degraded along each in-plane axis that is long enough to play the slice axis.

    Args:
        fine: image (C, Z, Y, X) and labels (1, Z, Y, X).
        factor: r.
        spacing_mm: (c, a_y, a_x) of the LR case.
        upper_ties: see `degrade_labels`.
    """
    for axis, name in NAMES.items():
        grid, z_grid = simulated_grids(fine[0].shape[1:], axis, factor, spacing_mm)
        if grid.voxels < factor:
            continue
        image, labels = torch.from_numpy(fine[0]), torch.from_numpy(fine[1][0])
        for a, resampled in ((axis, grid), (0, z_grid)):
            moved = resampled.resample(image.movedim(1 + a, 1), labels.movedim(a, 0), 0, resampled.voxels)
            image, labels = moved[0].movedim(1, 1 + a), moved[1].movedim(0, a)
        lr, truth = simulated_case(image.numpy(), labels[None].numpy(), factor, axis, upper_ties=upper_ties)
        z_mm, slice_mm = spacing_mm[0] / factor / z_grid.scale, spacing_mm[axis] / grid.scale
        yield Comparison(name, lr, truth, (slice_mm * factor, z_mm, spacing_mm[3 - axis]))


def simulated_case(
    image: np.ndarray, labels: np.ndarray, factor: int, axis: int, *, upper_ties: bool
) -> tuple[Volumes, Volumes]:
    """Degrade a near-isotropic case along an in-plane axis.

    Args:
        image: (C, Z, Y, X).
        labels: (1, Z, Y, X).
        factor: r.
        axis: 1 (y) or 2 (x): the axis that plays the slice axis.
        upper_ties: see `degrade_labels`.

    Returns:
        (image, labels) of the thick-slice case and of the truth, slice axis first, cropped to a multiple of r.
    """
    slices = image.shape[1 + axis] // factor * factor
    true_image = np.ascontiguousarray(np.moveaxis(image, 1 + axis, 1)[:, :slices])
    true_labels = np.ascontiguousarray(np.moveaxis(labels, 1 + axis, 1)[:, :slices])
    lr_image = degrade(torch.from_numpy(true_image.astype(np.float32)), factor, 1).numpy()
    labels_there = torch.from_numpy(true_labels.astype(np.int16))
    lr_labels = degrade_labels(labels_there, factor, 1, upper_ties=upper_ties).numpy()
    return (lr_image, lr_labels), (true_image, true_labels)

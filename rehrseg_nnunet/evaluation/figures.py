"""Figures by which a person judges a super-resolved case at a glance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

PLANES = ("in plane", "through plane (y)", "through plane (x)")


def central_planes(volume: np.ndarray, centre: tuple[int, int, int]) -> list[np.ndarray]:
    """The three planes (y, x), (z, x) and (z, y) of a volume (D, H, W) through a voxel."""
    z, y, x = centre
    return [volume[z], volume[:, y], volume[:, :, x]]


def label_centre(labels: np.ndarray) -> tuple[int, int, int]:
    """Centroid voxel of the foreground of (D, H, W), the volume's middle where there is none."""
    voxels = np.argwhere(labels > 0)
    centre = voxels.mean(axis=0) if len(voxels) else (np.array(labels.shape) - 1) / 2
    z, y, x = (round(float(c)) for c in centre)
    return z, y, x


def save_case_figure(
    file: Path, images: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], uncertainty: np.ndarray
) -> None:
    """Write a PNG: one row per plane, one column per image, then U; label outlines over the images.

    Args:
        file: PNG to write; complete or not at all.
        images: title to (r*D, H, W) image, all on the HR grid.
        labels: the same titles to (r*D, H, W) label maps.
        uncertainty: (r*D, H, W).
    """
    centre = label_centre(next(iter(labels.values())))
    save_image_figure(file, images, {"uncertainty U": uncertainty}, centre, labels)


def save_image_figure(
    file: Path,
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    centre: tuple[int, int, int],
    labels: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a PNG: one row per plane, one column per image, all in the first one's grey values, then one per map.

    Args:
        file: PNG to write; complete or not at all.
        images: title to (D, H, W) image, all on one grid.
        maps: title to (D, H, W) values, each in colours of its own range.
        centre: voxel that the planes go through.
        labels: titles of images to (D, H, W) label maps, whose outlines are drawn over them.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    with plt.style.context("default"):  # nnU-Net's own plots leave seaborn's style and large fonts behind
        figure = _case_figure(plt, images, maps, centre, labels or {})
        partial = file.with_name(f".{file.name}")
        try:
            figure.savefig(partial, dpi=100, format="png")
            os.replace(partial, file)
        finally:
            plt.close(figure)
            partial.unlink(missing_ok=True)


def _case_figure(
    plt: ModuleType,
    images: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    centre: tuple[int, int, int],
    labels: Mapping[str, np.ndarray],
) -> Any:
    reference = next(iter(images.values()))
    low, high = np.percentile(reference, (0.5, 99.5))
    columns = len(images) + len(maps)
    rows = 1 if len(reference) == 1 else len(PLANES)  # of one slice there is no other plane
    shapes = [plane.shape for plane in central_planes(reference, centre)[:rows]]
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 3 * rows), squeeze=False, height_ratios=[s[0] / s[1] for s in shapes]
    )
    for column, (title, image) in enumerate(images.items()):
        for row, plane in enumerate(central_planes(image, centre)[:rows]):
            axes[row, column].imshow(plane, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        for row, outline in enumerate(central_planes(labels[title], centre)[:rows] if title in labels else ()):
            _outline(axes[row, column], outline)
        axes[0, column].set_title(title)
    for column, (title, values) in enumerate(maps.items(), start=len(images)):
        for row, plane in enumerate(central_planes(values, centre)[:rows]):
            axes[row, column].imshow(plane, cmap="magma", interpolation="nearest")
        axes[0, column].set_title(title)
    for row in range(rows):
        axes[row, 0].set_ylabel(PLANES[row])
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    return figure


def _outline(axis: Any, labels: np.ndarray) -> None:
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        if mask.any() and not mask.all():
            axis.contour(mask, levels=[0.5], colors=[f"C{int(value) % 10}"], linewidths=1.0)

"""A generated phantom: isotropic volumes with structures that curve across slices, for demo, tests and benchmarks.

Convention:
    Arrays are (z, y, x), voxels of 1 mm. Label 1 is a winding tube that runs through all slices, label 2 a tilted
    ellipsoid; intensities are tissue means smoothed by a voxel at the boundaries, times a smooth field, plus noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from scipy.ndimage import gaussian_filter

from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import whole_files

LABELS = {"background": 0, "tube": 1, "ellipsoid": 2}
TISSUE = (100.0, 180.0, 50.0)
NOISE = 6.0


def make_phantom(shape: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one phantom.

    Args:
        shape: (z, y, x), at least 16 each.
        rng: random numbers.

    Returns:
        image float32 and labels uint8, both of that shape.

    Raises:
        ValueError: a shape that is too small for the structures.
    """
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape must have three entries of at least 16, got {tuple(shape)}")
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    labels[_ellipsoid(grid, shape, rng)] = 2
    labels[_tube(grid, shape, rng)] = 1
    return _intensities(labels, rng), labels


def _tube(grid: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Tube around a curve whose centre winds by about a period over the slices."""
    z, y, x = grid
    turns, phase = rng.uniform(0.7, 1.3), rng.uniform(0, 2 * np.pi)
    angle = 2 * np.pi * turns * z / shape[0] + phase
    centre_y = shape[1] * (0.5 + rng.uniform(0.16, 0.22) * np.sin(angle))
    centre_x = shape[2] * (0.5 + rng.uniform(0.16, 0.22) * np.cos(angle))
    radius = min(shape[1:]) * rng.uniform(0.08, 0.11)
    return (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radius**2


def _ellipsoid(grid: np.ndarray, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Ellipsoid whose long axis points obliquely through the slices."""
    centre = np.array(shape) * rng.uniform(0.42, 0.58, size=3)
    axis = np.array([rng.uniform(0.5, 0.9), *rng.choice([-1, 1], size=2) * rng.uniform(0.4, 0.8, size=2)])
    axis /= np.linalg.norm(axis)
    long, short = min(shape) * rng.uniform(0.32, 0.4), min(shape) * rng.uniform(0.12, 0.16)
    offset = grid - centre[:, None, None, None]
    along = np.tensordot(axis, offset, axes=1)
    across = (offset**2).sum(axis=0) - along**2
    return (along / long) ** 2 + across / short**2 <= 1


def _intensities(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    tissue = gaussian_filter(np.array(TISSUE)[labels], 0.7)
    field = gaussian_filter(rng.normal(size=labels.shape), min(labels.shape) / 4)
    field *= 0.1 / max(float(np.abs(field).max()), 1e-6)
    return (tissue * (1 + field) + rng.normal(scale=NOISE, size=labels.shape)).astype(np.float32)


def write_phantom_dataset(folder: Path, *, cases: int, shape: Sequence[int], seed: int) -> None:
    """Write an nnU-Net raw dataset of phantoms.

    Args:
        folder: new folder `Dataset<ID>_<name>`.
        cases: number of training cases.
        shape: (z, y, x) of each.
        seed: of the random numbers.

    Raises:
        OSError: a file could not be written; named.
    """
    files = whole_files(SimpleITKIO)()
    geometry = {"sitk_stuff": {"spacing": (1.0,) * 3, "origin": (0.0,) * 3, "direction": tuple(np.eye(3).ravel())}}
    for number, rng in enumerate(np.random.default_rng(seed).spawn(cases)):
        image, labels = make_phantom(shape, rng)
        files.write_image(image, str(folder / "imagesTr" / f"phantom_{number:03d}_0000.nii.gz"), geometry)
        files.write_seg(labels, str(folder / "labelsTr" / f"phantom_{number:03d}.nii.gz"), geometry)
    dataset = {
        "name": folder.name,
        "channel_names": {"0": "MRI"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    write_atomically(folder / "dataset.json", json.dumps(dataset, indent=2))

"""Folders of usual and better scans of the same phantoms, for `rehrseg pair`."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from rehrseg_nnunet.cases.phantom import LABELS, make_phantom

SOURCES, PRIVILEGED = ("T1", "T2"), "T1_7T"
SHAPE = (16, 24, 24)  # z, y, x
SPACING = (1.0, 1.0, 3.0)  # x, y, z
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)  # oblique


def write_pair_folders(base: Path, *, cases: int = 6, shape=SHAPE, spacing=SPACING) -> None:
    """`base/T1` and `base/T2` hold blurred and noisy images of what `base/T1_7T` shows."""
    for number, rng in enumerate(np.random.default_rng(0).spawn(cases)):
        better, _ = make_phantom(shape, rng)
        for name, values in (usual_scans(better, rng) | {PRIVILEGED: better}).items():
            write_scan(base / name / f"case_{number:02d}.nii.gz", values, spacing)


def usual_scans(better: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """By channel."""
    noise = rng.normal(0, 10, size=(2, *better.shape))
    images = (0.6 * gaussian_filter(better, 1.0) + noise[0], 300 - gaussian_filter(better, 1.2) + noise[1])
    return dict(zip(SOURCES, images, strict=True))


def write_scan(file: Path, values: np.ndarray, spacing) -> None:
    """One image, obliquely placed."""
    image = sitk.GetImageFromArray(values.astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin((-80.0, 55.0, 120.0))
    image.SetDirection(DIRECTION)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file))


def write_usual_dataset(folder: Path, *, cases: int = 5, shape=SHAPE, spacing=SPACING) -> None:
    """A raw dataset of the usual scans alone, of other subjects, with labels."""
    for number, rng in enumerate(np.random.default_rng(7).spawn(cases)):
        better, labels = make_phantom(shape, rng)
        for channel, values in enumerate(usual_scans(better, rng).values()):
            write_scan(folder / "imagesTr" / f"patient_{number:02d}_{channel:04d}.nii.gz", values, spacing)
        write_scan(folder / "labelsTr" / f"patient_{number:02d}.nii.gz", labels, spacing)
    dataset = {
        "channel_names": {str(number): name for number, name in enumerate(SOURCES)},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(dataset))

"""One logit offset a class, chosen so that thin-slice volumes are what the thick-slice labels say (Cavalieri).

As `rehrseg_nnunet.restoration.label_volumes` does for pseudo labels, for what a trained network predicts. The offsets
are chosen on validation cases, over all of them together, and then applied to any.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.datasets import FILES, read_folder, read_probabilities, whole
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.restoration.label_volumes import offsets_for

SMALLEST = 1e-7  # probability whose logarithm stands for 0


def choose_offsets(probabilities: Sequence[np.ndarray], voxels: Sequence[int]) -> np.ndarray:
    """Offsets of the log-probabilities with which each class has the wanted number of voxels, see `offsets_for`.

    Args:
        probabilities: (K, ...) of each case, class 0 the background.
        voxels: wanted voxels of classes 1 to K - 1, over all cases.

    Returns:
        (K,) offsets, 0 for the background.
    """
    logits = np.concatenate([_logits(case).reshape(len(case), -1) for case in probabilities], axis=1)
    return offsets_for(torch.from_numpy(logits), voxels).numpy()


def decide(probabilities: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Labels (...) of probabilities (K, ...) with an offset on each class's logarithm."""
    return (_logits(probabilities) + offsets.reshape(-1, *[1] * (probabilities.ndim - 1))).argmax(axis=0)


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, SMALLEST).astype(np.float32))


def choose_on_folder(predictions: Path, thick_labels: Path, *, classes: int, factor: int, file: Path) -> np.ndarray:
    """Offsets for the cases of a folder, kept in a file.

    Args:
        predictions: thin-slice predictions with probabilities (npz).
        thick_labels: their thick-slice labels, and maybe others.
        classes: K.
        factor: r.
        file: JSON to write.

    Raises:
        FileNotFoundError: a prediction has no probabilities.
    """
    cases = [case.name.removesuffix(".nii.gz") for case, _, _ in read_folder(predictions, labels=True)]
    labels = [values for case, values, _ in read_folder(thick_labels, labels=True) if case.name[:-7] in cases]
    wanted = [factor * sum(int((values == label).sum()) for values in labels) for label in range(1, classes)]
    offsets = choose_offsets([read_probabilities(predictions / f"{case}.npz") for case in cases], wanted)
    write_atomically(file, json.dumps({"offsets": offsets.tolist(), "wanted_voxels": wanted}))
    return offsets


def decide_folder(predictions: Path, target: Path, offsets: np.ndarray) -> None:
    """Write the labels of every prediction of a folder with the offsets."""
    if target.is_dir():
        return
    with whole(target) as partial:
        for file, _, properties in read_folder(predictions, labels=True):
            labels = decide(read_probabilities(file.with_name(f"{file.name[:-7]}.npz")), offsets)
            FILES().write_seg(labels.astype(np.int16), str(partial / file.name), properties)


def has_probabilities(folders: Iterable[Path]) -> bool:
    """Whether every folder has probabilities: those of an earlier version may have none."""
    return all(any(folder.glob("*.npz")) for folder in folders)

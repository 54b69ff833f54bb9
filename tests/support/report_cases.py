"""Scans with predictions on thick and thin slices whose mistakes are known, and a trained fold made of them."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import SimpleITK as sitk

FACTOR, SHAPE = 4, (24, 20, 18)  # thin slices
DATASET = {
    "channel_names": {"0": "T1"},
    "labels": {"background": 0, "core": 1, "shell": 2},
    "file_ending": ".nii.gz",
    "numTraining": 7,
}
PLANS = {
    "dataset_name": "Dataset007_Shells",
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "configurations": {"3d_fullres": {"spacing": [4.0, 1.0, 1.0], "patch_size": [6, 20, 18], "architecture": {}}},
}
CASES = [f"case_{number}" for number in range(7)]
WORST, CUT, IN_PIECES = "case_3", "case_5", "case_6"


def truth(number):
    """A core with a shell around it, on thin slices."""
    grid = np.indices(SHAPE) - np.array([11.5, 9.5, 8.5 + number % 2])[:, None, None, None]
    radius = np.sqrt(((grid / np.array([1.6, 1, 1])[:, None, None, None]) ** 2).sum(axis=0))
    return np.where(radius < 3, 1, np.where(radius < 5.5, 2, 0)).astype(np.uint8)


def predicted(name, labels):
    """The truth with the mistakes of a case."""
    labels = labels.copy()
    if name == WORST:
        labels[:11] = 0  # the lower half is missed
    elif name == CUT:
        labels[-2:, 9, 9] = 2
    elif name == IN_PIECES:
        labels[2, 1, 1] = 1
    return labels


def write(file: Path, values, *, factor=1):
    """A file with the field of view of the thin slices."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.0, float(factor)))
    image.SetOrigin((-3.0, 5.0, 7.0 + (factor - 1) / 2))
    sitk.WriteImage(image, str(file))


def thick(labels):
    """The label at the centre of every thick slice."""
    return labels[FACTOR // 2 :: FACTOR]


def probabilities(labels):
    """(3, D, H, W) of a network that is surest in the middle of structures: 0.97, and 0.6 beside other labels."""
    sure = np.stack([labels == value for value in range(3)]).astype(np.float32)
    smooth = sum(np.roll(sure, step, axis=axis) for axis in (2, 3) for step in (-1, 1)) / 4
    mixed = 0.5 * sure + 0.5 * smooth
    return (mixed / mixed.sum(axis=0)).astype(np.float16)


def write_folders(base: Path) -> None:
    """Folders `scans`, `thin`, `thick` (with probabilities), `thin_reference`, `thick_reference`, `baseline`."""
    for number, name in enumerate(CASES):
        true = truth(number)
        found = predicted(name, true)
        scan = np.array([0.0, 100, 60])[true] + np.random.default_rng(number).normal(size=SHAPE)
        averaged = scan.reshape(-1, FACTOR, *SHAPE[1:]).mean(axis=1)
        write(base / "scans" / f"{name}_0000.nii.gz", averaged.astype(np.float32), factor=FACTOR)
        write(base / "thin" / f"{name}.nii.gz", found)
        write(base / "thick" / f"{name}.nii.gz", thick(true), factor=FACTOR)
        write(base / "thin_reference" / f"{name}.nii.gz", true)
        write(base / "thick_reference" / f"{name}.nii.gz", thick(true), factor=FACTOR)
        write(base / "baseline" / f"{name}.nii.gz", np.repeat(thick(true), FACTOR, axis=0))
        np.savez_compressed(base / "thick" / f"{name}.npz", probabilities=probabilities(thick(true)))
        np.savez_compressed(base / "thin" / f"{name}.npz", probabilities=probabilities(found))
    for name in ("thin", "thick"):
        (base / name / "dataset.json").write_text(json.dumps(DATASET))


# nnU-Net ends every line with a space, which `log_text` adds
LOG = """
This is the configuration used by this training:

{time0}: training starts from /data/results/fold_0/checkpoint_final.pth (weights 1a805471d328), initial rate 0.01
{time1}:
{time1}: Epoch 0
{time1}: Current learning rate: 0.01
{time2}: loss terms of the last step: lr -0.6952, hr -0.6993, affinity 1e-05
{time2}: train_loss -1.4495
{time2}: val_loss -0.7477
{time2}: Pseudo dice [np.float32(0.8243), np.float32(0.7977)]
{time2}: Epoch time: 186.5 s
{time3}: Epoch 1
{time3}: Current learning rate: 0.005
{time3}: loss terms of the last step: lr -0.75, hr -0.76, affinity 2e-05
{time3}: train_loss -1.5
{time3}: val_loss -0.70
{time3}: Pseudo dice [np.float32(0.9), nan]
{time3}: Epoch time: 100.0 s
{time3}: Training done.
{time3}: WARNING: case_1: its pseudo-HR labels in /data/fold_0/pseudo_hr, made thick again, have Dice 0.700
"""


def log_text(begin=datetime(2026, 1, 2, 3, 4, 5, 678)):
    """nnU-Net's log of two epochs."""
    times = {f"time{n}": (begin + timedelta(minutes=3 * n)).isoformat(sep=" ") for n in range(4)}
    return LOG.format(**times).replace("\n", " \n")


def write_fold(base: Path, folders: Path, *, trainer="REHRSegTrainer", fold=0, cases=CASES, thin=True) -> Path:
    """nnU-Net's folders below `base` with a trained fold of the cases; returns the fold's folder."""
    raw = base / "nnUNet_raw" / "Dataset007_Shells"
    for source, target in (("scans", "imagesTr"), ("thick_reference", "labelsTr"), ("thin_reference", "labelsTrHR")):
        shutil.copytree(folders / source, raw / target, dirs_exist_ok=True)
    (raw / "dataset.json").write_text(json.dumps(DATASET))
    model = base / "nnUNet_results" / raw.name / f"{trainer}__nnUNetPlans__3d_fullres"
    kinds = {"validation": "thick", "validation_hr": "thin"} if thin else {"validation": "thick"}
    for target, source in kinds.items():
        for name in cases:
            (model / f"fold_{fold}" / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(folders / source / f"{name}.nii.gz", model / f"fold_{fold}" / target)
    (model / "dataset.json").write_text(json.dumps(DATASET))
    (model / "plans.json").write_text(json.dumps(PLANS))
    (model / f"fold_{fold}" / "training_log_2026_1_2_03_04_05.txt").write_text(log_text())
    (model / f"fold_{fold}" / "checkpoint_final.pth").touch()
    return model / f"fold_{fold}"

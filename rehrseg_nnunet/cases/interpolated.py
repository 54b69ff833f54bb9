"""Interpolated cases: every preprocessed LR case brought to near-isotropic spacing, stored beside nnU-Net's own data.

They depend on the preprocessed data only, so all folds share them: `<preprocessed>/<data_identifier>_rehrseg_r<r>`.

Convention:
    Axis 0 is the slice axis; D slices become r*D over the same field of view. Images by cubic B-spline, labels by
    signed distances, for every value that occurs (nnU-Net's -1 and the ignore label too).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from tqdm import tqdm

from rehrseg_nnunet.cases.case_checks import check_cases
from rehrseg_nnunet.cases.case_dataset import PreprocessedCases
from rehrseg_nnunet.cases.case_files import class_locations, save_case
from rehrseg_nnunet.cases.source_files import derived_properties, is_current
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.safe_files import check_writable, exclusive
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import interpolate


def interpolated_folder(preprocessed_folder: str | Path, factor: int) -> Path:
    """Where the interpolated cases of a preprocessed configuration are."""
    folder = Path(preprocessed_folder)
    return folder.with_name(f"{folder.name}_rehrseg_r{factor}")


def write_interpolated_cases(
    dataset: PreprocessedCases, identifiers: Iterable[str], planned: PlannedDataset
) -> nnUNetDatasetBlosc2:
    """Check and interpolate the cases that are not there yet, with a progress bar.

    Args:
        dataset: nnU-Net's dataset of the preprocessed LR cases.
        identifiers: cases that are needed.
        planned: the dataset under its plans; its raw folder names files in messages.

    Returns:
        The interpolated cases. A case whose preprocessed file changed since is written anew. Processes that need cases
        of the same folder (other folds) wait for each other.

    Raises:
        ValueError: a case that cannot be trained on, see `check_cases`; nothing was interpolated then.
        OSError: the folder is not writable, or the disk full; complete cases stay.
    """
    source_folder = Path(dataset.source_folder)
    folder = interpolated_folder(source_folder, planned.factor)
    identifiers = list(identifiers)
    if _missing(folder, source_folder, identifiers):
        _write_missing(dataset, identifiers, planned, folder=folder)
    return nnUNetDatasetBlosc2(str(folder), identifiers)


def _missing(folder: Path, source_folder: Path, identifiers: Sequence[str]) -> list[str]:
    return [i for i in identifiers if not is_current(folder / f"{i}.pkl", source_folder, i)]


def _write_missing(
    dataset: PreprocessedCases, identifiers: Sequence[str], planned: PlannedDataset, *, folder: Path
) -> None:
    check_writable(folder.parent, purpose="interpolated cases are written there; change its permissions")
    with exclusive(folder.with_name(f"{folder.name}.lock"), folder=folder, wait=True) as alone:
        # another process may have written them meanwhile
        missing = _missing(folder, Path(dataset.source_folder), identifiers)
        check_cases(dataset, missing, label_manager=planned.label_manager, raw_folder=planned.raw_folder)
        folder.mkdir(exist_ok=True)
        # without a lock, DDP ranks interpolate at the same time
        scratch = folder.with_name(f"{folder.name}_tmp" if alone else f"{folder.name}_tmp_{os.getpid()}")
        for identifier in tqdm(missing, desc="interpolating cases", disable=not missing):
            data, labels, properties = _interpolate(dataset, identifier, planned)
            patch_size = planned.hr_patch_size
            save_case(folder, identifier, data, labels, properties, patch_size=patch_size, scratch=scratch)


def _interpolate(
    dataset: PreprocessedCases, identifier: str, planned: PlannedDataset
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Image (C, r*D, H, W), labels (1, r*D, H, W) and properties of one interpolated case."""
    image, labels, _, properties = dataset.load_case(identifier)
    image, labels = np.asarray(image[:], dtype=np.float32), np.asarray(labels[:])
    fine = interpolate_labels(labels[0], planned.factor, 0, spacing_mm=planned.spacing_mm)[None]
    derived = derived_properties(dataset.source_folder, identifier, image, properties)
    data = interpolate(torch.from_numpy(image), planned.factor, 1, order=3).numpy()
    return data, fine, {**derived, "class_locations": class_locations(fine, planned.label_manager)}

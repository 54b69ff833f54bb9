"""Preprocessed cases that nothing can be trained on are named before training, all at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from rehrseg_nnunet.cases.case_dataset import PreprocessedCases

REMEDY = (
    "mend the files, find others with nnUNetv2_plan_and_preprocess --verify_dataset_integrity, and preprocess again"
)
MOST_NAMED = 5


def check_cases(
    dataset: PreprocessedCases,
    identifiers: Iterable[str],
    *,
    label_manager: LabelManager,
    raw_folder: Path | None = None,
) -> None:
    """Refuse images with values that are not finite and labels that dataset.json does not have.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        identifiers: cases to look at.
        label_manager: nnU-Net's, of dataset.json.
        raw_folder: nnU-Net's raw dataset, to name the files that the cases came from; None names preprocessed files.

    Raises:
        ValueError: names the bad cases (the first ones, and how many more), what is wrong, their files and the remedy.
    """
    known = {-1, *label_manager.all_labels, *([label_manager.ignore_label] if label_manager.has_ignore_label else [])}
    found = {identifier: _problem(dataset, identifier, known) for identifier in identifiers}
    problems = {identifier: problem for identifier, problem in found.items() if problem}
    if not problems:
        return
    named = [f"{i} {problems[i]} ({_files(dataset, i, raw_folder)})" for i in list(problems)[:MOST_NAMED]]
    more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    raise ValueError(f"cases must have finite images and known labels: {'; '.join(named)}{more}; {REMEDY}")


def _problem(dataset: PreprocessedCases, identifier: str, known: set[int]) -> str | None:
    image, labels, _, _ = dataset.load_case(identifier)
    if not np.isfinite(image[:]).all():
        return "has nan or inf in its image"
    unknown = sorted(set(np.unique(labels[:]).tolist()) - known)
    if unknown:
        return f"has label {', '.join(f'{label:g}' for label in unknown)}, which dataset.json does not have"
    return None


def _files(dataset: PreprocessedCases, identifier: str, raw_folder: Path | None) -> str:
    """The raw files of a case, or its preprocessed ones if the raw dataset or its files are not at hand."""
    if raw_folder is not None and (raw_folder / "dataset.json").is_file():
        raw_files = get_filenames_of_train_images_and_targets(
            str(raw_folder), load_json(str(raw_folder / "dataset.json"))
        )
        if identifier in raw_files:
            return ", ".join([*raw_files[identifier]["images"], raw_files[identifier]["label"]])
    return str(Path(dataset.source_folder, identifier))

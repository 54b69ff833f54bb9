"""Cases that a keeper was trained on, beside those of a training that it guides."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nibabel.orientations import aff2axcodes

from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE, teacher_of
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE, KeeperRun
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.slices.grids import LPS_RAS, grid_from_properties

FOLDS = "splits_final.json"
SHOWN = 60  # characters of what a file has instead
NOT_CHECKED = "whether the keeper was trained on validation cases is not known: {}"
FILE_ENDING = re.compile(r"(\.nii)?\.[^.]+$")
OTHERS = "if they are other subjects of the same name, set guidance.keeper.other_subjects"


def check_leak(keeper: KeeperRun, validation: Sequence[str]) -> list[str]:
    """Refuse validation cases that the keeper was trained on.

    Args:
        keeper: that is to guide a training.
        validation: names of the training's validation cases.

    Returns:
        What could not be checked, a sentence or none.

    Raises:
        ValueError: names cases, and a fold of the keeper that fits.
    """
    splits = _splits(preprocessed_folder(keeper.run))
    if splits is None:
        return [NOT_CHECKED.format(f"splits_final.json of {keeper.run.dataset} is not there")]
    both = _seen_of(validation, keeper.run, splits)
    if not both:
        return []
    fitting = [number for number, split in enumerate(splits) if not set(validation) & set(split["train"])]
    raise ValueError(
        f"validation cases must be new to the keeper, but it was trained on {_first_of(both)} ({keeper.run.folder}); "
        f"{_remedy(keeper, fitting)}"
    )


def check_teachers_leak(keeper: KeeperRun, teacher_sha256: str, validation: Sequence[str]) -> list[str]:
    """Refuse validation cases that the keeper's teacher was trained on, which may be of another fold than the keeper.

    Args:
        keeper: that is to guide a training.
        teacher_sha256: hash of the teacher that taught it.
        validation: names of the training's validation cases.

    Returns:
        What could not be checked, a sentence or none.

    Raises:
        ValueError: names cases, and the trainings to repeat.
    """
    teacher = teacher_of(keeper.run, teacher_sha256)
    if teacher is None:
        return [NOT_CHECKED.format(f"its teacher is no longer in {keeper.run.results}")]
    if (teacher.dataset, teacher.fold) == (keeper.run.dataset, keeper.run.fold):
        return []  # the keeper's own cases
    splits = _splits(preprocessed_folder(teacher))
    if splits is None:
        return [NOT_CHECKED.format(f"splits_final.json of {teacher.dataset} is not there")]
    both = _seen_of(validation, teacher, splits)
    if not both:
        return []
    raise ValueError(
        f"validation cases must be new to the keeper's teacher, but it was trained on {_first_of(both)} "
        f"({teacher.folder}); train the keeper by the teacher of its own fold, without {TEACHER_VARIABLE}: "
        f"{keeper.run.command}; {OTHERS}"
    )


def _seen_of(validation: Sequence[str], run: FoldRun, splits: Sequence[Mapping[str, list[str]]]) -> list[str]:
    """Validation cases that another training may have drawn, by the folds of its dataset."""
    if run.fold != "all" and run.fold < len(splits):
        seen = splits[run.fold]["train"]
    else:  # any case may have been drawn, those too that the folds leave out
        seen = [*(case for part in splits[0].values() for case in part), *_all_cases(preprocessed_folder(run))]
    return sorted(set(validation) & set(seen))


def _first_of(cases: Sequence[str]) -> str:
    return f"{cases[0]}{f' and {len(cases) - 1} more' if len(cases) > 1 else ''}"


def _remedy(keeper: KeeperRun, fitting: Sequence[int]) -> str:
    runs = [replace(keeper.run, fold=fold) for fold in fitting]
    finished = next((run for run in runs if run.is_finished), None)
    if finished is not None:
        return f"choose {KEEPER_VARIABLE}={finished.folder}; {OTHERS}"
    if runs:
        return f"run: {runs[0].command}, and choose {KEEPER_VARIABLE}={runs[0].folder}; {OTHERS}"
    return f"give both datasets one splits_final.json; {OTHERS}"


def _splits(folder: Path | None) -> list[dict[str, list[str]]] | None:
    """nnU-Net's folds of a dataset, None if they are not at hand; one of all cases where there are no folds."""
    if folder is None:
        return None
    file = folder / FOLDS
    if file.is_file():
        return _read_splits(file)
    cases = _all_cases(folder)
    return [{"train": cases, "val": []}] if cases else None


def _read_splits(file: Path) -> list[dict[str, list[str]]]:
    """nnU-Net's folds.

    Raises:
        ValueError: names the file.
    """
    remedy = "put back the folds that the keeper was trained with"
    try:
        splits = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} must be JSON, got a mistake: {error}; {remedy}") from None
    folds = splits if isinstance(splits, list) else []
    if not folds or not all(isinstance(fold, dict) and "train" in fold for fold in folds):
        raise ValueError(
            f"{file} must list nnU-Net's folds, each with train and val, got {json.dumps(splits)[:SHOWN]}; {remedy}"
        )
    return splits


def _all_cases(folder: Path | None) -> list[str]:
    """Of a preprocessed dataset; none if they are not at hand."""
    files = [] if folder is None else sorted((folder / "gt_segmentations").glob("*.*"))
    return [FILE_ENDING.sub("", file.name) for file in files]


def preprocessed_folder(run: FoldRun) -> Path | None:
    """Of a training's dataset, None if it is not at hand."""
    base = os.environ.get("nnUNet_preprocessed")
    folder = Path(base, run.dataset) if base else None
    return folder if folder is not None and folder.is_dir() else None


def orientation_doubts(own: Path, keeper: KeeperRun) -> list[str]:
    """A sentence if the voxel axes of both datasets lead to other sides of the body; nnU-Net does not turn them.

    Or if that cannot be read.

    Args:
        own: folder of the preprocessed cases of the dataset to be segmented.
        keeper: that is to guide it.
    """
    folder = preprocessed_folder(keeper.run)
    pairs = None if folder is None else folder / keeper.planned.configuration_manager.data_identifier
    try:
        theirs = None if pairs is None else _axis_codes(pairs)
        ours = _axis_codes(own)
    except ValueError as error:  # a doubt is not worth a training
        return [str(error)]
    if ours is None or theirs is None or ours == theirs:
        return []
    return [
        f"axes of the scans lead to {ours}, those of the keeper's to {theirs}: it has not learnt such scans; "
        "bring both datasets to one orientation"
    ]


def _axis_codes(folder: Path) -> str | None:
    """Where z, y and x of the first preprocessed case lead, such as SAR; None if it is not known.

    Raises:
        ValueError: the case's file is damaged.
    """
    file = next(iter(sorted(folder.glob("*.pkl"))), None)
    if file is None:
        return None
    try:
        properties = pickle.loads(file.read_bytes())
        if not {"sitk_stuff", "nibabel_stuff"} & set(properties):
            return None  # a format that does not say
        return "".join(aff2axcodes(LPS_RAS @ grid_from_properties(properties, (1, 1, 1)).affine))
    except Exception as error:  # pickle raises what the damaged bytes make it raise
        raise ValueError(
            f"orientation of the scans is not compared with that of the keeper's: {file} is damaged "
            f"({type(error).__name__}); preprocess its dataset again"
        ) from None

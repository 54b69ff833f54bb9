"""Cases that a keeper was trained on, beside those of a training that it guides."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nibabel.orientations import aff2axcodes

from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE, KeeperRun
from rehrseg_nnunet.slices.grids import LPS_RAS, grid_from_properties

NOT_CHECKED = "whether the keeper was trained on validation cases is not known: {} is not there"


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
    folder = preprocessed_folder(keeper)
    splits = _splits(folder)
    if folder is None or splits is None:
        return [NOT_CHECKED.format(f"splits_final.json of {keeper.run.dataset}")]
    fold = keeper.run.fold
    if fold != "all" and fold < len(splits):
        seen = splits[fold]["train"]
    else:  # any case may have been drawn
        seen = [case for part in splits[0].values() for case in part]
    both = sorted(set(validation) & set(seen))
    if not both:
        return []
    fitting = [number for number, split in enumerate(splits) if not set(validation) & set(split["train"])]
    raise ValueError(
        f"validation cases must be new to the keeper, but it was trained on {both[0]}"
        f"{f' and {len(both) - 1} more' if len(both) > 1 else ''} ({keeper.run.folder}); {_remedy(keeper, fitting)}"
    )


def _remedy(keeper: KeeperRun, fitting: Sequence[int]) -> str:
    runs = [replace(keeper.run, fold=fold) for fold in fitting]
    finished = next((run for run in runs if run.is_finished), None)
    other = "if they are other subjects of the same name, set guidance.keeper.other_subjects"
    if finished is not None:
        return f"choose {KEEPER_VARIABLE}={finished.folder}; {other}"
    if runs:
        return f"run: {runs[0].command}, and choose {KEEPER_VARIABLE}={runs[0].folder}; {other}"
    return f"give both datasets one splits_final.json; {other}"


def _splits(folder: Path | None) -> list[dict[str, list[str]]] | None:
    """nnU-Net's folds of a dataset, None if they are not at hand; one of all cases where there are no folds."""
    if folder is None:
        return None
    file, truth = folder / "splits_final.json", folder / "gt_segmentations"
    if file.is_file():
        return json.loads(file.read_text())
    if truth.is_dir():
        return [{"train": sorted(path.name.split(".")[0] for path in truth.iterdir()), "val": []}]
    return None


def preprocessed_folder(keeper: KeeperRun) -> Path | None:
    """Of the dataset of pairs, None if it is not at hand."""
    base = os.environ.get("nnUNet_preprocessed")
    folder = Path(base, keeper.run.dataset) if base else None
    return folder if folder is not None and folder.is_dir() else None


def orientation_doubts(own: Path, keeper: KeeperRun) -> list[str]:
    """A sentence if the voxel axes of both datasets lead to other sides of the body; nnU-Net does not turn them.

    Args:
        own: folder of the preprocessed cases of the dataset to be segmented.
        keeper: that is to guide it.
    """
    folder = preprocessed_folder(keeper)
    theirs = None if folder is None else _axis_codes(folder / keeper.planned.configuration_manager.data_identifier)
    ours = _axis_codes(own)
    if ours is None or theirs is None or ours == theirs:
        return []
    return [
        f"axes of the scans lead to {ours}, those of the keeper's to {theirs}: it has not learnt such scans; "
        "bring both datasets to one orientation"
    ]


def _axis_codes(folder: Path) -> str | None:
    """Where z, y and x of the first preprocessed case lead, such as SAR; None if it is not known."""
    file = next(iter(sorted(folder.glob("*.pkl"))), None)
    if file is None:
        return None
    properties = pickle.loads(file.read_bytes())
    if not {"sitk_stuff", "nibabel_stuff"} & set(properties):
        return None  # a format that does not say
    return "".join(aff2axcodes(LPS_RAS @ grid_from_properties(properties, (1, 1, 1)).affine))

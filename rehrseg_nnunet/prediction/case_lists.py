"""What is predicted, checked before any work: cases that are not finished, with all the files that belong to each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import TypeAlias

from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.prediction.export import stems
from rehrseg_nnunet.prediction.inputs import Images
from rehrseg_nnunet.prediction.output_grid import OutputGrid

CaseLists: TypeAlias = tuple[list, list | None, list]  # nnU-Net's: images, outputs, segmentations of a previous stage


def case_endings(ending: str, *, save_probabilities: bool) -> list[str]:
    """Endings of what is written for a case on every grid.

    Args:
        ending: of segmentations.
        save_probabilities: they are written too.
    """
    return [ending, *([".npz"] if save_probabilities else [])]


def is_finished(output: str, grids: Sequence[OutputGrid], endings: Sequence[str]) -> bool:
    """Whether a case has its files on all grids.

    Args:
        output: of the case, without ending.
        grids: on which files are written.
        endings: of the files of a case.
    """
    return all(Path(stem + ending).is_file() for stem in stems(output, grids) for ending in endings)


def unfinished(lists: CaseLists, grids: Sequence[OutputGrid], endings: Sequence[str]) -> CaseLists:
    """The cases that lack a file on one of the grids.

    Args:
        lists: of all cases.
        grids: on which files are written.
        endings: of the files of a case.
    """
    outputs = lists[1]
    if outputs is None:
        return lists
    keep = [not is_finished(output, grids, endings) for output in outputs]
    inputs, previous = (list(compress(values, keep)) for values in (lists[0], lists[2]))
    return inputs, list(compress(outputs, keep)), previous


def check_previous_stage(stage: str | None, folder: str | None) -> None:
    """Refuse a cascade without the segmentations of its previous stage, and these for another model.

    Args:
        stage: configuration of the model's previous stage, None where there is none.
        folder: where its segmentations are.

    Raises:
        ValueError: one without the other.
    """
    if stage is None and folder is not None:
        raise ValueError("-prev_stage_predictions is for cascades, the model has no previous stage; leave it out")
    if stage is not None and folder is None:
        raise ValueError(
            f"the model is a cascade: it needs the segmentations of its previous stage, {stage}; predict the same "
            f"images with -c {stage} --grid native and give that folder as -prev_stage_predictions"
        )


def previous_segmentation(stem: Path, images: Images) -> Path:
    """The segmentation of a cascade's previous stage, whose ending may be another one than that of the results.

    Args:
        stem: folder and name of the case.
        images: what the model reads and writes.
    """
    files = [stem.with_name(stem.name + ending) for ending in (images.ending, *images.endings)]
    return next((file for file in files if file.is_file()), files[0])


def check_companions(names: Sequence[str], previous: Sequence[str | None], grids: Sequence[OutputGrid]) -> None:
    """Refuse cases without a file to take the grid from or, in a cascade, without the previous stage's segmentation.

    Args:
        names: of the cases.
        previous: their segmentations of the previous stage, None without one.
        grids: on which files are written.

    Raises:
        FileNotFoundError: names what is missing.
    """
    for grid in grids:
        missing = grid.missing(names)
        if missing:
            raise FileNotFoundError(
                f"the folder of --grid must have a file for every case, such as {missing[0]}.nii.gz, got none for "
                f"{listed(missing)}; add them, or give one file as grid"
            )
    missing = [file for file in previous if file is not None and not Path(file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"-prev_stage_predictions must have a segmentation for every case, but there is no {missing[0]} "
            f"({len(missing)} of {len(names)} are missing); predict them with the previous stage's configuration"
        )

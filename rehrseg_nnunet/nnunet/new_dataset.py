"""A new dataset in nnUNet_raw: it gets its name when it is complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.folders import nnunet_folder
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError

WITHOUT_GEOMETRY = {*NaturalImage2DIO.supported_file_endings, *Tiff3DIO.supported_file_endings}
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


def check_free_number(number: int) -> None:
    """Refuse a dataset number that nnU-Net does not take, or knows already.

    nnU-Net refuses to work with a number that has several names in any of its folders.

    Raises:
        ValueError: not between 1 and 999.
        FileExistsError: the number is taken.
    """
    if not 1 <= number <= 999:
        raise ValueError(f"-o must be a number between 1 and 999, got {number}")
    for variable in FOLDERS:
        folder = os.environ.get(variable)
        taken = sorted(path.name for path in Path(folder).glob(f"Dataset{number:03d}_*")) if folder else []
        if taken:
            raise FileExistsError(f"-o must be a free number, but {variable} already has {taken[0]}")


def check_name(name: str, *, option: str) -> None:
    """Refuse a dataset name that is no plain word.

    Raises:
        ValueError: as above.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ValueError(f"{option} must be letters, digits, '_', '-' and '.', got {name!r}")


def check_keeps_geometry(ending: str, *, source: str) -> None:
    """Refuse files that do not keep their spacing.

    Args:
        ending: of their names.
        source: where they are, for the message.

    Raises:
        ValueError: as above.
    """
    if ending in WITHOUT_GEOMETRY:
        raise ValueError(
            f"{source} must have files that keep their spacing, got {ending}; convert it to .nii.gz, .nrrd or .mha"
        )


def read_raw_dataset_json(folder: Path) -> dict[str, Any]:
    """The dataset.json of a raw dataset from which another one can be made.

    Args:
        folder: of the dataset in nnUNet_raw.

    Raises:
        NotImplementedError: its files lie elsewhere.
        ValueError: its files do not keep their spacing, or the errors of `read_dataset_json`.
    """
    dataset = read_dataset_json(folder / "dataset.json")
    if "dataset" in dataset:
        raise NotImplementedError(f"{folder.name} lists its files in dataset.json; they must lie in imagesTr, labelsTr")
    check_keeps_geometry(dataset["file_ending"], source=str(folder))
    return dataset


@contextmanager
def new_raw_dataset(number: int, name: str) -> Iterator[tuple[Path, Path]]:
    """Make `Dataset<number>_<name>` in nnUNet_raw; nothing is left of it if it does not become complete.

    Yields:
        A hidden folder to write to, and the folder that it becomes.

    Raises:
        UnwrittenFileError: a file could not be written; named, with the remedy.
    """
    raw = nnunet_folder("nnUNet_raw")
    target = raw / f"Dataset{number:03d}_{name}"
    partial = raw / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial, target
        os.replace(partial, target)
    except UnwrittenFileError as error:
        raise UnwrittenFileError(f"{error}; if the disk is full, free space there and run the command again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

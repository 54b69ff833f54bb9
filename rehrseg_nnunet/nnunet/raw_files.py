"""Image files of a folder, by nnU-Net's naming: nothing is left out without a word, nothing is taken for a case."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

logger = logging.getLogger(__name__)

MACOS_PREFIX = "._"  # macOS keeps a file's attributes beside it under this name on other systems' disks
SLICER_ENDING = ".seg.nrrd"  # a copy of a segmentation for 3D Slicer, written beside it
MOST_NAMED = 5
IMAGE_ENDINGS = tuple(sorted({ending for reader in LIST_OF_IO_CLASSES for ending in reader.supported_file_endings}))


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def image_ending(name: str, endings: Sequence[str] = IMAGE_ENDINGS) -> str | None:
    """The longest of some endings that a file's name has, None for none.

    Example:
        >>> image_ending("scan.nii.gz", (".gz", ".nii.gz", ".nrrd"))
        '.nii.gz'
    """
    found = [ending for ending in endings if name.lower().endswith(ending) and len(name) > len(ending)]
    return max(found, key=len, default=None)


def with_ending(file: Path, ending: str) -> Path:
    """A file's name with its ending as nnU-Net writes it, in small letters.

    Example:
        >>> with_ending(Path("out/Knee.NII.GZ"), ".nii.gz").name
        'Knee.nii.gz'
    """
    return file.with_name(file.name[: len(file.name) - len(ending)] + ending)


def image_files(folder: Path, ending: str) -> list[Path]:
    """Files of a folder with an ending, by name.

    Left out is what macOS puts beside them (`._a.nii.gz`), and 3D Slicer's copies (`a.seg.nrrd`) among `.nrrd` files.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    files = (file for file in folder.iterdir() if file.name.endswith(ending))
    return sorted(
        file for file in files if not (file.name.startswith(MACOS_PREFIX) or file.name.endswith(SLICER_ENDING))
    )


def other_images(folder: Path, ending: str) -> list[str]:
    """Names of images with another ending."""
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    return [
        name for name in names if name.lower().endswith(IMAGE_ENDINGS) and not name.endswith((ending, SLICER_ENDING))
    ]


def say_left_out(folder: Path, ending: str) -> None:
    """Warn of files in a folder that look like images and are not taken."""
    macos = sorted(file.name for file in folder.iterdir() if file.name.startswith(MACOS_PREFIX))
    if macos:
        logger.warning("%s: %s of macOS are no images and are passed over", folder, listed(macos))
    others = other_images(folder, ending)
    if others:
        logger.warning("%s: %s are left out, files must end in %s", folder, listed(others), ending)


def require_images(folder: Path, ending: str) -> list[Path]:
    """The files of `image_files`, at least one.

    Raises:
        FileNotFoundError: the folder does not exist, or has no such file; images with other endings are named.
    """
    files = image_files(folder, ending)
    if not files:
        others = other_images(folder, ending)
        but = f", but {listed(others)}; rename or convert them, or mend file_ending in dataset.json" if others else ""
        raise FileNotFoundError(f"{folder} must hold files that end in {ending}, got none{but}")
    return files


def group_channels(folder: Path, ending: str) -> tuple[dict[str, list[str]], list[str]]:
    """Image files of each case, in order of their channels, and the names of files without channel.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    pattern = re.compile(rf"(.+)_(\d{{4}}){re.escape(ending)}")
    cases: dict[str, list[str]] = {}
    unnamed = []
    for file in image_files(folder, ending):
        match = pattern.fullmatch(file.name)
        if match is None:
            unnamed.append(file.name)
        else:
            cases.setdefault(match[1], []).append(str(file))
    return dict(sorted(cases.items())), unnamed


def has_all_channels(files: Sequence[str], ending: str, *, channels: int) -> bool:
    """Whether the files of a case are exactly those of channels 0 to C - 1."""
    return [file.removesuffix(ending)[-5:] for file in files] == [f"_{channel:04d}" for channel in range(channels)]


def list_cases(folder: Path, ending: str, *, channels: int) -> dict[str, list[str]]:
    """Image files of each case, in order of their channels.

    nnU-Net takes whatever channels it finds: without `_0000` the second channel counts as the first.

    Args:
        folder: of images named `CASE_0000<ending>`.
        ending: of their names.
        channels: number of channels C of the dataset.

    Returns:
        Files of channels 0 to C - 1 by case, in order of the cases' names.

    Raises:
        FileNotFoundError: the folder does not exist or has no files with this ending.
        ValueError: files without channel, or cases that do not have exactly the channels 0 to C - 1.
    """
    require_images(folder, ending)
    cases, unnamed = group_channels(folder, ending)
    if unnamed:
        raise ValueError(
            f"{folder} must hold images named CASE_0000{ending}, the channel last, got {listed(unnamed)}; rename them"
        )
    wrong = {case: files for case, files in cases.items() if not has_all_channels(files, ending, channels=channels)}
    if wrong:
        raise ValueError(wrong_channels(folder, wrong, [f"_{channel:04d}{ending}" for channel in range(channels)]))
    return cases


def wrong_channels(folder: Path, cases: dict[str, list[str]], expected: Sequence[str]) -> str:
    """What is wrong with cases that lack a channel or have one too many.

    Args:
        folder: theirs.
        cases: their files.
        expected: how the names of a case's files must end.
    """
    case, found = next(iter(cases.items()))
    more = f" (and {len(cases) - 1} more cases)" if len(cases) > 1 else ""
    wanted = ", ".join(case + ending for ending in expected)
    return (
        f"{folder} must have one file for each of the {len(expected)} channels of a case, {wanted}, got "
        f"{', '.join(Path(file).name for file in found)}{more}; a 4D file must be split into one file for each channel"
    )

"""Which prediction belongs to which reference file, and which folders are the folds of one method."""

from __future__ import annotations

import glob
import itertools
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rehrseg_nnunet.nnunet.raw_files import image_files, listed, require_images

logger = logging.getLogger(__name__)

_CHANNEL_SUFFIX = re.compile(r"_(\d{4})$")


class Pair(NamedTuple):
    """A reference file, its prediction, the case they belong to and the image channel (0 for segmentations)."""

    case: str
    channel: int
    reference: Path
    prediction: Path


def expand_folders(entry: str) -> list[Path]:
    """Folders that one ``-pred`` entry names: a folder, a glob pattern, or several of these joined by commas.

    Raises:
        FileNotFoundError: a part names no folder.
        ValueError: a folder is named twice.
    """
    folders: list[Path] = []
    for part in [entry] if os.path.isdir(entry) else entry.split(","):
        found = [part] if os.path.isdir(part) else sorted(path for path in glob.glob(part) if os.path.isdir(path))
        if not found:
            raise FileNotFoundError(f"no folder is called {part}")
        folders.extend(Path(path) for path in found)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"the folds of a method must be different folders, got {entry}")
    return folders


def short_names(folders: Sequence[Path]) -> list[str]:
    """The part of each path that tells it from the others; the last part for a single folder.

    ``A/fold_0/validation`` and ``B/fold_0/validation`` become ``A`` and ``B``.

    Example:
        >>> short_names([Path("A/fold_0/validation"), Path("B/fold_0/validation")])
        ['A', 'B']
    """
    parts = [folder.parts for folder in folders]
    if len(set(parts)) == 1:
        return [folder.resolve().name for folder in folders]
    head = _common_length(parts)
    tail = _common_length([part[:head:-1] for part in parts])
    return ["/".join(part[head : max(len(part) - tail, head + 1)]) or str(Path(*part)) for part in parts]


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder that holds all folds of a method, or the first fold if there is no such folder."""
    parts = [folder.parts for folder in folders]
    common = Path(*parts[0][: _common_length(parts)])
    return common if common.name else folders[0]


def _common_length(parts: Sequence[Sequence[str]]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))


def pair_files(
    reference_folder: Path,
    folds: Mapping[str, Path],
    *,
    file_ending: str,
    num_channels: int | None = None,
    chill: bool = False,
) -> dict[str, list[Pair]]:
    """Pair the files of a method's folders with the reference files by name.

    Segmentations pair by equal names. Images also pair with and without nnU-Net's suffix ``_0000``; further channels
    (``_0001``, ...) pair by equal names. A method must predict every reference file in at least one fold.

    Args:
        reference_folder: folder with the reference files.
        folds: the method's folders by fold name.
        file_ending: ending of all files, e.g. ``.nii.gz``.
        num_channels: number of image channels in the dataset; None for segmentations.
        chill: skip files without a partner instead of refusing them.

    Returns:
        Pairs of each fold, sorted by file name.

    Raises:
        FileNotFoundError: a folder does not exist, files have no partner, or nothing pairs at all.
        ValueError: two files of a folder are predictions for the same reference.
    """
    require_images(reference_folder, file_ending)
    references = _files_by_stem(reference_folder, file_ending)
    pairs = {fold: _pair_folder(references, folder, file_ending, num_channels, chill) for fold, folder in folds.items()}
    paired = {pair.reference for fold in pairs.values() for pair in fold}
    where = ", ".join(str(folder) for folder in folds.values())
    missing = [path.name for path in references.values() if path not in paired]
    if not paired:
        raise FileNotFoundError(f"no file in {where} has the name of a file in {reference_folder}")
    if missing and not chill:
        raise FileNotFoundError(
            f"{listed(missing)} of {reference_folder} must be in {where} too; --chill leaves out what is missing"
        )
    if missing:
        logger.warning("%d of %d reference files have no prediction in %s", len(missing), len(references), where)
    return pairs


def _pair_folder(
    references: Mapping[str, Path], folder: Path, file_ending: str, num_channels: int | None, chill: bool
) -> list[Pair]:
    pairs: dict[str, Pair] = {}
    unknown = []
    for stem, path in _files_by_stem(folder, file_ending).items():
        candidates = [stem] if num_channels is None else [stem, f"{stem}_0000", stem.removesuffix("_0000")]
        match = next((candidate for candidate in candidates if candidate in references), None)
        if match is None:
            unknown.append(path.name)
            continue
        if match in pairs:
            raise ValueError(
                f"{folder} must have one file for {references[match].name}, got {pairs[match].prediction.name} and "
                f"{path.name}"
            )
        case, channel = (match, 0) if num_channels is None else _split_channel(match, num_channels)
        pairs[match] = Pair(case, channel, references[match], path)
    if unknown and not chill:
        raise FileNotFoundError(f"{listed(unknown)} of {folder} must have a reference; --chill leaves them out")
    if unknown:
        logger.warning("%d files of %s have no reference", len(unknown), folder)
    return list(pairs.values())


def _split_channel(stem: str, num_channels: int) -> tuple[str, int]:
    suffix = _CHANNEL_SUFFIX.search(stem)
    # A case may itself end in four digits: only what can be a channel of the dataset is one.
    if suffix is None or int(suffix[1]) >= num_channels:
        return stem, 0
    return stem[: suffix.start()], int(suffix[1])


def _files_by_stem(folder: Path, file_ending: str) -> dict[str, Path]:
    return {file.name.removesuffix(file_ending): file for file in image_files(folder, file_ending)}

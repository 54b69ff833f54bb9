"""A raw dataset of pairs, made of folders of images: each case is read, checked and written once."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.guided.foreground import FOREGROUND, foreground
from rehrseg_nnunet.guided.pair_checks import TOO_MUCH_ADDED, added_share, edge_correlation, registration_doubts
from rehrseg_nnunet.guided.pair_files import CaseFolder
from rehrseg_nnunet.guided.paired_channels import KEY
from rehrseg_nnunet.nnunet.each_case import for_each_case
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.slices.grids import check_same_points, grid_from_properties

logger = logging.getLogger(__name__)

FEWEST_CASES = 5  # nnU-Net's five folds


@dataclass(frozen=True)
class PairFolders:
    """Where the files of pairs are.

    Attributes:
        source: folders of the usual scan's channels.
        privileged: folders of the better scan's.
        labels: folder of label maps, None for none.
        cases: names that have a file in each of them.
    """

    source: Sequence[CaseFolder]
    privileged: Sequence[CaseFolder]
    labels: CaseFolder | None
    cases: Sequence[str]

    @property
    def channels(self) -> tuple[CaseFolder, ...]:
        """All image folders, the source's first."""
        return *self.source, *self.privileged

    @property
    def ending(self) -> str:
        """File ending of the dataset: the first source folder's."""
        return self.source[0].ending

    @cached_property
    def readers(self) -> dict[Path, WholeFiles]:
        """A reader for the files of each folder."""
        return {folder.folder: folder.reader() for folder in (*self.channels, *filter(None, [self.labels]))}

    def first_file(self, case: str) -> Path:
        """The file whose grid a case has."""
        return self.source[0].files[case]


@dataclass(frozen=True)
class CheckedCase:
    """What was noticed in a case.

    Attributes:
        constant: files whose voxels all have one value.
        correlation: of the edges of the two scans.
        added_share: of voxels that are not 0 in the better scan alone.
        labelled: whether a voxel has a label.
    """

    constant: list[Path]
    correlation: float
    added_share: float
    labelled: bool


def write_pairs(folders: PairFolders, target: Path, *, name: str, processes: int) -> None:
    """Write the dataset and warn of what looks wrong.

    Args:
        folders: what to write.
        target: folder of the dataset, which exists.
        name: of the dataset.
        processes: cases at a time.

    Raises:
        ValueError: files that cannot be used, channels on other grids, or no labels at all.
        UnwrittenFileError: the disk did not take a file.
    """
    numbers = _label_numbers(folders, processes)
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir()
    write = partial(write_pair, folders, target=target, numbers=numbers)
    _say_doubts(for_each_case(write, folders.cases, processes=processes, title="pairs"))
    description = {
        "name": name,
        "channel_names": {str(number): folder.name for number, folder in enumerate(folders.channels)},
        KEY: [str(number) for number in range(len(folders.source), len(folders.channels))],
        "labels": {"background": 0, **_label_names(numbers)},
        "numTraining": len(folders.cases),
        "file_ending": folders.ending,
    }
    write_atomically(target / "dataset.json", json.dumps(description, indent=2))


def write_pair(folders: PairFolders, case: str, *, target: Path, numbers: Mapping[int, int]) -> CheckedCase:
    """Write one case on the grid of its first source channel.

    Args:
        folders: where its files are.
        case: its name.
        target: folder of the dataset.
        numbers: the dataset's label for each value of the label maps; empty where there are none.

    Raises:
        ValueError: a file cannot be used, or lies on another grid.
    """
    first, properties = _read(folders, folders.source[0], case)
    others = [_read_onto(folders, folder, case, first, properties) for folder in folders.channels[1:]]
    channels = np.concatenate([first, *others])
    head = foreground(channels)
    labels = (
        head
        if folders.labels is None
        else _numbered(_read_onto(folders, folders.labels, case, first, properties, labels=True)[0], numbers)
    )
    writer = folders.readers[folders.source[0].folder]
    for number, channel in enumerate(channels):
        writer.write_image(channel, str(target / "imagesTr" / f"{case}_{number:04d}{folders.ending}"), properties)
    writer.write_seg(labels.astype(np.uint16), str(target / "labelsTr" / f"{case}{folders.ending}"), properties)
    files, sources = [folder.files[case] for folder in folders.channels], len(folders.source)
    return CheckedCase(
        constant=[file for file, channel in zip(files, channels, strict=True) if np.ptp(channel) == 0],
        correlation=edge_correlation(channels[:sources], channels[sources:], head),
        added_share=added_share(channels[:sources], channels[sources:]),
        labelled=bool(labels.any()),
    )


def _read(
    folders: PairFolders, folder: CaseFolder, case: str, *, labels: bool = False
) -> tuple[np.ndarray, dict[str, Any]]:
    """(1, D, H, W) values of a file, and its properties."""
    reader, file = folders.readers[folder.folder], str(folder.files[case])
    return reader.read_seg(file) if labels else reader.read_images([file])


def _read_onto(
    folders: PairFolders,
    folder: CaseFolder,
    case: str,
    first: np.ndarray,
    properties: Mapping[str, Any],
    *,
    labels: bool = False,
) -> np.ndarray:
    """(1, D, H, W) values of a file that must lie on the grid of the case's first one."""
    values, own = _read(folders, folder, case, labels=labels)
    check_same_points(
        grid_from_properties(own, values.shape[1:]),
        grid_from_properties(properties, first.shape[1:]),
        file=str(folder.files[case]),
        reference_file=str(folders.first_file(case)),
        remedy="register it and resample it onto that grid first",
    )
    return values


def _numbered(labels: np.ndarray, numbers: Mapping[int, int]) -> np.ndarray:
    """Labels in the dataset's numbers."""
    result = np.zeros(labels.shape, dtype=np.uint16)
    for value, number in numbers.items():
        result[labels == value] = number
    return result


def _label_numbers(folders: PairFolders, processes: int) -> dict[int, int]:
    """A number from 1 on for each value of the label maps, since nnU-Net wants them without gaps."""
    labels = folders.labels
    if labels is None:
        return {}

    def values_of(case: str) -> set[int]:
        return set(np.unique(_read(folders, labels, case, labels=True)[0]).tolist())

    found = for_each_case(values_of, folders.cases, processes=processes, title="labels")
    values = sorted(set().union(*found.values()) - {0})
    if not values:
        raise ValueError(f"{labels.folder} must have labels, got background alone; leave --labels out")
    return {value: number for number, value in enumerate(values, start=1)}


def _label_names(numbers: Mapping[int, int]) -> dict[str, int]:
    return {f"label_{value}": number for value, number in numbers.items()} or {FOREGROUND: 1}


def _say_doubts(found: Mapping[str, CheckedCase]) -> None:
    """Warn of what may be meant."""
    constant = [str(file) for checked in found.values() for file in checked.constant]
    if constant:
        logger.warning("%s: all voxels have one value, nothing can be learnt from it", listed(constant))
    for doubt in registration_doubts({case: checked.correlation for case, checked in found.items()}):
        logger.warning(doubt)
    _say_added({case: checked.added_share for case, checked in found.items()})
    unlabelled = [case for case, checked in found.items() if not checked.labelled]
    if unlabelled:
        logger.warning("%s: no voxel has a label, patches of these cases are drawn anywhere", listed(unlabelled))
    if len(found) < FEWEST_CASES:
        logger.warning(
            "nnU-Net's five folds need %d cases, got %d; write a splits_final.json by hand (how-to: Guided pairs)",
            FEWEST_CASES,
            len(found),
        )


def _say_added(shares: Mapping[str, float]) -> None:
    added = [f"{case} ({100 * share:.1f} %)" for case, share in shares.items() if share >= TOO_MUCH_ADDED]
    if added:
        logger.warning(
            "%s: the better scan adds this share of voxels to those of the usual scan, outside which that is 0; "
            "nnU-Net normalises the usual scan within both in training, and later within its own: set the better scan "
            "to 0 where the usual one is",
            listed(added),
        )

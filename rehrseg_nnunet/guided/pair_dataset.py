"""A raw dataset of pairs, made of folders of images: each case is read, checked and written once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rehrseg_nnunet.guided.foreground import foreground
from rehrseg_nnunet.guided.pair_checks import doubtful_pairs, edge_correlation
from rehrseg_nnunet.guided.pair_files import CaseFolder
from rehrseg_nnunet.guided.paired_channels import KEY
from rehrseg_nnunet.nnunet.raw_cases import RawCase, read_labels
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError, WholeFiles
from rehrseg_nnunet.slices.grids import check_same_points, grid_from_properties

logger = logging.getLogger(__name__)

FEWEST_CASES = 5  # nnU-Net's five folds
Result = TypeVar("Result")


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
    readers: dict[Path, WholeFiles] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in (*self.channels, *([self.labels] if self.labels else [])):
            self.readers[folder.folder] = folder.reader()

    @property
    def channels(self) -> tuple[CaseFolder, ...]:
        """All image folders, the source's first."""
        return *self.source, *self.privileged

    @property
    def ending(self) -> str:
        """File ending of the dataset: the first source folder's."""
        return self.source[0].ending


@dataclass(frozen=True)
class CheckedCase:
    """What was noticed in a case.

    Attributes:
        constant: files whose voxels all have one value.
        correlation: of the edges of the two scans.
        labelled: whether a voxel has a label.
    """

    constant: list[Path]
    correlation: float
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
    values = _label_values(folders, processes)
    for folder in ("imagesTr", "labelsTr"):
        (target / folder).mkdir()
    found = for_each_case(
        lambda case: write_pair(folders, case, target, numbers=values), folders.cases, processes=processes, title="pairs"
    )
    _say_doubts(folders, found)
    description = {
        "name": name,
        "channel_names": {str(number): folder.name for number, folder in enumerate(folders.channels)},
        KEY: [str(number) for number in range(len(folders.source), len(folders.channels))],
        "labels": {"background": 0, **_label_names(values)},
        "numTraining": len(folders.cases),
        "file_ending": folders.ending,
    }
    write_atomically(target / "dataset.json", json.dumps(description, indent=2))


def for_each_case(
    work: Callable[[str], Result], cases: Sequence[str], *, processes: int, title: str
) -> dict[str, Result]:
    """Do something for every case, several at a time, with a progress bar.

    Raises:
        ValueError: what went wrong with the first case, and names of the others with which something did.
    """
    failed: dict[str, ValueError] = {}

    def careful(case: str) -> Result | None:
        try:
            return work(case)
        except ValueError as error:  # of one case's files: the others' are named too
            failed[case] = error
            return None

    with ThreadPoolExecutor(processes) as pool, logging_redirect_tqdm():
        try:
            done = dict(zip(cases, tqdm(pool.map(careful, cases), desc=title, total=len(cases)), strict=True))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        first, *others = sorted(failed)
        more = f" (and something is wrong with {listed(others)})" if others else ""
        raise ValueError(f"case {first}: {failed[first]}{more}")
    return {case: result for case, result in done.items() if result is not None}


def write_pair(folders: PairFolders, case: str, target: Path, *, numbers: Mapping[int, int]) -> CheckedCase:
    """Write one case on the grid of its first source channel.

    Args:
        folders: where its files are.
        case: its name.
        target: folder of the dataset.
        numbers: the dataset's label for each value of the label maps; empty where there are none.

    Raises:
        ValueError: a file cannot be used, or lies on another grid.
    """
    channels, properties = _read_channels(folders, case)
    writer = folders.readers[folders.source[0].folder]
    head = foreground(channels)
    labels = _labels(folders, case, channels.shape[1:], properties, numbers) if folders.labels else head
    for number, channel in enumerate(channels):
        file = target / "imagesTr" / f"{case}_{number:04d}{folders.ending}"
        writer.write_image(channel, str(file), properties)
    writer.write_seg(labels.astype(np.uint8), str(target / "labelsTr" / f"{case}{folders.ending}"), properties)
    sources = len(folders.source)
    return CheckedCase(
        constant=[
            folder.files[case]
            for folder, channel in zip(folders.channels, channels, strict=True)
            if channel.min() == channel.max()
        ],
        correlation=edge_correlation(channels[:sources], channels[sources:], head),
        labelled=bool(labels.any()),
    )


def _read_channels(folders: PairFolders, case: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(C, D, H, W) images on one grid, and the properties of the first."""
    volumes = [folders.readers[f.folder].read_images([str(f.files[case])]) for f in folders.channels]
    first, properties = volumes[0]
    for folder, (volume, own) in zip(folders.channels[1:], volumes[1:], strict=True):
        check_same_points(
            grid_from_properties(own, volume.shape[1:]),
            grid_from_properties(properties, first.shape[1:]),
            file=str(folder.files[case]),
            reference_file=str(folders.source[0].files[case]),
            remedy="register it and resample it onto that grid first",
        )
    return np.concatenate([volume for volume, _ in volumes]), properties


def _labels(
    folders: PairFolders, case: str, shape: tuple[int, ...], properties: Mapping[str, Any], numbers: Mapping[int, int]
) -> np.ndarray:
    """(D, H, W) labels in the dataset's numbers."""
    assert folders.labels is not None
    files = RawCase([str(folders.source[0].files[case])], folders.labels.files[case])
    found = read_labels(files, reader=folders.readers[folders.labels.folder], shape=shape, properties=properties)
    assert found is not None
    labels = np.zeros(found.shape, dtype=np.uint8)
    for value, number in numbers.items():
        labels[found == value] = number
    return labels


def _label_values(folders: PairFolders, processes: int) -> dict[int, int]:
    """A number from 1 on for each value of the label maps, since nnU-Net wants them without gaps."""
    if folders.labels is None:
        return {}
    files, reader = folders.labels.files, folders.readers[folders.labels.folder]
    found = for_each_case(
        lambda case: set(np.unique(reader.read_seg(str(files[case]))[0]).tolist()),
        folders.cases,
        processes=processes,
        title="labels",
    )
    values = sorted(set().union(*found.values()) - {0})
    if not values:
        raise ValueError(f"{folders.labels.folder} must have labels, got background alone; leave --labels out")
    return {value: number for number, value in enumerate(values, start=1)}


def _label_names(values: Mapping[int, int]) -> dict[str, int]:
    return {f"label_{value}": number for value, number in values.items()} or {"foreground": 1}


def _say_doubts(folders: PairFolders, found: Mapping[str, CheckedCase]) -> None:
    constant = [str(file) for checked in found.values() for file in checked.constant]
    if constant:
        logger.warning("%s: all voxels have one value; nothing can be learnt from it", listed(constant))
    for case, (value, median) in doubtful_pairs({c: checked.correlation for c, checked in found.items()}).items():
        logger.warning(
            "%s: the edges of its two scans agree by %.2f, those of the other pairs by %.2f (median); look at both in a "
            "viewer, and register them again if they do not lie on each other",
            case,
            value,
            median,
        )
    unlabelled = [case for case, checked in found.items() if not checked.labelled]
    if unlabelled:
        logger.warning("%s: no voxel has a label; patches of these cases are drawn anywhere", listed(unlabelled))
    if len(found) < FEWEST_CASES:
        logger.warning(
            "nnU-Net's five folds need %d cases, got %d: write a splits_final.json yourself, see "
            "docs/how-to/guided-pairs.md",
            FEWEST_CASES,
            len(found),
        )

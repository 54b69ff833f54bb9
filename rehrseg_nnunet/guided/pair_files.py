"""Files of pairs: one folder for each channel, in which the files of a case have the same name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rehrseg_nnunet.guided.finite_files import finite_files_of
from rehrseg_nnunet.nnunet.new_dataset import check_keeps_geometry
from rehrseg_nnunet.nnunet.raw_files import image_ending, image_files, listed
from rehrseg_nnunet.nnunet.whole_files import WholeFiles

FIRST_CHANNEL = "_0000"  # at the end of names in nnU-Net's folders


@dataclass(frozen=True)
class CaseFolder:
    """A folder with one file for each case.

    Attributes:
        name: of the channel.
        folder: where its files are.
        ending: of their names.
        files: by case.
    """

    name: str
    folder: Path
    ending: str
    files: Mapping[str, Path]

    def reader(self) -> WholeFiles:
        """For its files, which must be finite; the first must be readable."""
        return finite_files_of({"file_ending": self.ending}, next(iter(self.files.values())))


def find_case_folder(argument: str) -> CaseFolder:
    """The images of a folder, by case.

    The case is the name of a file without its ending, and without `_0000`, which is nnU-Net's first channel. Other
    numbers are of cases, unless a file of the same name has `_0000`.

    Args:
        argument: `DIR`, whose last part names the channel, or `NAME=DIR`.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
        ValueError: no name or folder, several endings, several channels, a case with two files, or files that do not
            keep their spacing.
    """
    name, folder = _name_and_folder(argument)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    endings = {ending for file in image_files(folder, "") if (ending := image_ending(file.name)) is not None}
    if not endings:
        raise FileNotFoundError(f"{folder} must hold images in one of nnU-Net's formats, got none")
    if len(endings) > 1:
        raise ValueError(f"{folder} must have files of one format, got {', '.join(sorted(endings))}; convert them")
    (ending,) = endings
    check_keeps_geometry(ending, source=str(folder))
    files = [file for file in image_files(folder, "") if image_ending(file.name) == ending]
    return CaseFolder(name, folder, ending, _by_case(folder, files, ending))


def _name_and_folder(argument: str) -> tuple[str, Path]:
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():
        name, folder = Path(argument).resolve().name, argument
    if not name.strip() or not folder:
        raise ValueError(
            f"a folder must be given as DIR, whose name is the channel's, or as NAME=DIR, got {argument!r}"
        )
    return name, Path(folder)


def _by_case(folder: Path, files: Sequence[Path], ending: str) -> dict[str, Path]:
    stems = [file.name[: -len(ending)] for file in files]
    _check_one_channel(folder, stems)
    cases: dict[str, list[Path]] = {}
    for stem, file in zip(stems, files, strict=True):
        cases.setdefault(stem.removesuffix(FIRST_CHANNEL), []).append(file)
    twice = [listed([file.name for file in files]) for files in cases.values() if len(files) > 1]
    if twice:
        raise ValueError(f"{folder} must hold one file for each case, got {listed(twice)}; leave one in the folder")
    return {case: file for case, (file,) in sorted(cases.items())}


def _check_one_channel(folder: Path, stems: Sequence[str]) -> None:
    """Refuse nnU-Net's names of several channels: `a_0000` and `a_0001`."""
    numbers: dict[str, list[str]] = {}
    for match in filter(None, (re.fullmatch(r"(.+)(_\d{4})", stem) for stem in stems)):
        numbers.setdefault(match[1], []).append(match[2])
    several = [found for found in numbers.values() if FIRST_CHANNEL in found and len(found) > 1]
    if several:
        found = listed(sorted(set().union(*several)))
        raise ValueError(
            f"{folder} must hold one channel, got {found}; give each channel a folder of its own, or number cases from "
            "0001 on, if these are cases"
        )


def common_cases(folders: Iterable[CaseFolder], *, leave_out: bool) -> tuple[list[str], list[str]]:
    """Cases that have a file in every folder, and those that do not.

    Args:
        folders: of all channels and labels.
        leave_out: whether cases may lack a file.

    Raises:
        ValueError: no case has all files, or some lack one and may not.
    """
    folders = list(folders)
    named = sorted(set().union(*(folder.files for folder in folders)))
    common = [case for case in named if all(case in folder.files for folder in folders)]
    missing = {case: _lacks(case, folders) for case in named if case not in common}
    if not common:
        shown = "; ".join(f"{folder.folder}: {listed(sorted(folder.files), 2)}" for folder in folders)
        raise ValueError(f"the files of a case must have the same name in every folder, got {shown}")
    if missing and not leave_out:
        found = listed([f"{case} (not in {folder})" for case, folder in missing.items()])
        raise ValueError(
            f"every case must have a file in every folder, but some have not: {found}; add them, or leave these cases "
            "out with --skip-unpaired"
        )
    return common, list(missing)


def _lacks(case: str, folders: Iterable[CaseFolder]) -> Path:
    return next(folder.folder for folder in folders if case not in folder.files)


def check_own_folders(folders: Iterable[CaseFolder]) -> None:
    """Refuse a folder that is given twice: from a pair of a scan and itself nothing can be learnt.

    Raises:
        ValueError: as above.
    """
    places = [str(folder.folder.resolve()) for folder in folders]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise ValueError(f"channels and labels must have a folder each, got {listed(twice)} twice; give each its own")


def check_channel_names(folders: Sequence[CaseFolder]) -> None:
    """Refuse channels of the same name: a keeper's source channels are found by their names.

    Raises:
        ValueError: as above.
    """
    names = [folder.name for folder in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"channels must have different names, got {listed(twice)} twice; name them: --source T1=DIR "
            "--privileged T1_7T=DIR"
        )

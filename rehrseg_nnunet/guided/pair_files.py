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
    numbers are of cases, and so is `_0000` where all files have one name with different numbers: `s_0000`, `s_0001`.

    Args:
        argument: `DIR`, whose last part names the channel, or `NAME=DIR`.

    Raises:
        FileNotFoundError: no such folder, or no images in it.
        ValueError: no name or folder, several endings, several channels, a case with two files, or files that do not
            keep their spacing.
    """
    name, folder = _name_and_folder(argument)
    ending, files = _files_of_one_format(folder)
    stems = [file.name[: -len(ending)] for file in files]
    cases = stems if _are_numbered_cases(folder, stems) else [stem.removesuffix(FIRST_CHANNEL) for stem in stems]
    return CaseFolder(name, folder, ending, _one_file_each(folder, cases, files))


def find_label_folder(argument: str, images: Iterable[CaseFolder]) -> CaseFolder:
    """The label maps of a folder, by case: nnU-Net gives them no channel's number.

    The case is the name of a file without its ending. `_0000` is left out where that alone makes it one of the images'.

    Args:
        argument: `DIR` or `NAME=DIR`.
        images: folders of the cases' images.

    Raises:
        FileNotFoundError: as in `find_case_folder`.
        ValueError: as there, but for several channels.
    """
    name, folder = _name_and_folder(argument)
    ending, files = _files_of_one_format(folder)
    known = set().union(*(images_of.files for images_of in images))
    stems = [file.name[: -len(ending)] for file in files]
    short = [stem.removesuffix(FIRST_CHANNEL) for stem in stems]
    cases = [less if less in known and stem not in known else stem for stem, less in zip(stems, short, strict=True)]
    return CaseFolder(name, folder, ending, _one_file_each(folder, cases, files))


def _name_and_folder(argument: str) -> tuple[str, Path]:
    name, equals, folder = argument.partition("=")
    if not equals or Path(argument).is_dir():
        name, folder = Path(argument).resolve().name, argument
    if not name.strip() or not folder:
        raise ValueError(
            f"a folder must be given as DIR, whose name is the channel's, or as NAME=DIR, got {argument!r}"
        )
    return name, Path(folder)


def _files_of_one_format(folder: Path) -> tuple[str, list[Path]]:
    """The ending of a folder's images, which must be one, and the images."""
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    endings = {ending for file in image_files(folder, "") if (ending := image_ending(file.name)) is not None}
    if not endings:
        raise FileNotFoundError(f"{folder} must hold images in one of nnU-Net's formats, got none")
    if len(endings) > 1:
        raise ValueError(f"{folder} must have files of one format, got {', '.join(sorted(endings))}; convert them")
    (ending,) = endings
    check_keeps_geometry(ending, source=str(folder))
    return ending, [file for file in image_files(folder, "") if image_ending(file.name) == ending]


def _one_file_each(folder: Path, cases: Sequence[str], files: Sequence[Path]) -> dict[str, Path]:
    """Files by their cases, which must differ."""
    found: dict[str, list[Path]] = {}
    for case, file in zip(cases, files, strict=True):
        found.setdefault(case, []).append(file)
    twice = [listed([file.name for file in files]) for files in found.values() if len(files) > 1]
    if twice:
        raise ValueError(f"{folder} must hold one file for each case, got {listed(twice)}; leave one in the folder")
    return {case: file for case, (file,) in sorted(found.items())}


def _are_numbered_cases(folder: Path, stems: Sequence[str]) -> bool:
    """Whether the numbers of names, from `_0000` on, are of cases: `s_0000`, `s_0001`, and nothing else.

    Beside other names they would be nnU-Net's channels, of which there may not be several.
    """
    numbers: dict[str | None, set[str]] = {}
    for stem in stems:
        match = re.fullmatch(r"(.+)(_\d{4})", stem)
        numbers.setdefault(match and match[1], set()).add(match[2] if match else stem)
    several = [found for name, found in numbers.items() if name and FIRST_CHANNEL in found and len(found) > 1]
    if several and len(numbers) > 1:
        found = listed(sorted(set().union(*several)))
        raise ValueError(
            f"{folder} must hold one channel, got {found}; give each channel a folder of its own, or add _0000 to all "
            "names, if these are cases"
        )
    return bool(several)


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

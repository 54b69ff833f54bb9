"""Cases to predict: the channels of one case, the images of a folder, or the rows of a csv file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from rehrseg_nnunet.nnunet.folders import check_input
from rehrseg_nnunet.nnunet.raw_files import (
    group_channels,
    has_all_channels,
    image_ending,
    list_cases,
    listed,
    require_images,
    wrong_channels,
)

CSV = ".csv"
_MOST_CHANNELS = 10  # of a dataset, when names are guessed at
_LONGEST_NAME = 180  # bytes: file systems take 255, and results have endings
_NIBABEL_ENDINGS = (".nii.gz", ".nii")
SIMPLE_ITK_ENDINGS = (*_NIBABEL_ENDINGS, ".mha", ".nrrd", ".gipl")


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        name: what its results are called.
        files: one for each channel, in the model's order.
    """

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Failure:
    """A case without result.

    Attributes:
        name: the case's.
        files: the case's.
        reason: one line.
    """

    name: str
    files: tuple[Path, ...]
    reason: str


@dataclass(frozen=True)
class Images:
    """What a model takes.

    Attributes:
        channels: files of a case, C.
        ending: of the files that it was trained on.
        endings: all that its reader can read and write.
    """

    channels: int
    ending: str
    endings: tuple[str, ...]


def endings_of(reader: type[BaseReaderWriter]) -> tuple[str, ...]:
    """Endings of files that one of nnU-Net's readers can read and write, also those that it does not mention."""
    if issubclass(reader, SimpleITKIO):
        return SIMPLE_ITK_ENDINGS
    if issubclass(reader, (NibabelIO, NibabelIOWithReorient)):
        return _NIBABEL_ENDINGS
    return tuple(reader.supported_file_endings)  # pyright: ignore[reportAttributeAccessIssue] # every reader has them


def case_name(file: Path) -> str:
    """Name of the case whose first channel is in a file, nnU-Net's or any other.

    Example:
        >>> case_name(Path("scans/knee_0000.nii.gz")), case_name(Path("scans/knee.nrrd"))
        ('knee', 'knee')
    """
    ending = image_ending(file.name) or file.suffix
    return file.name[: len(file.name) - len(ending)].removesuffix("_0000")


def check_sources(sources: Sequence[Path]) -> None:
    """Refuse what is not there, before a model is loaded.

    Raises:
        FileNotFoundError: -i names nothing that exists.
        ValueError: several of them, not all of which are images.
    """
    for source in sources:
        check_input(source)
    if len(sources) > 1:
        wrong = [str(source) for source in sources if source.is_dir() or source.name.lower().endswith(CSV)]
        if wrong:
            raise ValueError(
                f"-i must be the files of one case, one for each channel, or one folder or csv file, got {wrong[0]} "
                "among several"
            )


def is_single(sources: Sequence[Path]) -> bool:
    """Whether -i names the files of one case."""
    return not sources[0].is_dir() and not sources[0].name.lower().endswith(CSV)


def read_cases(
    sources: Sequence[Path], images: Images, *, keep_going: bool = False
) -> tuple[list[Case], list[Failure]]:
    """The cases that -i names.

    Args:
        sources: files of one case, or one folder or csv file.
        images: what the model takes.
        keep_going: cases with missing files are failures, not errors.

    Returns:
        Cases that can be tried, and those that cannot.

    Raises:
        FileNotFoundError: a file is missing, or a folder has no images.
        ValueError: wrong number of channels, unknown endings, a csv file that is none.
    """
    if is_single(sources):
        return [_case_of(sources, images)], []
    if sources[0].is_dir():
        return _folder_cases(sources[0], images, keep_going=keep_going)
    return _csv_cases(sources[0], images, keep_going=keep_going)


def _case_of(files: Sequence[Path], images: Images) -> Case:
    if len(files) != images.channels:
        raise ValueError(
            f"-i must name one file for each of the model's {images.channels} channels, in their order, got "
            f"{', '.join(map(str, files))}"
        )
    for file in files:
        _check_ending(file, images)
    return Case(case_name(files[0]), tuple(files))


def _check_ending(file: Path, images: Images) -> None:
    if image_ending(file.name, images.endings) is None:
        raise ValueError(f"{file} must end in one of {' '.join(images.endings)}, which the model reads; convert it")


def _folder_cases(folder: Path, images: Images, *, keep_going: bool) -> tuple[list[Case], list[Failure]]:
    files = require_images(folder, images.ending)
    grouped, unnamed = group_channels(folder, images.ending)
    if images.channels == 1 and not _names_channels(grouped, unnamed, images.ending):
        return [Case(file.name.removesuffix(images.ending), (file,)) for file in files], []
    if not keep_going:
        grouped, unnamed = list_cases(folder, images.ending, channels=images.channels), []
    expected = [f"_{channel:04d}{images.ending}" for channel in range(images.channels)]
    failures = [
        Failure(name, (folder / name,), f"{folder / name} must be named CASE_0000{images.ending}, the channel last")
        for name in unnamed
    ]
    cases = []
    for name, found in grouped.items():
        case = Case(name, tuple(map(Path, found)))
        if has_all_channels(found, images.ending, channels=images.channels):
            cases.append(case)
        else:
            failures.append(Failure(name, case.files, wrong_channels(folder, {name: found}, expected)))
    return cases, failures


def _names_channels(grouped: Mapping[str, Sequence[str]], unnamed: Sequence[str], ending: str) -> bool:
    """Whether files end in channels, as nnU-Net has them, and not in years or numbers of subjects.

    They do if there is a first channel, `_0000`. Without one, several cases that all have the same other channels must
    not be taken for scans of the first; nor one case with one of them.
    """
    suffixes = [[int(file.removesuffix(ending)[-4:]) for file in files] for files in grouped.values()]
    if any(0 in channels for channels in suffixes):
        return True
    alike = bool(suffixes) and not unnamed and all(channels == suffixes[0] for channels in suffixes)
    return alike and max(suffixes[0]) < _MOST_CHANNELS and (len(suffixes) > 1 or len(suffixes[0]) == 1)


def _csv_cases(file: Path, images: Images, *, keep_going: bool) -> tuple[list[Case], list[Failure]]:
    """Cases of a csv file, all of which is checked before the first one is predicted."""
    columns = [f"file{channel}" for channel in range(images.channels)]
    cases: list[Case] = []
    problems: list[str] = []
    failures: list[Failure] = []
    lines: dict[str, int] = {}
    for line, row in _rows(file, columns):
        name, names = row[0], row[1:]
        case = Case(name, tuple(file.parent / cell for cell in names))
        problem = _problem(case, names, images, earlier=lines.get(name))
        lines.setdefault(name, line)
        missing = [str(path) for path in case.files if not path.is_file()]
        if problem:
            problems.append(f"line {line}: {problem}")
        elif missing and keep_going:
            failures.append(Failure(name, case.files, f"{', '.join(missing)} does not exist"))
        elif missing:
            problems.append(f"line {line}: {', '.join(missing)} does not exist; paths are relative to the csv file")
        else:
            cases.append(case)
    if problems:
        more = f" (and {len(problems) - 1} more lines)" if len(problems) > 1 else ""
        raise ValueError(f"{file} must name cases that can be predicted, got in {problems[0]}{more}")
    return cases, failures


def _problem(case: Case, cells: Sequence[str], images: Images, *, earlier: int | None) -> str | None:
    if not case.name or not all(cells):
        return f"an empty cell; every case needs a name and {len(cells)} file(s)"
    if Path(case.name).name != case.name or case.name.startswith(".") or len(case.name.encode()) > _LONGEST_NAME:
        return f"case {case.name}, which is no file name; results are called like the case"
    if image_ending(case.name) is not None:
        return f"case {case.name}, which ends like a file; leave the ending out, results are called like the case"
    if earlier is not None:
        return f"case {case.name} once more, as in line {earlier}; give every case a name of its own"
    for path in case.files:
        try:
            _check_ending(path, images)
        except ValueError as error:
            return str(error)
    return None


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells (case, files) of every row."""
    expected = ["case", *columns]
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            if sorted(header) != sorted(expected):
                raise ValueError(
                    f"{file} must have the columns {','.join(expected)} in its first line, separated by commas, got "
                    f"{','.join(header) or 'nothing'}"
                )
            order = [header.index(column) for column in expected]
            yield from _cells(file, reader, order)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} must be a csv file in UTF-8, got {error}; save it as such") from None


def _cells(file: Path, reader: Iterator[list[str]], order: Sequence[int]) -> Iterator[tuple[int, list[str]]]:
    found = False
    for line, row in enumerate(reader, start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(order):
            raise ValueError(f"line {line} of {file} must have {len(order)} cells, got {len(row)}; mend it")
        found = True
        yield line, [row[index].strip() for index in order]
    if not found:
        raise ValueError(f"{file} must name at least one case, got only its first line")


def check_not_overwritten(cases: Sequence[Case], results: Callable[[Case], Path]) -> None:
    """Refuse a place where results would replace the scans they come from.

    Raises:
        ValueError: a case's result has the name of an input.
    """
    inputs = {file.resolve() for case in cases for file in case.files}
    for case in cases:
        if results(case).resolve() in inputs:
            raise ValueError(f"-o must not lead to {results(case)}, which is an input; choose another name or folder")


def names_of(cases: Sequence[Case] | Sequence[Failure]) -> str:
    """The first names of some cases."""
    return listed([case.name for case in cases])

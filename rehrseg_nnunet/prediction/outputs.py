"""Where results go: one file for one scan, a folder for many."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rehrseg_nnunet.nnunet.raw_files import image_ending, with_ending
from rehrseg_nnunet.prediction.inputs import Case, Images, check_not_overwritten, is_single


@dataclass(frozen=True)
class Output:
    """Where results go.

    Attributes:
        folder: of all results; it may not exist yet.
        file: the segmentation of one scan, None for many.
        ending: of segmentations.
    """

    folder: Path
    file: Path | None
    ending: str

    @property
    def stem(self) -> Path | None:
        """The file without its ending."""
        return self.file and self.file.with_name(self.file.name[: -len(self.ending)])


def check_output(output: str, sources: Sequence[Path]) -> None:
    """Refuse what -o cannot be, as far as that can be told without a model.

    Raises:
        ValueError: a folder for several channels, a file for many cases, or neither.
    """
    names_file = image_ending(Path(output).name) is not None and not Path(output).is_dir()
    if not is_single(sources):
        if names_file or Path(output).is_file():
            raise ValueError(f"-o must be a folder for the cases of {sources[0]}, got the file {output}")
        return
    if names_file:
        return
    if not _names_folder(output):
        raise ValueError(f"-o must end like an image, such as {output}.nii.gz, or be an existing folder, got {output}")
    if len(sources) > 1:
        raise ValueError(
            f"-o must be a file for the case whose channels -i names, such as {Path(output, 'seg.nii.gz')}, got the "
            f"folder {output}; for several cases give -i a folder or a csv file"
        )


def _names_folder(output: str) -> bool:
    return Path(output).is_dir() or output.endswith((os.sep, "/"))


def ending_of(output: str | os.PathLike[str], images: Images) -> str:
    """Ending of a result's name, in small letters.

    Raises:
        ValueError: one that the model cannot write.
    """
    ending = image_ending(Path(output).name, images.endings)
    if ending is None:
        raise ValueError(f"-o must end in one of {' '.join(images.endings)}, which the model writes, got {output}")
    return ending


def choose_output(output: str, sources: Sequence[Path], cases: Sequence[Case], images: Images) -> Output:
    """Where the results of cases go, after `check_output`.

    Args:
        output: what -o names.
        sources: what -i names.
        cases: the cases in it.
        images: what the model reads and writes.

    Raises:
        ValueError: an ending that the model cannot write, or a result that would replace an input.
    """
    if not is_single(sources):
        chosen = Output(Path(output), None, images.ending)
    elif _names_folder(output):
        ending = image_ending(sources[0].name, images.endings) or images.ending
        chosen = Output(Path(output), Path(output, f"{cases[0].name}{ending}"), ending)
    else:
        ending = ending_of(output, images)
        chosen = Output(Path(output).parent, with_ending(Path(output), ending), ending)
    check_not_overwritten(cases, lambda case: chosen.file or chosen.folder / f"{case.name}{chosen.ending}")
    return chosen

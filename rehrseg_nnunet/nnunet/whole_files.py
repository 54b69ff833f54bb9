"""Inputs that are whole are read, results that are whole appear: nothing damaged goes unnoticed.

nnU-Net's export writes results straight to their final names, and SimpleITK neither notices that a NIfTI file it reads
ends early (the rest is zero) nor that one it writes does not fit on the disk. A result that was cut off is then taken
for a finished one by `--continue_prediction`.

Here an export writes into a hidden folder beside its target (`staging`), and the reader-writer of
`WholeFilesPlansManager` moves a case's files from there to their final names once all of them are written, the
segmentation, by which nnU-Net knows that a case is done, last.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.safe_files import move_into_place

STAGING_PREFIX = ".rehrseg-partial-"
_NIFTI = (".nii", ".nii.gz")


class UnusableImageError(ValueError):
    """An image that cannot be read or predicted; the message names its file."""


class UnwrittenFileError(OSError):
    """A result that could not be written; the message names its file."""


class WholeFilesPlansManager(PlansManager):
    """PlansManager whose reader-writer reads and writes whole files only; travels to worker processes."""

    @property
    def image_reader_writer_class(self) -> type[BaseReaderWriter]:
        """The plans' reader-writer, with checks."""
        return _whole_files(super().image_reader_writer_class)


def check_whole(file: str | Path) -> None:
    """Read a NIfTI file to its end, which SimpleITK does not check; other formats raise on their own, but for GIPL.

    Raises:
        OSError: the file ends early, or another error of nibabel's.
    """
    if str(file).lower().endswith(_NIFTI):
        image = nibabel.load(file)
        image.dataobj.get_unscaled()  # pyright: ignore[reportAttributeAccessIssue] # declared as any image, not as NIfTI


@cache
def _whole_files(base: type[BaseReaderWriter]) -> type[BaseReaderWriter]:
    class WholeFiles(base):
        """Name the file that cannot be read; publish staged results."""

        def read_images(self, image_fnames: Sequence[str], *args: Any, **kwargs: Any) -> tuple[np.ndarray, dict]:
            try:
                for file in image_fnames:
                    check_whole(file)
                return super().read_images(list(image_fnames), *args, **kwargs)
            except Exception as error:  # every library has errors of its own
                files = ", ".join(map(str, image_fnames))
                if len(image_fnames) > 1 and not str(error):  # nnU-Net prints the reason, maybe in another process
                    raise UnusableImageError(
                        f"{files} must have the same shape and spacing: they are the channels of one case"
                    ) from error
                raise UnusableImageError(
                    f"{files} must be whole files that nnU-Net's {base.__name__} can read, got {type(error).__name__}: "
                    f"{error}"
                ) from error

        def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict) -> None:
            try:
                super().write_seg(seg, output_fname, properties)
                check_whole(output_fname)
            except (OSError, EOFError, RuntimeError) as error:  # SimpleITK raises RuntimeError
                raise UnwrittenFileError(f"{_final(Path(output_fname))} could not be written: {error}") from error
            _publish(Path(output_fname))

    return WholeFiles


def _is_staged(file: Path) -> bool:
    return file.parent.parent.name.startswith(STAGING_PREFIX)


def _final(file: Path) -> Path:
    return file.parents[2] / file.name if _is_staged(file) else file


def _publish(segmentation: Path) -> None:
    """Move a case's staged files to their final names, the segmentation last."""
    if not _is_staged(segmentation):
        return
    for file in sorted(segmentation.parent.iterdir(), key=lambda file: file == segmentation):
        move_into_place(file, _final(file))
    segmentation.parent.rmdir()


@contextmanager
def staging(*, remedy: str) -> Iterator[Callable[[str], str]]:
    """Let exports write beside their targets; what was not finished is removed at the end.

    Only files written through a `WholeFilesPlansManager` get their final names.

    Args:
        remedy: what to do when a file cannot be written.

    Yields:
        A function from an output (without file ending) to the one to hand to nnU-Net's export.

    Raises:
        UnwrittenFileError: the message names a file and the remedy.
    """
    name = STAGING_PREFIX + uuid.uuid4().hex[:8]
    folders: set[Path] = set()

    def stage(output: str) -> str:
        target = Path(output)
        folders.add(target.parent / name)
        folder = target.parent / name / target.name
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / target.name)

    try:
        yield stage
    except UnwrittenFileError as error:
        raise UnwrittenFileError(f"{error}; {remedy}") from error
    except OSError as error:
        unfinished = sorted(str(_final(file)) for folder in folders for file in folder.glob("*/*"))
        if error.filename is not None or not unfinished:  # errors of numpy's and pickle's writers name no file
            raise
        raise UnwrittenFileError(f"{', '.join(unfinished)} could not be written: {error}; {remedy}") from error
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

"""The one door for images and label maps: what is read is whole and fit for use, what is written appears when whole.

nnU-Net's export writes results straight to their final names, and SimpleITK neither notices that a NIfTI file it reads
ends early (the rest is zero) nor that one it writes does not fit on the disk. A result that was cut off is then taken
for a finished one by `--continue_prediction`.

`whole_files` adds checks to any of nnU-Net's reader-writers, and `WholeFilesPlansManager` gives nnU-Net's own functions
such a one. Here an export writes into a hidden folder beside its target (`staging`), and the reader-writer moves a
case's files from there to their final names once all of them are written, the segmentation, by which nnU-Net knows that
a case is done, last.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.image_formats import image_to_write
from rehrseg_nnunet.nnunet.label_values import integer_labels
from rehrseg_nnunet.nnunet.nifti_headers import is_finite, open_nifti, say_other_unit, say_two_positions
from rehrseg_nnunet.nnunet.safe_files import move_into_place
from rehrseg_nnunet.nnunet.staging_folders import STAGING_PREFIX, staging_folder, staging_name
from rehrseg_nnunet.slices.grids import Grid, check_same_points, grid_from_properties

logger = logging.getLogger(__name__)

_NIFTI = (".nii", ".nii.gz")
_GIPL_HEADER = 256  # bytes
_NIBABEL_READERS = (NibabelIO, NibabelIOWithReorient)


class UnusableImageError(ValueError):
    """An image that cannot be read or predicted; the message names its file."""


class UnwrittenFileError(OSError):
    """A result that could not be written; the message names its file."""


class WholeFiles(BaseReaderWriter):
    """One of nnU-Net's reader-writers with checks; made by `whole_files`.

    Files are whole, 3D with one value per voxel and finite; labels are integers; the channels of a case have one grid.

    Attributes:
        plain: nnU-Net's class.
    """

    plain: type[BaseReaderWriter]

    def read_images(self, image_fnames: Sequence[str], *args: Any, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Channels of one case, (C, D, H, W) float32, and the first one's properties.

        Raises:
            UnusableImageError: a file that cannot be used; named.
        """
        volumes = [self.read_checked(self.plain().read_images, str(file), (str(file),)) for file in image_fnames]
        first, properties = volumes[0]
        grid = grid_from_properties(properties, first.shape[1:])
        for file, (volume, own) in zip(image_fnames[1:], volumes[1:], strict=True):
            try:
                check_same_points(
                    grid_from_properties(own, volume.shape[1:]),
                    grid,
                    file=str(file),
                    reference_file=str(image_fnames[0]),
                    remedy="the channels of a case must be resampled to one grid",
                )
            except ValueError as error:
                raise UnusableImageError(str(error)) from None
        return (first if len(volumes) == 1 else np.vstack([volume for volume, _ in volumes])), properties

    def read_seg(self, seg_fname: str) -> tuple[np.ndarray, dict[str, Any]]:
        """A label map, (1, D, H, W) int32, and its properties.

        Raises:
            UnusableImageError: a file that cannot be used; named.
        """
        labels, properties = self.read_checked(self.plain().read_seg, str(seg_fname), str(seg_fname), labels=True)
        try:
            return integer_labels(labels, file=str(seg_fname)), properties
        except ValueError as error:
            raise UnusableImageError(str(error)) from None

    def write_seg(self, seg: np.ndarray, output_fname: str, properties: dict[str, Any]) -> None:
        """Write a label map (D, H, W); it gets its name when it is whole.

        Raises:
            UnwrittenFileError: the file could not be written; named.
        """
        self._write(lambda file: self.plain().write_seg(seg, file, properties), Path(output_fname), seg)

    def write_image(self, image: np.ndarray, output_fname: str, properties: Mapping[str, Any]) -> None:
        """Write an image (D, H, W), see `image_to_write`; it gets its name when it is whole.

        Raises:
            UnwrittenFileError: the file could not be written; named.
            NotImplementedError: properties without geometry, of a reader that keeps one.
        """
        try:
            values, write = image_to_write(image, properties, self.plain)
        except NotImplementedError as error:
            raise NotImplementedError(f"{output_fname}: {error}") from None
        self._write(write, Path(output_fname), values)

    def read_checked(
        self, read: Callable, file: str, argument: Any, *, labels: bool = False
    ) -> tuple[np.ndarray, dict]:
        """Read one file by nnU-Net's `read`, with all checks; errors name it."""
        try:
            nans_hidden = self.check_nifti(file)
            array, properties = read(argument)
        except UnusableImageError:
            raise
        except Exception as error:  # every library has errors of its own
            raise UnusableImageError(
                f"{file} must be a whole file that nnU-Net's {self.plain.__name__} can read, got "
                f"{type(error).__name__}: {error}"
            ) from error
        spacing = properties.get("sitk_stuff", properties)["spacing"]
        if array.ndim != 4 or len(array) != 1 or len(spacing) != 3:
            raise _not_a_volume(file, f"an array of shape {array.shape} and {len(spacing)} spacings")
        _check_geometry(file, spacing, grid_from_properties(properties, array.shape[1:]))
        if not np.isfinite(array).all() or (nans_hidden and labels):
            raise UnusableImageError(f"{file} must hold finite values, got NaN or infinite ones; mend the file")
        if nans_hidden:
            logger.warning("%s: NaN and infinite values are read as 0, as in nnU-Net's training", file)
        return array, properties

    def check_nifti(self, file: str) -> bool:
        """Refuse a NIfTI file that is no volume or ends early; returns whether SimpleITK hides NaN in it."""
        if not file.lower().endswith(_NIFTI):
            check_whole(file)
            return False
        header = open_nifti(file)
        by_nibabel = issubclass(self.plain, _NIBABEL_READERS)
        # SimpleITK, and so nnU-Net's training, leaves out further axes of length 1
        if len(header.shape) != 3 and (by_nibabel or len(header.shape) < 3 or set(header.shape[3:]) != {1}):
            raise _not_a_volume(file, f"an array of shape {header.shape}")
        say_two_positions(file, header)
        if header.get_data_dtype().kind == "c":
            raise UnusableImageError(
                f"{file} must hold real values, got complex ones, of which nnU-Net drops the imaginary part; save "
                "their magnitude"
            )
        if by_nibabel:  # which read to the end and notice by themselves
            say_other_unit(file, header, self.plain.__name__)
            return False
        return not is_finite(file)

    def _write(self, write: Callable[[str], None], target: Path, values: np.ndarray) -> None:
        with _stage_of(target) as file:
            try:
                write(str(file))
                self._check_written(file, values)
            except (OSError, EOFError, RuntimeError) as error:  # SimpleITK raises RuntimeError
                raise UnwrittenFileError(f"{final_name(file)} could not be written: {error}") from error
            _publish(file)

    def _check_written(self, file: Path, values: np.ndarray) -> None:
        if file.name.lower().endswith(_NIFTI):
            check_whole(file)
            return
        stored = self.plain().read_seg(str(file))[0][0]
        # that reader returns turned axes
        if not issubclass(self.plain, SimpleITKIOWithReorient) and not np.array_equal(stored, values):
            raise OSError("the file differs from what was written")


@cache
def whole_files(base: type[BaseReaderWriter]) -> type[WholeFiles]:
    """One of nnU-Net's reader-writers with the checks of `WholeFiles`."""
    return type(f"Whole{base.__name__}", (WholeFiles, base), {"plain": base, "__doc__": WholeFiles.__doc__})


def whole_files_of(dataset_json: Mapping[str, Any], example: Path) -> WholeFiles:
    """A reader-writer for a dataset's files, nnU-Net's choice.

    Args:
        dataset_json: content of dataset.json, of which `file_ending` and `overwrite_image_reader_writer` count.
        example: one of its files, which must be readable.

    Raises:
        UnusableImageError: none of nnU-Net's readers can read the example.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # nnU-Net prints tracebacks of the readers that fail
            base = determine_reader_writer_from_dataset_json(dict(dataset_json), str(example), verbose=False)
    except RuntimeError:
        ending = dataset_json["file_ending"]
        raise UnusableImageError(
            f"{example} must be a whole file that one of nnU-Net's readers for {ending} can read; mend or convert it"
        ) from None
    return whole_files(base)()


class WholeFilesPlansManager(PlansManager):
    """PlansManager whose reader-writer reads and writes whole files only; travels to worker processes."""

    @property
    def image_reader_writer_class(self) -> type[WholeFiles]:
        """The plans' reader-writer, with checks."""
        return whole_files(super().image_reader_writer_class)


def check_whole(file: str | Path) -> None:
    """Read a NIfTI file to its end and measure a GIPL file, which SimpleITK does not; others raise on their own.

    Raises:
        OSError: the file ends early, or another error of nibabel's.
    """
    if str(file).lower().endswith(_NIFTI):
        open_nifti(file).dataobj.get_unscaled()
    elif str(file).lower().endswith(".gipl"):
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        pixel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
        needed = _GIPL_HEADER + math.prod(reader.GetSize()) * pixel.GetSizeOfPixelComponent()
        size = Path(file).stat().st_size
        if size < needed:
            raise OSError(f"{size} of {needed} bytes")


def _check_geometry(file: str, spacing_mm: Sequence[float], grid: Grid) -> None:
    """Refuse what no scan has; libraries make different things of it, or fail when they write."""
    if not (np.isfinite(grid.affine).all() and min(grid.spacing_mm) > 0 and min(spacing_mm) > 0):
        raise UnusableImageError(
            f"{file} must have a positive spacing and a finite position, got {grid}; mend its header"
        )


def _not_a_volume(file: str, got: str) -> UnusableImageError:
    return UnusableImageError(
        f"{file} must be a 3D image with one value per voxel, got {got}; split it into one file for each channel "
        "(CASE_0000, CASE_0001, ...)"
    )


@contextmanager
def _stage_of(target: Path) -> Iterator[Path]:
    """Where to write a file: to a hidden folder beside it, unless `staging` has already led there."""
    if _is_staged(target):
        yield target
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with staging_folder(target.parent / staging_name()) as folder:
        (folder / target.name).mkdir()
        yield folder / target.name / target.name


def _is_staged(file: Path) -> bool:
    return file.parent.parent.name.startswith(STAGING_PREFIX)


def beside(output: str, suffix: str) -> str:
    """Another output beside one, staged if that is; its folder need not exist yet.

    Args:
        output: without file ending.
        suffix: what is added to its name.
    """
    file = Path(output)
    name = file.name + suffix
    return str(file.parent.parent / name / name if _is_staged(file) else file.with_name(name))


def stems(output: str, names: Sequence[str]) -> list[str]:
    """Where results of a case go, without ending: `output` for one of them, `<output>_<name>` for each of several."""
    return [output] if len(names) == 1 else [beside(output, f"_{name}") for name in names]


def final_name(file: Path) -> Path:
    """The name that a staged file gets when it is whole; any other file's own."""
    return file.parents[2] / file.name if _is_staged(file) else file


def _publish(segmentation: Path) -> None:
    """Move a case's staged files to their final names, the segmentation last."""
    if not _is_staged(segmentation):
        return
    for file in sorted(segmentation.parent.iterdir(), key=lambda file: file == segmentation):
        move_into_place(file, final_name(file))
    segmentation.parent.rmdir()


@contextmanager
def written_together(stem: Path) -> Iterator[Path]:
    """Let several files of a case get their final names together, once all of them are written.

    Inside `staging`, those are written beside the segmentation, whose writer gives all of them their names.

    Args:
        stem: the files' common path, without what tells them apart.

    Yields:
        The path to use in its place; write with `write_bytes`.

    Raises:
        UnwrittenFileError: the disk did not take a file.
    """
    with _stage_of(stem) as staged:
        yield staged
        if staged == stem:
            return
        try:
            _publish(staged)
        except OSError as error:
            raise UnwrittenFileError(f"files of {stem} could not be written: {error}") from error


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
    name = staging_name()
    folders: set[Path] = set()

    def stage(output: str) -> str:
        target = Path(output)
        staged = target.parent / name
        if staged not in folders:
            target.parent.mkdir(parents=True, exist_ok=True)
            opened.enter_context(staging_folder(staged))
            folders.add(staged)
        folder = staged / target.name
        folder.mkdir(exist_ok=True)
        return str(folder / target.name)

    with ExitStack() as opened:
        try:
            yield stage
        except UnwrittenFileError as error:
            raise UnwrittenFileError(f"{error}; {remedy}") from error
        except OSError as error:
            unfinished = sorted(str(final_name(file)) for folder in folders for file in folder.glob("*/*"))
            if error.filename is not None or not unfinished:  # errors of numpy's and pickle's writers name no file
                raise
            raise UnwrittenFileError(f"{', '.join(unfinished)} could not be written: {error}; {remedy}") from error

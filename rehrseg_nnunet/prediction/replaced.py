"""Results replace segmentations, as nnU-Net's do, and nothing else: scans whose place in the call was mistaken stay.

With a segmentation goes what was made of it: probabilities, surfaces and 3D Slicer's copy of another model would be
taken for the new one's by whatever reads them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from rehrseg_nnunet.nnunet.label_values import known_labels, label_manager_of, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import SLICER_ENDING, listed
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.surfaces.formats import FORMATS, file_names
from rehrseg_nnunet.surfaces.stored import PROBABILITIES
from rehrseg_nnunet.surfaces.structures import structures_of

logger = logging.getLogger(__name__)

_GEOMETRY = ".pkl"  # of the probabilities


def check_replaced(file: Path, reader: type[BaseReaderWriter], dataset_json: Mapping[str, Any], *, option: str) -> None:
    """Refuse a place where a result would replace anything but an earlier segmentation with the model's labels.

    Args:
        file: where the result goes.
        reader: the model's, with the checks of `whole_files`.
        dataset_json: the model's.
        option: what led there, for the message.

    Raises:
        ValueError: names the file and what is in it.
    """
    if not file.is_file() or file.stat().st_size == 0:
        return
    try:
        labels, _ = reader().read_seg(str(file))
    except UnusableImageError:
        found = "holds no labels"
    else:
        unknown = unknown_labels(labels, known_labels(label_manager_of(dataset_json)))
        if not unknown:
            return
        found = f"holds {listed([str(value) for value in unknown])}, which are no labels of this model"
    raise ValueError(
        f"{option} must not replace what is no segmentation of this model, but {file} {found}; are input and output "
        "swapped? Choose another name, or remove the file"
    )


@contextmanager
def replacing(segmentation: Path, ending: str, dataset_json: Mapping[str, Any]) -> Iterator[None]:
    """Write a segmentation inside; what an earlier one has left beside it goes once that is done.

    Only where a segmentation is replaced, and nothing that is newer than it: that somebody may have made or corrected
    by hand, so it stays, with a warning. (What is written with a segmentation gets its name before it does.)

    Args:
        segmentation: its file.
        ending: of its name.
        dataset_json: the model's, with the labels' names, by which surfaces are called.
    """
    former = {}
    if segmentation.is_file():
        stem = segmentation.with_name(segmentation.name[: -len(ending)])
        former = {file: file.stat() for file in _companions(stem, dataset_json) if file.is_file()}
        made = segmentation.stat().st_mtime_ns
    yield
    for file, before in former.items():
        if not file.is_file() or (file.stat().st_ino, file.stat().st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
            continue  # of the new one
        if before.st_mtime_ns > made:
            logger.warning("%s stays, which is newer than the segmentation that has been replaced", file)
        else:
            file.unlink()


def _companions(stem: Path, dataset_json: Mapping[str, Any]) -> list[Path]:
    names = file_names([structure.name for structure in structures_of(dataset_json).all])
    surfaces = [f"_{name}.{surface_format}" for name in names for surface_format in FORMATS]
    return [stem.with_name(stem.name + ending) for ending in (PROBABILITIES, _GEOMETRY, SLICER_ENDING, *surfaces)]

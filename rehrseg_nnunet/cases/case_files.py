"""Cases on disk in nnU-Net's blosc2 format, as nnU-Net's own dataset class and loader read them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.safe_files import FULL_DISK, move_into_place

SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # the properties come last: a case without them does not exist


def class_locations(labels: np.ndarray, label_manager: LabelManager) -> dict[Any, np.ndarray]:
    """Voxels of each class or region for nnU-Net's foreground oversampling, drawn by nnU-Net's own function.

    Args:
        labels: (1, D, H, W) integer label map.
        label_manager: nnU-Net's; with an ignore label, annotated voxels are a class of their own.
    """
    foreground = label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels
    annotated = [[-1, *label_manager.all_labels]] if label_manager.has_ignore_label else []
    groups: list[Any] = [*foreground, *annotated]
    return DefaultPreprocessor._sample_foreground_locations(labels, groups)


def open_array(file: Path) -> Any:
    """The image or the labels of a case, a blosc2.NDArray, which is read when indexed."""
    return blosc2.open(urlpath=str(file), mode="r")


def save_case(
    folder: Path,
    identifier: str,
    data: np.ndarray,
    labels: np.ndarray,
    properties: Mapping[str, Any],
    *,
    patch_size: Sequence[int],
    scratch: Path,
) -> dict[str, int]:
    """Write one case; under its final names only when it is complete.

    Args:
        folder: folder that holds nothing but cases.
        identifier: case name.
        data: (C, D, H, W) float32, finite.
        labels: (1, D, H, W) integer label map, -1 allowed.
        properties: stored beside; `class_locations` must be those of `labels`.
        patch_size: (D, H, W) that will be read at a time; sets the chunks.
        scratch: folder of this case alone to write into first, on the same disk; replaced if a killed process left it.

    Returns:
        Size of each file in bytes, by its name.

    Raises:
        OSError: the disk did not take all of it; a case of that name that was there before is untouched, or still has
            its former properties, which come last, if the disk fails between two files.
    """
    labels = labels.astype(np.int16 if labels.max(initial=0) > 127 else np.int8)
    shutil.rmtree(scratch, ignore_errors=True)
    names = [f"{identifier}{suffix}" for suffix in SUFFIXES]
    try:
        scratch.mkdir()
        _save_and_read_back(scratch / identifier, data, labels, properties, patch_size)
        folder.mkdir(exist_ok=True)
        sizes = {name: (scratch / name).stat().st_size for name in names}
        for name in names:
            move_into_place(scratch / name, folder / name)
        return sizes
    except (OSError, RuntimeError) as error:  # blosc2 reports a full disk as RuntimeError
        raise OSError(
            f"{folder / identifier}.b2nd could not be written completely ({error}); if the disk is full, {FULL_DISK}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_and_read_back(
    file: Path, data: np.ndarray, labels: np.ndarray, properties: Mapping[str, Any], patch_size: Sequence[int]
) -> None:
    """Write the three files; the arrays are compared with what is on the disk, as blosc2 may fail without a word."""
    blocks, chunks = comp_blosc2_params(data.shape, tuple(patch_size), data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, tuple(patch_size), labels.itemsize)
    nnUNetDatasetBlosc2.save_case(
        data,
        labels,
        dict(properties),
        str(file),
        chunks=chunks,
        blocks=blocks,
        chunks_seg=chunks_seg,
        blocks_seg=blocks_seg,
    )
    for suffix, array in zip(SUFFIXES, (data, labels), strict=False):
        stored = open_array(Path(f"{file}{suffix}"))
        if not all(np.array_equal(stored[channel], array[channel]) for channel in range(len(array))):
            raise OSError(f"{file.name}{suffix} differs from what was written")

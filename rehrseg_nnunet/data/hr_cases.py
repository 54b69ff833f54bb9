"""Thin-slice cases on disk in nnU-Net's blosc2 format, as nnU-Net's own dataset class and loader read them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

SUFFIXES = (".b2nd", "_seg.b2nd", ".pkl")  # the properties come last: a case without them does not exist


def hr_class_locations(labels: np.ndarray, label_manager: LabelManager) -> dict[Any, np.ndarray]:
    """Voxels of each class or region for nnU-Net's foreground oversampling, drawn by nnU-Net's own function.

    Args:
        labels: (1, D, H, W) integer label map.
        label_manager: nnU-Net's; with an ignore label, annotated voxels are a class of their own.
    """
    groups = list(label_manager.foreground_regions if label_manager.has_regions else label_manager.foreground_labels)
    if label_manager.has_ignore_label:
        groups.append([-1, *label_manager.all_labels])
    return DefaultPreprocessor._sample_foreground_locations(labels, groups)


def save_hr_case(
    folder: Path,
    identifier: str,
    data: np.ndarray,
    labels: np.ndarray,
    properties: Mapping[str, Any],
    *,
    patch_size: Sequence[int],
    scratch: Path | None = None,
) -> dict[str, int]:
    """Write one case; under its final names only when it is complete.

    Args:
        folder: folder that holds nothing but cases.
        identifier: case name.
        data: (C, D, H, W) float32.
        labels: (1, D, H, W) integer label map, -1 allowed.
        properties: stored beside; `class_locations` must be those of `labels`.
        patch_size: (D, H, W) that will be read at a time; sets the chunks.
        scratch: folder to write into first, on the same disk, replaced if a killed process left it; None takes a new
            one, for several processes that write the same case.

    Returns:
        Size of each file in bytes, by its name.
    """
    dtype = np.int16 if labels.max(initial=0) > 127 else np.int8
    blocks, chunks = comp_blosc2_params(data.shape, tuple(patch_size), data.itemsize)
    blocks_seg, chunks_seg = comp_blosc2_params(labels.shape, tuple(patch_size), np.dtype(dtype).itemsize)
    partial = _scratch_folder(scratch, folder, identifier)
    try:
        nnUNetDatasetBlosc2.save_case(
            data,
            labels.astype(dtype),
            dict(properties),
            str(partial / identifier),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=chunks_seg,
            blocks_seg=blocks_seg,
        )
        folder.mkdir(exist_ok=True)
        names = [f"{identifier}{suffix}" for suffix in SUFFIXES]
        sizes = {name: (partial / name).stat().st_size for name in names}
        for name in names:
            os.replace(partial / name, folder / name)
        return sizes
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _scratch_folder(scratch: Path | None, folder: Path, identifier: str) -> Path:
    if scratch is None:
        return Path(tempfile.mkdtemp(prefix=f".{identifier}.", dir=folder.parent))
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return scratch

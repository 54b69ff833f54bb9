"""Results replace segmentations, as nnU-Net's do, and nothing else: scans whose place in the call was mistaken stay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.imageio.base_reader_writer import BaseReaderWriter

from rehrseg_nnunet.nnunet.label_values import known_labels, label_manager_of, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError


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

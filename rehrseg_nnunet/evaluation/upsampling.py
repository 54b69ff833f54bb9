"""What thick-slice predictions give on the HR grid without any HR training: the rows REHRSeg is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.dataset_json import read_json
from rehrseg_nnunet.nnunet.raw_files import require_images
from rehrseg_nnunet.nnunet.whole_files import WholeFiles, WholeFilesPlansManager
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import interpolate, interpolate_logits

# the ways, and what tables call them
METHODS = {
    "nearest": "nearest",
    "linear": "linear probabilities",
    "signed_distance": "signed distance",
    "logits": "cubic logits",
}
CERTAIN = 1e-5  # probabilities closer to 0 or 1 are taken for this: their logits say how the network rounds


def upsample_in_every_way(
    source: Path,
    target: Callable[[str], Path],
    *,
    plans_file: Path,
    factor: int,
    axis: int,
    dataset_json: Mapping[str, Any],
) -> Iterator[tuple[str, Path]]:
    """Upsample a folder by each of `METHODS`; the arguments are those of `upsample_folder`.

    Args:
        source: nnU-Net predictions with probabilities.
        target: folder for the HR files of a method.
        plans_file: plans.json of the model that made the predictions.
        factor: r.
        axis: array axis of the slices in the files.
        dataset_json: nnU-Net's.

    Yields:
        What tables call the method, and its folder.
    """
    plans = WholeFilesPlansManager(read_json(plans_file, remedy="it lies beside the folds of every trained model"))
    for method, title in METHODS.items():
        upsample_folder(
            source,
            target(method),
            method=method,
            factor=factor,
            axis=axis,
            reader=plans.image_reader_writer_class(),
            label_manager=plans.get_label_manager(dict(dataset_json)),
            dataset_json=dataset_json,
        )
        yield title, target(method)


def upsample_folder(
    source: Path,
    target: Path,
    *,
    method: str,
    factor: int,
    axis: int,
    reader: WholeFiles,
    label_manager: LabelManager,
    dataset_json: Mapping[str, Any],
) -> None:
    """Upsample every segmentation of a folder r times along one axis, over the same field of view.

    Args:
        source: nnU-Net predictions; "linear" and "logits" need their probabilities (`--npz`, `--save_probabilities`).
        target: folder for the HR files.
        method: "nearest" (repeat slices), "linear" (interpolate probabilities, then decide), "signed_distance" (of the
            labels), or "logits" (cubic B-spline of the logits: a boundary moves from slice to slice, as with signed
            distances, but by fractions of a pixel).
        factor: r.
        axis: array axis of the slices in the files.
        reader: for the files.
        label_manager: nnU-Net's.
        dataset_json: nnU-Net's.

    Raises:
        ValueError: unknown method.
        FileNotFoundError: no predictions, or no probabilities.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    ending = dataset_json["file_ending"]
    files = require_images(source, ending)
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        labels, properties = reader.read_seg(str(file))
        if method == "nearest":
            hr = np.repeat(labels[0], factor, axis=axis)
        elif method == "signed_distance":
            hr = interpolate_labels(labels[0].astype(np.int16), factor, axis, spacing_mm=properties["spacing"])
        else:
            probabilities = _read_probabilities(source / f"{file.name.removesuffix(ending)}.npz")
            interpolated = _interpolate_probabilities if method == "linear" else _interpolate_logits
            hr = interpolated(probabilities, factor, 1 + axis, has_regions=label_manager.has_regions)
            hr = np.asarray(label_manager.convert_probabilities_to_segmentation(hr))
        reader.write_seg(hr, str(target / file.name), scale_slice_geometry(properties, axis, 1 / factor))


def _read_probabilities(file: Path) -> torch.Tensor:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: predict with probabilities (--npz or --save_probabilities)")
    return torch.from_numpy(np.load(file)["probabilities"].astype(np.float32))


def _interpolate_probabilities(
    probabilities: torch.Tensor, factor: int, axis: int, *, has_regions: bool
) -> torch.Tensor:
    return interpolate(probabilities, factor, axis, order=1)


def _interpolate_logits(probabilities: torch.Tensor, factor: int, axis: int, *, has_regions: bool) -> torch.Tensor:
    """(K, ...) probabilities of labels (softmax) or regions (sigmoid) to those of their interpolated logits."""
    if has_regions:
        return interpolate_logits(probabilities.logit(CERTAIN), factor, axis).sigmoid()
    return interpolate_logits(probabilities.clamp_min(CERTAIN).log(), factor, axis).softmax(0)

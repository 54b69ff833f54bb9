"""A case's logits on every output grid, and what is written there: nnU-Net's files and whatever else is asked for.

nnU-Net hands a case's logits to `export_prediction_from_logits`, mostly in a worker process. `exporting_with` puts
another function in its place while files are predicted. `export_on_grids` brings the logits onto each grid in turn and
lets nnU-Net's function write the segmentation there. Before it does, the `writers` see the same logits.

Convention:
    With one grid a case's files are named as nnU-Net names them, with several `<case>_<name of the grid>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from tqdm import tqdm

from rehrseg_nnunet.nnunet import whole_files
from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.configuration import GRIDS, HRConfigurationManager
from rehrseg_nnunet.prediction.output_grid import OutputGrid
from rehrseg_nnunet.prediction.replaced import replacing
from rehrseg_nnunet.slices.grids import LPS_RAS, grid_from_properties
from rehrseg_nnunet.surfaces.stored import STORED_LABELS

LABEL_KEYS = ("labels", "regions_class_order")


@dataclass(frozen=True, eq=False)
class PlacedCase:
    """A case on one output grid.

    Attributes:
        logits: (K, z, y, x), a view in the order of the file's array, of the part that was predicted: nnU-Net crops
            what is zero in every channel, and all around it is background.
        affine: (4, 4) from index (z, y, x, 1) in that array to mm, in RAS coordinates.
        label_manager: nnU-Net's; `has_regions` says whether probabilities are the sigmoid of the logits or their
            softmax over the first axis.
        dataset_json: the model's, with the labels' names.
        output: where to write, without ending. Files whose names begin with the last part of it appear beside the
            segmentation, and not before the whole case does.
    """

    logits: np.ndarray
    affine: np.ndarray
    label_manager: Any
    dataset_json: dict[str, Any]
    output: str


class Writer(Protocol):
    """What else is written for a case on a grid, surfaces for example; travels to worker processes.

    It is called for every case and grid in the process that writes the segmentation, just before that is written. What
    it raises is handled as if nnU-Net's export had raised it.
    """

    def __call__(self, case: PlacedCase, /) -> None:
        """Write files whose names begin with `case.output`."""


def stems(output: str, grids: Sequence[OutputGrid]) -> list[str]:
    """Where each grid's files of a case go, without ending."""
    return whole_files.stems(output, [grid.name for grid in grids])


@contextmanager
def exporting_with(export: Callable[..., None]) -> Iterator[None]:
    """nnU-Net's predictor exports with another function, which takes the same arguments and travels to workers."""
    stock = predict_from_raw_data.export_prediction_from_logits
    predict_from_raw_data.export_prediction_from_logits = export
    try:
        yield
    finally:
        predict_from_raw_data.export_prediction_from_logits = stock


class _Bar(tqdm):
    """A progress bar that says what it counts and goes when it is done; none for a single step."""

    def __init__(self, *args: Any, desc: str | None = None, total: int = 0, disable: bool = False, **kwargs: Any):
        desc = desc or "patches"
        super().__init__(*args, desc=desc, total=total, disable=disable or total == 1, leave=False, **kwargs)


@contextmanager
def short_bars() -> Iterator[None]:
    """nnU-Net's predictor shows `_Bar`s: it has one for every fold and slice phase of a case."""
    stock = predict_from_raw_data.tqdm
    predict_from_raw_data.tqdm = _Bar
    try:
        yield
    finally:
        predict_from_raw_data.tqdm = stock


def export_on_grids(
    logits: Logits,
    properties: dict[str, Any],
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict[str, Any],
    output: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """nnU-Net's export, on every grid of the configuration.

    Args:
        logits: (K, r*D_p, H_p, W_p).
        properties: from `HRConfigurationManager.output_properties`.
        configuration_manager: of a prediction on several grids; with another one it is nnU-Net's export.
        plans_manager: nnU-Net's.
        dataset_json: of the model.
        output: of the case, without ending.
        save_probabilities: write them too.
        num_threads_torch: of this process.
    """
    rest = (plans_manager, dataset_json)
    options = {"save_probabilities": save_probabilities, "num_threads_torch": num_threads_torch}
    if not isinstance(configuration_manager, HRConfigurationManager):
        export_prediction_from_logits(logits, properties, configuration_manager, *rest, output, **options)
        return
    grids = configuration_manager.grids
    ending = dataset_json["file_ending"]
    labels = {key: dataset_json[key] for key in LABEL_KEYS if key in dataset_json}
    for grid, own, stem in zip(grids, properties[GRIDS], stems(output, grids), strict=True):
        Path(stem).parent.mkdir(parents=True, exist_ok=True)
        with replacing(whole_files.final_name(Path(stem + ending)), ending, dataset_json):
            with _threads(num_threads_torch):
                placed = configuration_manager.place(grid, logits, own, plans_manager)
                show_writers(configuration_manager.writers, placed, own, plans_manager, dataset_json, stem)
            # nnU-Net saves them beside probabilities, which can be used without the model then
            own = {**own, STORED_LABELS: labels}
            export_prediction_from_logits(placed, own, configuration_manager.placed(), *rest, stem, **options)


def show_writers(
    writers: Sequence[Writer],
    logits: Logits,
    properties: dict[str, Any],
    plans_manager: Any,
    dataset_json: dict[str, Any],
    stem: str,
) -> None:
    """Call writers for a case on a grid.

    Args:
        writers: what to call.
        logits: (K, ...) on the grid.
        properties: of the grid's file.
        plans_manager: nnU-Net's.
        dataset_json: of the model.
        stem: of the case's files on the grid.
    """
    if not writers:
        return
    back = [int(axis) for axis in plans_manager.transpose_backward]
    values = np.asarray(logits).transpose(0, *(axis + 1 for axis in back))
    first = [properties["bbox_used_for_cropping"][axis][0] for axis in back]
    affine = LPS_RAS @ grid_from_properties(properties, values.shape[1:]).affine
    affine[:3, 3] += affine[:3, :3] @ first
    case = PlacedCase(values, affine, plans_manager.get_label_manager(dataset_json), dataset_json, stem)
    for write in writers:
        write(case)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)

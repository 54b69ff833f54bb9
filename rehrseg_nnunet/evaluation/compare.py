"""Compare files and folders with a reference. What is computed is in ``metrics``, what is averaged in ``summary``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key, region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import (
    determine_reader_writer_from_dataset_json,
    determine_reader_writer_from_file_ending,
)
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.evaluation.metrics import HAUSDORFF_PERCENTILE, SSIM_SIGMA, SSIM_WINDOW, dice, hd95, psnr, ssim
from rehrseg_nnunet.evaluation.pairing import Pair, pair_files, short_names
from rehrseg_nnunet.evaluation.summary import IMAGE_METRICS, SEGMENTATION_METRICS, method_summary, paired_test
from rehrseg_nnunet.slices.grids import TOLERANCE_MM, Grid, grid_from_properties, onto_reference

Label = int | tuple[int, ...]


def read_volume(file: str, reader: BaseReaderWriter, *, segmentation: bool) -> tuple[np.ndarray, Grid]:
    """Read a file with one of nnU-Net's readers.

    Returns:
        The volume, shape (D, H, W), and its grid.

    Raises:
        ValueError: the file has several channels, is not 2D or 3D, or holds values that are not finite.
    """
    array, properties = reader.read_seg(file) if segmentation else reader.read_images([file])
    if array.ndim != 4 or array.shape[0] != 1:
        raise ValueError(f"{file} must hold one channel, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{file} must be finite everywhere, got nan or inf in it")
    return array[0], grid_from_properties(properties, array.shape[1:])


def read_pair(
    reference_file: str, prediction_file: str, reader: BaseReaderWriter | None, *, segmentation: bool
) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Read two files that must have the same physical points.

    Returns:
        Reference, prediction in the order of the reference's voxels, and the reference's grid.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: as for :func:`read_volume`, or the grids differ.
    """
    for file in (reference_file, prediction_file):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file} does not exist")
    reader = reader or _reader_for(reference_file)
    reference, reference_grid = read_volume(reference_file, reader, segmentation=segmentation)
    prediction, grid = read_volume(prediction_file, reader, segmentation=segmentation)
    prediction = onto_reference(prediction, grid, reference_grid, file=prediction_file, reference_file=reference_file)
    return reference, prediction, reference_grid


def _reader_for(file: str) -> BaseReaderWriter:
    ending = "".join(Path(file).suffixes[-2 if file.endswith(".gz") else -1 :])
    return determine_reader_writer_from_file_ending(ending, file, verbose=False)()


def evaluate_case(
    reference_file: str | Path,
    prediction_file: str | Path,
    labels_or_regions: Sequence[Label],
    ignore_label: int | None = None,
    *,
    reader: BaseReaderWriter | None = None,
) -> dict[str, Any]:
    """Dice and HD95 of one segmentation for each label or region.

    Voxels that have the ignore label in the reference do not count for Dice and are background in both masks for
    HD95: a structure that is cut by an ignored area gets a surface there in both.

    Args:
        reference_file: file with the reference labels.
        prediction_file: file with the predicted labels.
        labels_or_regions: labels, or tuples of labels whose union is a region.
        ignore_label: label of voxels that do not count; None if there is none.
        reader: nnU-Net's reader for both files; None chooses by the file's ending.

    Returns:
        ``reference_file``, ``prediction_file`` and ``metrics``: for each label or region, by nnU-Net's key (``"1"``,
        ``"(1, 2)"``), ``Dice``, ``HD95`` in mm, and the voxel counts ``n_ref`` and ``n_pred``.

    Raises:
        ValueError: the files' grids differ, or a file does not hold one finite volume.
    """
    files = str(reference_file), str(prediction_file)
    reference, prediction, grid = read_pair(*files, reader, segmentation=True)
    valid = np.ones(reference.shape, dtype=bool) if ignore_label is None else reference != ignore_label
    metrics = {}
    for label in labels_or_regions:
        first = region_or_label_to_mask(reference, label) & valid
        second = region_or_label_to_mask(prediction, label) & valid
        metrics[_key(label)] = {
            "Dice": dice(first, second),
            "HD95": hd95(first, second, grid.spacing_mm),
            "n_ref": int(first.sum()),
            "n_pred": int(second.sum()),
        }
    return {"reference_file": files[0], "prediction_file": files[1], "metrics": metrics}


def evaluate_image(
    reference_file: str | Path,
    prediction_file: str | Path,
    *,
    channel: int = 0,
    reader: BaseReaderWriter | None = None,
) -> dict[str, Any]:
    """PSNR and SSIM of one image; the data range is the reference's maximum minus its minimum.

    Args:
        reference_file: file with the reference image.
        prediction_file: file with the predicted image.
        channel: key of the result.
        reader: nnU-Net's reader for both files; None chooses by the file's ending.

    Returns:
        ``reference_file``, ``prediction_file`` and ``metrics``: under the channel ``PSNR`` in dB, ``SSIM`` and
        ``data_range``. Both metrics are nan for a constant reference.

    Raises:
        ValueError: the files' grids differ, or a file does not hold one finite volume.
    """
    files = str(reference_file), str(prediction_file)
    reference, prediction, _ = read_pair(*files, reader, segmentation=False)
    data_range = float(np.ptp(reference.astype(np.float64)))
    values = {
        "PSNR": psnr(reference, prediction, data_range=data_range),
        "SSIM": ssim(reference, prediction, data_range=data_range),
        "data_range": data_range,
    }
    return {"reference_file": files[0], "prediction_file": files[1], "metrics": {str(channel): values}}


def evaluate_folders(
    reference_folder: Path,
    methods: Mapping[str, Sequence[Path]],
    *,
    dataset_json: Mapping[str, Any],
    plans_file: str | None = None,
    images: bool = False,
    chill: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Compare one or more methods with a folder of references.

    Args:
        reference_folder: folder with the reference files.
        methods: for each method's name its folders: one, or one for each fold.
        dataset_json: content of nnU-Net's dataset.json (labels, channel names, file ending).
        plans_file: nnU-Net plans that name the reader and the label manager; None derives both from dataset.json.
        images: compare images (PSNR, SSIM) instead of segmentations (Dice, HD95).
        chill: compare only the files that have a partner instead of refusing the rest.
        workers: cases that are compared at the same time.

    Returns:
        A dictionary for :func:`rehrseg_nnunet.evaluation.tables.write_summary`: ``settings``; ``methods``, with
        ``over_cases``, ``over_folds`` and ``folds`` (the single cases) for each; ``paired``, each method against the
        first. Statistics are described in ``summary``.

    Raises:
        FileNotFoundError: folders or files are missing.
        ValueError: a pair of files does not have the same physical points, dataset.json is incomplete, or there is no
            method.
    """
    if not methods:
        raise ValueError("methods must not be empty, got none")
    channels = _channel_names(dataset_json) if images else None
    pairs = {
        name: pair_files(
            reference_folder,
            dict(zip(short_names(folders), folders, strict=True)),
            file_ending=_require_key(dataset_json, "file_ending"),
            num_channels=None if channels is None else len(channels),
            chill=chill,
        )
        for name, folders in methods.items()
    }
    flat = [pair for folds in pairs.values() for fold_pairs in folds.values() for pair in fold_pairs]
    plans = None if plans_file is None else PlansManager(plans_file)
    reader = _reader_class(dataset_json, plans, example=flat[0].reference)()
    if channels is None:
        labels, settings = _segmentation_settings(dataset_json, plans)
        compare = partial(_compare_labels, labels=labels, ignore_label=settings["ignore_label"], reader=reader)
    else:
        settings = _image_settings(channels)
        compare = partial(_compare_images, reader=reader)
    settings |= {"reference_folder": str(reference_folder), "reader": type(reader).__name__}
    results = iter(_map(compare, flat, workers))
    cases = {
        name: {fold: [next(results) for _ in fold_pairs] for fold, fold_pairs in folds.items()}
        for name, folds in pairs.items()
    }
    return _assemble(cases, methods, settings | {"grid_tolerance_mm": TOLERANCE_MM})


def _assemble(
    cases: Mapping[str, Mapping[str, list[dict]]], methods: Mapping[str, Sequence[Path]], settings: dict[str, Any]
) -> dict[str, Any]:
    labels, metrics = list(settings["labels"]), settings["metrics"]
    summary: dict[str, Any] = {"settings": settings, "methods": {}, "paired": []}
    for name, folds in cases.items():
        folders = dict(zip(folds, methods[name], strict=True))
        summary["methods"][name] = method_summary(folds, folders, labels=labels, metrics=metrics)
    first, *others = cases
    for name in others:
        for metric in metrics:
            test = paired_test(cases[name], cases[first], labels=labels, metric=metric)
            summary["paired"].append({"name": name, "against": first, "metric": metric, **test})
    return summary


def _compare_labels(
    pair: Pair, *, labels: Sequence[Label], ignore_label: int | None, reader: BaseReaderWriter
) -> dict[str, Any]:
    return {"case": pair.case, **evaluate_case(pair.reference, pair.prediction, labels, ignore_label, reader=reader)}


def _compare_images(pair: Pair, *, reader: BaseReaderWriter) -> dict[str, Any]:
    return {
        "case": pair.case,
        **evaluate_image(pair.reference, pair.prediction, channel=pair.channel, reader=reader),
    }


def _map(function: Any, pairs: Sequence[Pair], workers: int) -> list[dict[str, Any]]:
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    # Threads that import a large package at the same time can see it half initialised: import it before they start.
    import monai.metrics  # noqa: F401

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, pair) for pair in pairs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # Do not finish hours of comparisons before reporting the first bad file.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _require_key(dataset_json: Mapping[str, Any], key: str) -> Any:
    if key not in dataset_json:
        raise ValueError(f"dataset.json must have the key {key}, got {sorted(dataset_json)}")
    return dataset_json[key]


def _channel_names(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    # nnU-Net accepts the name that this key had in its first version.
    names = _require_key(dataset_json, "modality" if "modality" in dataset_json else "channel_names")
    return {str(channel): str(name) for channel, name in names.items()}


def _reader_class(
    dataset_json: Mapping[str, Any], plans: PlansManager | None, *, example: Path
) -> type[BaseReaderWriter]:
    if plans is not None:
        return plans.image_reader_writer_class
    return determine_reader_writer_from_dataset_json(dict(dataset_json), str(example), verbose=False)


def _image_settings(channels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "labels": dict(channels),
        "metrics": list(IMAGE_METRICS),
        "data_range": "maximum - minimum of each reference image",
        "ssim_window": SSIM_WINDOW,
        "ssim_sigma": SSIM_SIGMA,
    }


def _segmentation_settings(
    dataset_json: Mapping[str, Any], plans: PlansManager | None
) -> tuple[list[Label], dict[str, Any]]:
    names = _require_key(dataset_json, "labels")
    try:
        if plans is None:
            manager = LabelManager(names, dataset_json.get("regions_class_order"))
        else:
            manager = plans.get_label_manager(dict(dataset_json))
    except AssertionError as error:
        raise ValueError(f"labels of dataset.json must be what nnU-Net accepts, got {names}: {error}") from error
    regions = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    labels = [tuple(region) if isinstance(region, (tuple, list)) else int(region) for region in regions]
    if not labels:
        raise ValueError(f"labels of dataset.json must have one beside the background, got {names}")
    settings = {
        "labels": {_key(label): _label_name(label, names) for label in labels},
        "metrics": list(SEGMENTATION_METRICS),
        "hausdorff_percentile": HAUSDORFF_PERCENTILE,
        "ignore_label": manager.ignore_label,
    }
    return labels, settings


def _label_name(label: Label, names: Mapping[str, Any]) -> str:
    for name, value in names.items():
        if label == (tuple(value) if isinstance(value, (tuple, list)) else value) or [label] == value:
            return name
    return _key(label)


def _key(label: Label) -> str:
    return label_or_region_to_key(label)  # pyright: ignore[reportArgumentType] # nnU-Net says Tuple[int], means any length


def default_workers() -> int:
    """nnU-Net's number of processes (``nnUNet_def_n_proc``), at most one for each CPU core."""
    from nnunetv2.configuration import default_num_processes

    return max(1, min(default_num_processes, os.cpu_count() or 1))

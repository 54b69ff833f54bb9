"""Compare files and folders with a reference. What is computed is in ``metrics``, what is averaged in ``summary``."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key, region_or_label_to_mask
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.evaluation.metrics import SSIM_SIGMA, SSIM_WINDOW, dice, psnr, ssim, volume_bias
from rehrseg_nnunet.evaluation.pairing import Pair, pair_files, short_names
from rehrseg_nnunet.evaluation.summary import (
    IMAGE_METRICS,
    SEGMENTATION_METRICS,
    corrected_tests,
    method_summary,
    paired_test,
)
from rehrseg_nnunet.evaluation.surfaces import HAUSDORFF_PERCENTILE, assd, hd95, in_plane_mm, nsd
from rehrseg_nnunet.nnunet.dataset_json import check_keys, read_json
from rehrseg_nnunet.nnunet.label_values import describe_unknown, known_labels, label_manager_of, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import say_left_out
from rehrseg_nnunet.nnunet.whole_files import WholeFiles, WholeFilesPlansManager, whole_files_of
from rehrseg_nnunet.slices.grids import TOLERANCE_VOXELS, Grid, grid_from_properties, onto_reference

logger = logging.getLogger(__name__)

PLANS_REMEDY = "name the plans file of a model"

Label = int | tuple[int, ...]


def read_pair(
    reference_file: str, prediction_file: str, reader: WholeFiles | None, *, segmentation: bool
) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Read two files that must have the same physical points.

    Returns:
        Reference, prediction in the order of the reference's voxels, both (D, H, W), and the reference's grid.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: a file that cannot be used, see `WholeFiles`, or the grids differ.
    """
    for file in (reference_file, prediction_file):
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file} does not exist")
    if reader is None:
        ending = "".join(Path(reference_file).suffixes[-2 if reference_file.endswith(".gz") else -1 :])
        reader = whole_files_of({"file_ending": ending}, Path(reference_file))
    (reference, reference_grid), (prediction, grid) = (
        _read(file, reader, segmentation=segmentation) for file in (reference_file, prediction_file)
    )
    prediction = onto_reference(prediction, grid, reference_grid, file=prediction_file, reference_file=reference_file)
    return reference, prediction, reference_grid


def _read(file: str, reader: WholeFiles, *, segmentation: bool) -> tuple[np.ndarray, Grid]:
    array, properties = reader.read_seg(file) if segmentation else reader.read_images([file])
    return array[0], grid_from_properties(properties, array.shape[1:])


def evaluate_case(
    reference_file: str | Path,
    prediction_file: str | Path,
    labels_or_regions: Sequence[Label],
    ignore_label: int | None = None,
    *,
    known: Collection[int] | None = None,
    reader: WholeFiles | None = None,
    tolerance_mm: float | None = None,
) -> dict[str, Any]:
    """Overlap, distances of surfaces and volume of one segmentation for each label or region.

    Voxels that have the ignore label in the reference do not count for overlap and volume and are background in both
    masks for distances: a structure that is cut by an ignored area gets a surface there in both.

    Args:
        reference_file: file with the reference labels.
        prediction_file: file with the predicted labels.
        labels_or_regions: labels, or tuples of labels whose union is a region.
        ignore_label: label of voxels that do not count; None if there is none.
        known: all labels of dataset.json; None does not look for others.
        reader: for both files; None chooses by the file's ending.
        tolerance_mm: of the surface overlap; None: one pixel of the reference's slices.

    Returns:
        ``reference_file``, ``prediction_file`` and ``metrics``: for each label or region, by nnU-Net's key (``"1"``,
        ``"(1, 2)"``), ``Dice``, ``HD95`` in mm, ``NSD``, ``ASSD`` in mm, ``VolumeBias`` in percent, and the voxel
        counts ``n_ref`` and ``n_pred``. Where a file has labels that are not known, also ``unknown_labels`` by file.

    Raises:
        ValueError: the files' grids differ, or a file cannot be used.
    """
    files = str(reference_file), str(prediction_file)
    reference, prediction, grid = read_pair(*files, reader, segmentation=True)
    valid = np.ones(reference.shape, dtype=bool) if ignore_label is None else reference != ignore_label
    metrics = {}
    for label in labels_or_regions:
        first = region_or_label_to_mask(reference, label) & valid
        second = region_or_label_to_mask(prediction, label) & valid
        metrics[_key(label)] = _mask_metrics(first, second, grid.spacing_mm, tolerance_mm=tolerance_mm)
    result = {"reference_file": files[0], "prediction_file": files[1], "metrics": metrics}
    if known is None:
        return result
    unknown = {file: unknown_labels(labels, known) for file, labels in zip(files, (reference, prediction), strict=True)}
    unknown = {file: labels for file, labels in unknown.items() if labels}
    return {**result, "unknown_labels": unknown} if unknown else result


def _mask_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float], *, tolerance_mm: float | None
) -> dict[str, float]:
    tolerance_mm = in_plane_mm(spacing_mm) if tolerance_mm is None else tolerance_mm
    return {
        "Dice": dice(reference, prediction),
        "HD95": hd95(reference, prediction, spacing_mm),
        "NSD": nsd(reference, prediction, spacing_mm, tolerance_mm=tolerance_mm),
        "ASSD": assd(reference, prediction, spacing_mm),
        "VolumeBias": volume_bias(reference, prediction),
        "n_ref": int(reference.sum()),
        "n_pred": int(prediction.sum()),
    }


def evaluate_image(
    reference_file: str | Path,
    prediction_file: str | Path,
    *,
    channel: int = 0,
    reader: WholeFiles | None = None,
) -> dict[str, Any]:
    """PSNR and SSIM of one image; the data range is the reference's maximum minus its minimum.

    Args:
        reference_file: file with the reference image.
        prediction_file: file with the predicted image.
        channel: key of the result.
        reader: for both files; None chooses by the file's ending.

    Returns:
        ``reference_file``, ``prediction_file`` and ``metrics``: under the channel ``PSNR`` in dB, ``SSIM`` and
        ``data_range``. Both metrics are nan for a constant reference.

    Raises:
        ValueError: the files' grids differ, or a file cannot be used.
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
    tolerance_mm: float | None = None,
) -> dict[str, Any]:
    """Compare one or more methods with a folder of references.

    Args:
        reference_folder: folder with the reference files.
        methods: for each method's name its folders: one, or one for each fold.
        dataset_json: content of nnU-Net's dataset.json (labels, channel names, file ending).
        plans_file: nnU-Net plans that name the reader and the label manager; None derives both from dataset.json.
        images: compare images (PSNR, SSIM) instead of segmentations.
        chill: compare only the files that have a partner instead of refusing the rest.
        workers: cases that are compared at the same time.
        tolerance_mm: of the surface overlap; None: one pixel of each reference's slices.

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
    check_keys(dataset_json, required=("file_ending", "channel_names" if images else "labels"))
    ending = dataset_json["file_ending"]
    channels = dict(dataset_json["channel_names"]) if images else None
    for folder in {Path(folder) for folders in ([reference_folder], *methods.values()) for folder in folders}:
        if folder.is_dir():
            say_left_out(folder, ending)
    how = {"file_ending": ending, "num_channels": None if channels is None else len(channels), "chill": chill}
    pairs = {
        name: pair_files(reference_folder, dict(zip(short_names(folders), folders, strict=True)), **how)
        for name, folders in methods.items()
    }
    flat = [pair for folds in pairs.values() for fold_pairs in folds.values() for pair in fold_pairs]
    plans = None if plans_file is None else _read_plans(Path(plans_file))
    reader = whole_files_of(dataset_json, flat[0].reference) if plans is None else plans.image_reader_writer_class()
    if channels is None:
        manager = label_manager_of(dataset_json)
        if plans is not None:
            manager = plans.get_label_manager(dict(dataset_json))
        labels, settings = _segmentation_settings(dataset_json["labels"], manager)
        known, ignore_label = known_labels(manager), manager.ignore_label
        how = {"ignore_label": ignore_label, "known": known, "reader": reader, "tolerance_mm": tolerance_mm}
        compare = partial(_compare_labels, labels=labels, how=how)
        settings["nsd_tolerance_mm"] = tolerance_mm
    else:
        settings = _image_settings(channels)
        compare = partial(_compare_images, reader=reader)
    settings |= {"reference_folder": str(reference_folder), "reader": reader.plain.__name__}
    compared = _map(compare, flat, workers)
    _say_unknown_labels(compared)
    results = iter(compared)
    cases = {
        name: {fold: [next(results) for _ in fold_pairs] for fold, fold_pairs in folds.items()}
        for name, folds in pairs.items()
    }
    return _assemble(cases, methods, settings | {"grid_tolerance_voxels": TOLERANCE_VOXELS})


def _read_plans(file: Path) -> WholeFilesPlansManager:
    content = read_json(file, remedy=PLANS_REMEDY)
    if "image_reader_writer" not in content:
        raise ValueError(f"{file} must be nnU-Net plans, got no image_reader_writer in it; {PLANS_REMEDY}")
    return WholeFilesPlansManager(content)


def _say_unknown_labels(results: Sequence[Mapping[str, Any]]) -> None:
    """Once for every file; nnU-Net's evaluation does not mention them."""
    unknown = {file: labels for result in results for file, labels in result.get("unknown_labels", {}).items()}
    for file, labels in unknown.items():
        logger.warning("%s %s: these voxels count as no label", file, describe_unknown(labels))


def _assemble(
    cases: Mapping[str, Mapping[str, list[dict]]], methods: Mapping[str, Sequence[Path]], settings: dict[str, Any]
) -> dict[str, Any]:
    labels, metrics = list(settings["labels"]), settings["metrics"]
    summary: dict[str, Any] = {"settings": settings, "methods": {}, "paired": []}
    for name, folds in cases.items():
        folders = dict(zip(folds, methods[name], strict=True))
        summary["methods"][name] = method_summary(folds, folders, labels=labels, metrics=metrics)
    first, *others = cases
    for metric in metrics:
        tests = {name: paired_test(cases[name], cases[first], labels=labels, metric=metric) for name in others}
        for name, test in corrected_tests(tests).items():
            summary["paired"].append({"name": name, "against": first, "metric": metric, **test})
    return summary


def _compare_labels(pair: Pair, *, labels: Sequence[Label], how: Mapping[str, Any]) -> dict[str, Any]:
    return {"case": pair.case, **evaluate_case(pair.reference, pair.prediction, labels, **how)}


def _compare_images(pair: Pair, *, reader: WholeFiles) -> dict[str, Any]:
    return {
        "case": pair.case,
        **evaluate_image(pair.reference, pair.prediction, channel=pair.channel, reader=reader),
    }


def _map(function: Any, pairs: Sequence[Pair], workers: int) -> list[dict[str, Any]]:
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    # Threads that import a large package at the same time can see it half initialised: import it before they start.
    import monai.metrics  # noqa: F401

    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:
        # monai 1.6 warns about an argument that its own code passes
        warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
        futures = [pool.submit(function, pair) for pair in pairs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # Do not finish hours of comparisons before reporting the first bad file.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _image_settings(channels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "labels": dict(channels),
        "metrics": list(IMAGE_METRICS),
        "data_range": "maximum - minimum of each reference image",
        "ssim_window": SSIM_WINDOW,
        "ssim_sigma": SSIM_SIGMA,
    }


def _segmentation_settings(names: Mapping[str, Any], manager: LabelManager) -> tuple[list[Label], dict[str, Any]]:
    regions = manager.foreground_regions if manager.has_regions else manager.foreground_labels
    labels = [
        tuple(int(label) for label in region) if isinstance(region, (tuple, list)) else int(region)
        for region in regions
    ]
    if not labels:
        raise ValueError(f"labels of dataset.json must have one beside the background, got {dict(names)}")
    settings = {
        "labels": {_key(label): _label_name(label, names) for label in labels},
        "metrics": list(SEGMENTATION_METRICS),
        "hausdorff_percentile": HAUSDORFF_PERCENTILE,
        "ignore_label": manager.ignore_label,
    }
    return labels, settings


def _label_name(label: Label, names: Mapping[str, Any]) -> str:
    """Name of a label, which dataset.json may also give as a list of one, or as text, which nnU-Net takes too."""
    wanted = label if isinstance(label, tuple) else (label,)
    for name, value in names.items():
        if wanted == tuple(int(part) for part in (value if isinstance(value, (tuple, list)) else [value])):
            return name
    return _key(label)


def _key(label: Label) -> str:
    return label_or_region_to_key(label)  # pyright: ignore[reportArgumentType] # nnU-Net says Tuple[int], means any length


def default_workers() -> int:
    """nnU-Net's number of processes (``nnUNet_def_n_proc``), at most one for each CPU core."""
    from nnunetv2.configuration import default_num_processes

    return max(1, min(default_num_processes, os.cpu_count() or 1))

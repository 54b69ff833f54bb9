"""Restored thin slices beside plain interpolation and the truth: the scores, the true volumes, the report of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.evaluation.metrics import dice, psnr, ssim
from rehrseg_nnunet.evaluation.tables import format_table
from rehrseg_nnunet.nnunet.label_channels import LabelGroup, head_labels
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.whole_files import whole_files
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import interpolate

Row = dict[str, float]
Volumes = tuple[np.ndarray, np.ndarray]  # image (C, D, H, W) and labels (1, D, H, W)
NEAREST, SIGNED_DISTANCE = "B-spline + nearest", "B-spline + signed distance"
MIN_R_SQUARED = 1 - 1e-6  # leaves room for float32, not for a few clipped voxels


@dataclass(frozen=True)
class Comparison:
    """A thick-slice case and what it should be restored to.

    Attributes:
        name: of the kind of comparison.
        lr: image (C, D, H, W) and labels (1, D, H, W).
        truth: image (C, r*D, H, W) and labels (1, r*D, H, W).
        spacing_mm: of the thick-slice grid.
    """

    name: str
    lr: Volumes
    truth: Volumes
    spacing_mm: Sequence[float]

    @property
    def factor(self) -> int:
        """The factor r."""
        return self.truth[0].shape[1] // self.lr[0].shape[1]


def method_scores(
    comparison: Comparison, restored: Mapping[str, Volumes], label_manager: LabelManager
) -> dict[str, Row]:
    """Score a case, restored by one or more methods and by plain interpolation in two ways.

    Args:
        comparison: the case and the truth.
        restored: method to image (C, r*D, H, W) and labels (1, r*D, H, W).
        label_manager: nnU-Net's.

    Returns:
        For each method, plain interpolation first: psnr (dB), ssim (both over all channels that are not constant, data
        range: the true channel's max - min) and dice (mean over the classes or regions that occur). Voxels count for
        the Dice where the truth and the nearest LR slice are annotated: elsewhere no method has a label.
    """
    image, labels = comparison.lr
    factor, truth = comparison.factor, comparison.truth
    nearest = np.repeat(labels, factor, axis=1)
    valid = None
    if label_manager.has_ignore_label:
        valid = (truth[1] != label_manager.ignore_label) & (nearest != label_manager.ignore_label)
    spline = interpolate(torch.from_numpy(image.astype(np.float32)), factor, 1).numpy()
    distance = interpolate_labels(labels[0], factor, 0, spacing_mm=comparison.spacing_mm)[None]
    methods = {NEAREST: (spline, nearest), SIGNED_DISTANCE: (spline, distance), **restored}
    groups = head_labels(label_manager)
    return {method: _scores(volumes, truth, groups, valid) for method, volumes in methods.items()}


def _scores(volumes: Volumes, truth: Volumes, groups: Sequence[LabelGroup], valid: np.ndarray | None) -> Row:
    (image, labels), (true_image, true_labels) = volumes, truth
    ranges = [float(np.ptp(channel)) for channel in true_image]
    channels = list(zip(true_image, image, ranges, strict=True))
    overlaps = [
        dice(np.isin(true_labels, group), np.isin(labels, group), valid=valid) for group in groups if group != (0,)
    ]
    return {
        "psnr": _mean([psnr(t, i, data_range=span) for t, i, span in channels]),
        "ssim": _mean([ssim(t, i, data_range=span) for t, i, span in channels]),
        "dice": _mean(overlaps),
    }


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are defined: constant channels and absent classes have none; nan if none is."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def load_volumes(dataset: Cases, identifier: str) -> Volumes:
    """Image float32 and labels int16 of a case, read whole."""
    image, labels, _, _ = dataset.load_case(identifier)
    return np.asarray(image[:], dtype=np.float32), np.asarray(labels[:]).astype(np.int16)


def true_hr_case(
    planned: PlannedDataset, identifier: str, lr_image: np.ndarray, properties: Mapping[str, Any]
) -> Volumes | None:
    """The true HR volumes of a case in the frame of its preprocessed LR image, or None where they cannot be had.

    The files are transposed and cropped as nnU-Net did with the LR case; intensities go through the linear map that
    took the raw LR image to the preprocessed one. None: no HR files, or files of another factor, or the case was
    resampled, or its normalisation is not linear (e.g. clipped CT).

    Args:
        planned: the dataset under its plans.
        identifier: case.
        lr_image: (C, D, H, W) preprocessed.
        properties: the preprocessed case's.
    """
    if planned.raw_folder is None:
        return None
    factor, raw_folder, plans_manager = planned.factor, planned.raw_folder, planned.plans_manager
    ending = planned.dataset_json["file_ending"]
    channels = [f"{identifier}_{c:04d}{ending}" for c in range(lr_image.shape[0])]
    hr_files = [raw_folder / "imagesTrHR" / name for name in channels]
    label_file = raw_folder / "labelsTrHR" / f"{identifier}{ending}"
    if not all(file.is_file() for file in (*hr_files, label_file)):
        return None
    if tuple(properties["shape_after_cropping_and_before_resampling"]) != lr_image.shape[1:]:
        return None
    reader = whole_files(plans_manager.image_reader_writer_class)()
    order = [0, *(1 + axis for axis in plans_manager.transpose_forward)]
    lr_files = [raw_folder / "imagesTr" / name for name in channels]
    raw, image = (reader.read_images([str(f) for f in files])[0].transpose(order) for files in (lr_files, hr_files))
    labels = reader.read_seg(str(label_file))[0].transpose(order)
    if not image.shape[1:] == labels.shape[1:] == (raw.shape[1] * factor, *raw.shape[2:]):
        return None
    box = properties["bbox_used_for_cropping"]
    crop = (slice(None), *(slice(*edges) for edges in box))
    hr_crop = (slice(None), slice(*(edge * factor for edge in box[0])), *crop[2:])
    maps = [_linear_map(before, after) for before, after in zip(raw[crop], lr_image, strict=True)]
    linear = [pair for pair in maps if pair is not None]
    if len(linear) < len(maps):
        return None
    scaled = [scale * channel + shift for channel, (scale, shift) in zip(image[hr_crop], linear, strict=True)]
    return np.stack(scaled).astype(np.float32), labels[hr_crop].astype(np.int16)


def _linear_map(raw: np.ndarray, preprocessed: np.ndarray) -> tuple[float, float] | None:
    """(scale, shift) with preprocessed = scale * raw + shift, None if that does not explain the image."""
    x, y = raw.ravel().astype(np.float64), preprocessed.ravel().astype(np.float64)
    if np.ptp(x) == 0 or np.corrcoef(x, y)[0, 1] ** 2 < MIN_R_SQUARED:
        return None
    scale, shift = np.polyfit(x, y, 1)
    return float(scale), float(shift)


def mean_scores(cases: Sequence[Mapping[str, Row]]) -> dict[str, Row]:
    """Mean over cases of every method's scores, nan left out."""
    result: dict[str, Row] = {}
    for method in cases[0] if cases else ():
        keys = cases[0][method]
        result[method] = {key: _mean([case[method][key] for case in cases]) for key in keys}
    return result


@dataclass(frozen=True)
class RestorationReport:
    """Mean scores over the validation cases.

    Attributes:
        comparisons: comparison name to method to scores.
        cases: comparison name to number of cases (and axes).
    """

    comparisons: dict[str, dict[str, Row]]
    cases: dict[str, int]

    @classmethod
    def of_cases(cls, scores: Mapping[str, Sequence[dict[str, Row]]]) -> RestorationReport:
        """From the scores of single cases, by comparison name."""
        return cls(
            comparisons={name: mean_scores(rows) for name, rows in scores.items()},
            cases={name: len(rows) for name, rows in scores.items()},
        )

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        return asdict(self)

    def as_table(self) -> str:
        """Aligned text, one row per comparison and method."""
        rows = [
            {
                "compared with": f"{comparison} (n={self.cases[comparison]})",
                "method": method,
                **{key: f"{value:.4f}" for key, value in scores.items()},
            }
            for comparison, methods in self.comparisons.items()
            for method, scores in methods.items()
        ]
        columns = dict.fromkeys(key for row in rows for key in row)
        return format_table([{key: row.get(key, "") for key in columns} for row in rows]) if rows else "no cases"

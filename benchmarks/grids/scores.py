"""Test cases on the truth's voxels: predicted in three ways and scored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from skimage.measure import marching_cubes, mesh_surface_area
from skimage.transform import resize

from benchmarks.grids.models import Model, Study
from benchmarks.quality.datasets import FILES, read_folder
from rehrseg_nnunet.evaluation.metrics import dice
from rehrseg_nnunet.evaluation.surfaces import hd95
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.prediction.spacing_grid import SpacingGrid

OWN = "rehrseg predict --grid 1,1,1"
NEAREST = "nnUNetv2_predict, nearest"
RESAMPLED = "nnUNetv2_predict, image resampled"
METHODS = (OWN, NEAREST, RESAMPLED)
METRICS = ("dice", "hd95_mm", "area_error")


@dataclass(frozen=True)
class Score:
    """One label of one case.

    Attributes:
        model: name.
        method: one of `METHODS`.
        case: name.
        label: value.
        dice: overlap with the truth.
        hd95_mm: distance from its surface.
        area_error: |surface area / the truth's - 1|, by marching cubes on the label's voxels.
    """

    model: str
    method: str
    case: str
    label: int
    dice: float
    hd95_mm: float
    area_error: float


def predict(study: Study, model: Model, device: torch.device) -> None:
    """Write the test cases' segmentations on the truth's voxels, one folder for each method."""
    folders = {method: _folder(study, model, method) for method in METHODS}
    images = study.raw(model) / "imagesTs"
    if not _is_done(images, folders[OWN]):
        _run(HRPredictor(device=device, allow_tqdm=False, grid=SpacingGrid((1.0, 1.0, 1.0))), study, model, images, OWN)
    if not _is_done(images, folders[NEAREST]):
        _run(nnUNetPredictor(device=device, allow_tqdm=False), study, model, images, "native")
        _repeat_voxels(_folder(study, model, "native"), folders[NEAREST], model)
    if not _is_done(images, folders[RESAMPLED]):
        resampled = study.work / "resampled" / model.name
        _resample_images(images, resampled, model)
        _run(nnUNetPredictor(device=device, allow_tqdm=False), study, model, resampled, RESAMPLED)


def score(study: Study, model: Model) -> Iterator[Score]:
    """Every label of every test case by every method."""
    for file, truth, properties in read_folder(study.raw(model) / "labelsTsHR", labels=True):
        for method in METHODS:
            predicted, own = FILES().read_seg(str(_folder(study, model, method) / file.name))
            if predicted[0].shape != truth.shape or not np.allclose(own["spacing"], properties["spacing"], atol=1e-3):
                raise ValueError(f"{method}: {file.name} must lie on the truth's voxels")
            for label in np.unique(truth)[1:].tolist():
                masks = truth == label, predicted[0] == label
                spacing = properties["spacing"]
                areas = [_area(mask, spacing) for mask in masks]
                distance = hd95(*masks, spacing)
                error = abs(areas[1] / areas[0] - 1) if areas[0] else math.nan
                yield Score(model.name, method, file.name, label, dice(*masks), distance, error)


def _folder(study: Study, model: Model, method: str) -> Path:
    return study.work / "predictions" / model.name / method.replace(" ", "_").replace(",", "_")


def _is_done(images: Path, folder: Path) -> bool:
    return len(list(images.glob("*.nii.gz"))) == len(list(folder.glob("*.nii.gz")))


def _run(predictor: Any, study: Study, model: Model, images: Path, method: str) -> None:
    folder = _folder(study, model, method)
    folder.mkdir(parents=True, exist_ok=True)
    results = study.results(model)
    folds = [folder.name.removeprefix("fold_") for folder in sorted(results.glob("fold_*"))]
    predictor.initialize_from_trained_model_folder(str(results), folds)
    predictor.predict_from_files_sequential(str(images), str(folder))


def _repeat_voxels(source: Path, target: Path, model: Model) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file, labels, properties in read_folder(source, labels=True):
        fine = labels
        for axis, factor in enumerate(model.factors):
            fine = fine.repeat(factor, axis)
        FILES().write_seg(fine, str(target / file.name), model.finer(properties))


def _resample_images(source: Path, target: Path, model: Model) -> None:
    """Cubic interpolation, over the same field of view."""
    target.mkdir(parents=True, exist_ok=True)
    for file, image, properties in read_folder(source, labels=False):
        shape = [n * factor for n, factor in zip(image.shape, model.factors, strict=True)]
        fine = resize(image, shape, order=3, mode="edge", anti_aliasing=False, preserve_range=True)
        FILES().write_image(np.asarray(fine), str(target / file.name), model.finer(properties))


def _area(mask: np.ndarray, spacing_mm: Any) -> float:
    if not mask.any():
        return 0.0
    vertices, faces, *_ = marching_cubes(np.pad(mask, 1).astype(np.float32), 0.5, spacing=tuple(spacing_mm))
    return float(mesh_surface_area(vertices, faces))

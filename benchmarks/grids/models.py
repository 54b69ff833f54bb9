"""The models that are compared: datasets of coarser voxels, made of one with thin slices, and a network for each."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.datasets import FILES, copy_cases, read_folder, whole
from rehrseg_nnunet.config.presets import scale_width
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_dataset_json, read_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

CONFIGURATION = "3d_fullres"
PLANS = "gridsPlans"
PATCH_VOXELS = 24_000  # about what a step of one second takes on two cores


@dataclass(frozen=True)
class Model:
    """A network and the voxels it is trained on.

    Attributes:
        name: of the row in the tables.
        dataset: number of its dataset.
        factors: how many voxels of the source make one, along each array axis.
    """

    name: str
    dataset: int
    factors: tuple[int, int, int]

    def finer(self, properties: dict) -> dict:
        """Geometry of the source's voxels, from that of the model's."""
        for axis, factor in enumerate(self.factors):
            if factor > 1:
                properties = scale_slice_geometry(properties, axis, 1 / factor)
        return properties


MODELS = (
    Model("2 mm isotropic", 821, (2, 2, 2)),
    Model("3 mm slices", 831, (3, 1, 1)),
    Model("4 mm slices", 841, (4, 1, 1)),
)


@dataclass(frozen=True)
class Study:
    """What is compared on what; one work folder holds one of these.

    Attributes:
        work: folder for everything.
        source: nnU-Net raw dataset folder with thin slices; its files are NIfTI.
        cases: number of its cases that are trained on, the first in order of their names.
        test_cases: number of cases after these that no training sees.
        epochs: of every training, a length that nnU-Net has a trainer for.
        precision: of the networks' layers in training, see `benchmarks.quality.launch`.
        trained: folders of models that are trained already, by their names.
    """

    work: Path
    source: Path
    cases: int
    test_cases: int
    epochs: int
    precision: str
    trained: Mapping[str, Path] = field(default_factory=dict)

    @property
    def trainer(self) -> str:
        """Name of nnU-Net's trainer."""
        return f"nnUNetTrainer_{self.epochs}epochs"

    def dataset(self, model: Model) -> str:
        """Name of a model's dataset."""
        return f"Dataset{model.dataset}_{self.source.name.split('_', 1)[1]}"

    def raw(self, model: Model) -> Path:
        """Folder of a model's dataset; its test cases on the source's voxels are in `imagesTsHR` and `labelsTsHR`."""
        return self.work / "nnUNet_raw" / self.dataset(model)

    def results(self, model: Model) -> Path:
        """Folder of a trained model, its own or one that was given."""
        if model.name in self.trained:
            return self.trained[model.name]
        return self.work / "nnUNet_results" / self.dataset(model) / f"{self.trainer}__{PLANS}__{CONFIGURATION}"


def prepare(study: Study, model: Model) -> None:
    """Make the dataset, preprocess it and train, as far as that is not done."""
    if not study.raw(model).is_dir():
        with whole(study.raw(model)) as partial:
            _coarse_dataset(study, model, partial)
    if model.name in study.trained:
        return
    folder = study.work / "nnUNet_preprocessed" / study.dataset(model)
    number = str(model.dataset)
    if not (folder / f"{PLANS}.json").is_file():
        _execute(["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "2", "-np", "2"])
        write_atomically(folder / f"{PLANS}.json", json.dumps(_small_plans(folder / "nnUNetPlans.json")))
    if not (study.results(model) / "fold_all" / "checkpoint_final.pth").is_file():
        seconds = str(study.work / "seconds" / number)
        launch = [sys.executable, "-m", "benchmarks.quality.launch", "0", study.precision, seconds]
        _execute([*launch, number, CONFIGURATION, "all", "-p", PLANS, "-tr", study.trainer, "-device", "cpu"])


def _execute(command: list[str]) -> None:
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def _small_plans(stock: Path) -> dict:
    """Plans of half the width; a small batch, so that a step takes as long for every model."""
    plans = read_json(stock, remedy=PREPROCESS_FIRST)
    plans["plans_name"] = PLANS
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = max(2, min(8, 2 * PATCH_VOXELS // int(np.prod(configuration["patch_size"]))))
    scale_width(configuration["architecture"]["arch_kwargs"], 0.5)
    return plans


def _coarse_dataset(study: Study, model: Model, target: Path) -> None:
    """The source's cases on coarser voxels, and its test cases as they are, cropped to a multiple of the factors."""
    source = target / "source"
    copy_cases(study.source, source, cases=study.cases, test_cases=study.test_cases)
    for subfolder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / subfolder).mkdir()
        fine_folder = target / f"{subfolder}HR"
        fine_folder.mkdir()
        for file, values, properties in read_folder(source / subfolder, labels=subfolder.startswith("labels")):
            fine = values[tuple(slice(n - n % f) for n, f in zip(values.shape, model.factors, strict=True))]
            coarse, geometry = fine, properties
            for axis, factor in enumerate(model.factors):
                if factor > 1:
                    geometry = scale_slice_geometry(geometry, axis, factor)
            if subfolder.startswith("labels"):
                FILES().write_seg(fine, str(fine_folder / file.name), properties)
                FILES().write_seg(coarse_labels(fine, model.factors), str(target / subfolder / file.name), geometry)
            else:
                FILES().write_image(fine, str(fine_folder / file.name), properties)
                coarse = _degrade_all(torch.from_numpy(fine), model.factors).numpy()
                FILES().write_image(coarse, str(target / subfolder / file.name), geometry)
    write_atomically(target / "dataset.json", json.dumps(read_dataset_json(source / "dataset.json")))
    shutil.rmtree(source)


def _degrade_all(volume: torch.Tensor, factors: tuple[int, ...]) -> torch.Tensor:
    for axis, factor in enumerate(factors, start=volume.ndim - len(factors)):
        volume = degrade(volume, factor, axis) if factor > 1 else volume
    return volume


def coarse_labels(labels: np.ndarray, factors: tuple[int, int, int]) -> np.ndarray:
    """Labels of thick slices at their centres, those of voxels that are coarse along more axes by majority."""
    values = torch.from_numpy(labels.astype(np.int64))
    thick = [axis for axis, factor in enumerate(factors) if factor > 1]
    if len(thick) == 1:
        return degrade_labels(values, factors[thick[0]], thick[0]).numpy().astype(labels.dtype)
    shares = _degrade_all(torch.nn.functional.one_hot(values).movedim(-1, 0).float(), factors)
    return shares.argmax(0).numpy().astype(labels.dtype)

"""The prepared folder that travels to the GPU machine, and what is made of it there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.cases.interpolated import write_interpolated_cases
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.config.guidance import load_config as load_guidance
from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.weights import load_frozen
from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE
from rehrseg_nnunet.self_sr.network import build_self_sr_network

CONFIGURATION, FOLD = "3d_fullres", 0
SMALL, DEFAULT, PAPER = "small", "default", "paper"  # plans of every dataset
PAIRED = ("GuidanceTeacherTrainer", "KnowledgeKeeperTrainer")
DESCRIPTION, PREPROCESSED, STAGE_1, TRUTH = "gpu.json", "nnUNet_preprocessed", "stage_1", "truth"


@dataclass(frozen=True)
class GPUData:
    """A prepared folder, or a copy of it in a work folder.

    Attributes:
        folder: of everything.
        thick: dataset of thick slices, with `SMALL`, `DEFAULT` and `PAPER` plans.
        interpolated: the same cases interpolated, with `SMALL` plans of its own; its cases are made by `interpolate`.
        large: dataset whose plans have the large patch.
        factor: r.
        validation: cases of `thick` that no training sees, but for choosing checkpoints.
        test: cases that no training sees at all.
        pairs: dataset of pairs, with `SMALL` and `DEFAULT` plans; empty in a folder that has none yet.
        scans: dataset of labelled scans of other cases, as the pairs' source; likewise.
    """

    folder: Path
    thick: str
    interpolated: str
    large: str
    factor: int
    validation: tuple[str, ...]
    test: tuple[str, ...]
    pairs: str = ""
    scans: str = ""

    @classmethod
    def read(cls, folder: Path) -> GPUData:
        """What `python -m benchmarks.gpu.prepare` wrote.

        Raises:
            FileNotFoundError: nothing of the kind is there.
        """
        file = folder / DESCRIPTION
        if not file.is_file():
            raise FileNotFoundError(
                f"--data must be a folder that `python -m benchmarks.gpu.prepare` wrote, but {file} is missing"
            )
        content = json.loads(file.read_text())
        return cls(folder, **{**content, "validation": tuple(content["validation"]), "test": tuple(content["test"])})

    def write(self) -> None:
        """Write the description, the last file of a prepared folder."""
        content = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomically(self.folder / DESCRIPTION, json.dumps(content, indent=2))

    def copied_to(self, folder: Path) -> GPUData:
        """A copy that may be written to: the machine may carry the prepared folder read-only."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copyfile)
        return GPUData.read(folder)

    def preprocessed(self, dataset: str) -> Path:
        """A dataset's folder in nnUNet_preprocessed."""
        return self.folder / PREPROCESSED / dataset

    @property
    def stage_1(self) -> Path:
        """Fold folder of the short stage 1 that came along, of the `SMALL` plans."""
        return self._run("SelfSRTrainer", self.folder / STAGE_1).folder

    def check(self) -> None:
        """Check that stage 1 and the pairs' plans are of this version of the package.

        Raises:
            ValueError: its weights are of another network, there are no pairs, or their plans have other settings.
        """
        planned = self.planned(self.thick)
        config = load_config(planned.configuration_manager.configuration)
        channels = len(planned.configuration_manager.normalization_schemes)
        network = build_self_sr_network(config, channels, planned.label_manager.num_segmentation_heads)
        remedy = "the version changed: run `python -m benchmarks.gpu.prepare` again"
        load_frozen(network, self.stage_1 / FINAL_CHECKPOINT, sizes=f"of {SMALL}.json", remedy=remedy)
        self.check_guidance()

    def check_guidance(self) -> None:
        """Check that there are datasets for guidance, whose plans' settings are of this version.

        Raises:
            ValueError: they are missing or have other settings.
        """
        remedy = f"run `python -m benchmarks.gpu.prepare --add-pairs --source RAW --out {self.folder}`"
        for dataset, plans in product((self.pairs, self.scans), (SMALL, DEFAULT)):
            file = self.preprocessed(dataset) / f"{plans}.json"
            if not dataset or not file.is_file():
                raise ValueError(f"{self.folder} must have pairs and scans for guidance, got none; {remedy}")
            try:
                load_guidance(PlansManager(str(file)).get_configuration(CONFIGURATION).configuration)
            except ValueError as error:
                raise ValueError(f"{file}: {error}; the version changed: {remedy}") from error

    def results(self, name: str) -> Path:
        """A folder for nnUNet_results."""
        return self.folder / "results" / name

    def baseline(self, results: Path) -> Path:
        """The baseline's fold folder in nnUNet_results, of the `SMALL` plans."""
        return self._run("nnUNetTrainer", results).folder

    def teacher(self, plans: str, results: Path) -> Path:
        """The guidance teacher's fold folder in nnUNet_results."""
        return FoldRun(self.pairs, "GuidanceTeacherTrainer", plans, CONFIGURATION, FOLD, results).folder

    def dataset_of(self, trainer: str) -> str:
        """The dataset that shows what a trainer does."""
        kind = trainer.split("_")[0]
        return {**dict.fromkeys(PAIRED, self.pairs), "GuidedTrainer": self.scans}.get(kind, self.thick)

    def _run(self, trainer: str, results: Path) -> FoldRun:
        return FoldRun(self.thick, trainer, SMALL, CONFIGURATION, FOLD, results)

    def environment(self, results: Path) -> dict[str, str]:
        """nnU-Net's variables, with stage 1 as it came along."""
        variables = {PREPROCESSED: str(self.folder / PREPROCESSED), "nnUNet_results": str(results)}
        return {**variables, "nnUNet_raw": str(self.folder / "nnUNet_raw"), SELF_SR_VARIABLE: str(self.stage_1)}

    def planned(self, dataset: str, plans: str = SMALL) -> PlannedDataset:
        """A dataset of thick slices under its plans."""
        folder = self.preprocessed(dataset)
        manager = PlansManager(str(folder / f"{plans}.json"))
        configuration = manager.get_configuration(CONFIGURATION)
        return PlannedDataset(
            plans_manager=manager,
            configuration_manager=configuration,
            dataset_json=json.loads((folder / "dataset.json").read_text()),
            factor=load_config(configuration.configuration).factor,
        )

    def cases_folder(self, dataset: str) -> Path:
        """Preprocessed cases of a dataset of thick slices."""
        return self.preprocessed(dataset) / self.planned(dataset).configuration_manager.data_identifier

    def cases(self, dataset: str, identifiers: Sequence[str] | None = None) -> nnUNetDatasetBlosc2:
        """Preprocessed cases of a dataset of thick slices."""
        return nnUNetDatasetBlosc2(str(self.cases_folder(dataset)), identifiers)

    def interpolate(self) -> Iterator[tuple[str, int]]:
        """Write the interpolated cases; those of `thick` become the cases of `interpolated` too.

        Yields:
            Each dataset's name and its number of cases, when they are there.
        """
        for dataset in (self.thick, self.large):
            cases = self.cases(dataset)
            fine = write_interpolated_cases(cases, cases.identifiers, self.planned(dataset))
            if dataset == self.thick:
                own = self.preprocessed(self.interpolated)
                plans = json.loads((own / f"{SMALL}.json").read_text())
                target = own / plans["configurations"][CONFIGURATION]["data_identifier"]
                target.symlink_to(Path(fine.source_folder).resolve(), target_is_directory=True)
            yield dataset, len(cases.identifiers)

    def truth(self, case: str) -> dict[str, np.ndarray]:
        """True HR volumes of a case in the frame of the preprocessed one: `labels` (1, r*D, H, W), maybe `image`."""
        with np.load(self.folder / TRUTH / f"{case}.npz") as content:
            return {key: content[key] for key in content.files}


def set_environment(variables: dict[str, Any]) -> None:
    """Set environment variables of this process and its children."""
    os.environ.update(variables)
    ensure_trainer_path()

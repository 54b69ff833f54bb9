"""nnU-Net folders of a test, and nnU-Net's own commands on them, in this process or in one of their own."""

import json
import os
import shutil
import sys
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from commands import Command
from short_runs import EPOCHS, FAULT, STEPS, draw_few_intensities, shorten, use_threads

from rehrseg_nnunet.cases.phantom import write_phantom_dataset
from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.cli.trainers import ensure_trainer_path

PHANTOM = (16, 24, 24)  # z, y, x


class Workspace:
    """nnU-Net's three folders under `base`; trainings are two epochs of two steps long.

    Datasets are named by number, as in nnU-Net's commands. Plans `tiny` are nnU-Net's with the preset `demo`.

    Args:
        base: new folder.
        patch: undone by the fixture that made it.
        threads: nnU-Net's spawned pools run as threads of this process (a spawned worker takes seconds to import).
    """

    def __init__(self, base: Path, patch: pytest.MonkeyPatch, *, threads: bool = True):
        self.base = base
        self.raw, self.preprocessed, self.results = (
            base / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        )
        for folder in (self.raw, self.preprocessed, self.results):
            folder.mkdir()
            patch.setenv(folder.name, str(folder))
        patch.setenv("nnUNet_extTrainer", os.environ.get("nnUNet_extTrainer", ""))
        ensure_trainer_path()
        patch.setenv("nnUNet_n_proc_DA", "0")
        shorten(patch.setattr)
        draw_few_intensities(patch.setattr)
        if threads:
            use_threads(patch.setattr)

    def dataset(self, number: int | str) -> str:
        """Folder name of a dataset."""
        (folder,) = self.raw.glob(f"Dataset{int(number):03d}_*")
        return folder.name

    def write_phantom(
        self, number: int, *, cases: int = 6, shape=PHANTOM, seed: int = 1, name: str = "Phantom"
    ) -> Path:
        """An isotropic raw dataset with labels 1 and 2."""
        folder = self.raw / f"Dataset{number:03d}_{name}"
        write_phantom_dataset(folder, cases=cases, shape=shape, seed=seed)
        return folder

    def simulate(self, source: int, target: int, *, factor: int = 4) -> Path:
        """A thick-slice raw dataset from an isotropic one."""
        assert main(["simulate", "-d", str(source), "-o", str(target), "--factor", str(factor)]) == 0
        return self.raw / self.dataset(target)

    def copy_dataset(self, source: int, target: int, name: str, *, truth: bool = False) -> Path:
        """A raw dataset to be changed, without true HR volumes unless asked for."""
        folder = self.raw / f"Dataset{target:03d}_{name}"
        shutil.copytree(self.raw / self.dataset(source), folder)
        for hr in ("imagesTrHR", "labelsTrHR"):
            if not truth:
                shutil.rmtree(folder / hr, ignore_errors=True)
        return folder

    def prepare(self, number: int, *, planner: str = "ExperimentPlanner", options=()) -> None:
        """Fingerprint, plans, preprocessed data for 3d_fullres, and plans `tiny`, which share them.

        Restoring networks take batches of 2, not the preset's 8: that is most of such a training.
        """
        name = self.plan(number, planner=planner)
        self.preprocess(number, plans=name)
        self.rehrseg("plan", "-d", number, "-p", name, "--preset", "demo", "-o", "tiny", *options)
        file = self.plans(number)
        plans = json.loads(file.read_text())
        for configuration in plans["configurations"].values():
            for network in ("self_sr", "smore"):
                if network in configuration.get("rehrseg", {}):
                    configuration["rehrseg"][network]["batch_size"] = 2
        file.write_text(json.dumps(plans, indent=4))

    def plan(self, number: int, *, planner: str = "ExperimentPlanner") -> str:
        """Fingerprint and nnU-Net's plans; returns their name."""
        from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, plan_experiments

        with environment(nnUNet_n_proc_DA="1"):  # planning sets as many threads
            extract_fingerprint_dataset(number, num_processes=1)
            return plan_experiments([number], experiment_planner_class_name=planner)

    def preprocess(self, number: int, *, plans: str = "nnUNetPlans", configurations=("3d_fullres",)) -> None:
        """nnU-Net's preprocessed data."""
        from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

        with environment(nnUNet_n_proc_DA="1"):
            preprocess([number], plans, configurations=configurations, num_processes=[1] * len(configurations))

    def plans(self, number: int, plans: str = "tiny") -> Path:
        """The plans file of a dataset."""
        return self.preprocessed / self.dataset(number) / f"{plans}.json"

    @contextmanager
    def changed_plans(self, number: int, plans: str = "tiny"):
        """The plans as a dict, which is written; the former ones come back afterwards."""
        file = self.plans(number, plans)
        original = file.read_text()
        changed = json.loads(original)
        save = SimpleNamespace(plans=changed, write=lambda: file.write_text(json.dumps(changed)))
        try:
            yield save
        finally:
            file.write_text(original)

    def fold(self, trainer: str, number: int, *, plans="tiny", configuration="3d_fullres", fold="0") -> Path:
        """nnU-Net's folder of a training."""
        return self.results / self.dataset(number) / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"

    def train(self, trainer: str, number: int, *options, plans="tiny", configuration="3d_fullres", fold="0") -> Path:
        """`nnUNetv2_train` in this process; returns the fold's folder."""
        from nnunetv2.run.run_training import run_training_entry

        arguments = [number, configuration, fold, "-tr", trainer, "-p", plans, "-device", "cpu", *options]
        with arguments_of("nnUNetv2_train", *arguments):
            run_training_entry()
        return self.fold(trainer, number, plans=plans, configuration=configuration, fold=fold)

    def predict(self, source: Path, target: Path, number: int, *options, **model) -> Path:
        """`nnUNetv2_predict` in this process."""
        from nnunetv2.inference.predict_from_raw_data import predict_entry_point

        with arguments_of("nnUNetv2_predict", *self._prediction(source, target, number, *options, **model)):
            predict_entry_point()
        return target

    def predict_hr(self, source: Path, target: Path, number: int, *options, **model) -> Path:
        """`rehrseg predict` in this process."""
        self.rehrseg("predict", *self._prediction(source, target, number, *options, **model))
        return target

    def _prediction(
        self,
        source,
        target,
        number,
        *options,
        trainer="REHRSegTrainer",
        plans="tiny",
        configuration="3d_fullres",
        folds=("0",),
    ):
        flags = ["-i", source, "-o", target, "-d", number, "-tr", trainer, "-p", plans, "-c", configuration]
        flags += ["-f", *folds, "-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar", *options]
        return [str(flag) for flag in flags]

    def command(self, name: str, *arguments) -> None:
        """Any of nnU-Net's commands in this process, as its package installs it."""
        (script,) = entry_points(group="console_scripts", name=name)
        with arguments_of(name, *arguments):
            script.load()()

    def rehrseg(self, *arguments) -> None:
        """A `rehrseg` command that must succeed."""
        assert main([str(a) for a in arguments]) == 0

    def start(
        self, command: str, *arguments, epochs: int = 2, steps: int = 2, fault: str = "None", setup=None, **variables
    ) -> Command:
        """One of nnU-Net's commands in a process of its own, e.g. to kill it.

        Args:
            command: nnU-Net's.
            arguments: the command's.
            epochs: length of trainings.
            steps: length of epochs.
            fault: what goes wrong, see tests/support/faults.py.
            setup: called in the process before the command.
            variables: environment variables.
        """
        variables = {EPOCHS: str(epochs), STEPS: str(steps), FAULT: fault, **variables}
        return Command("short_runs:main", command, *arguments, merged=True, setup=setup, **variables)

    def start_training(self, trainer: str, number: int, *options, plans="tiny", fold="0", **process):
        """`nnUNetv2_train` in a process of its own, see `start`."""
        arguments = [number, "3d_fullres", fold, "-tr", trainer, "-p", plans, "-device", "cpu", *options]
        return self.start("nnUNetv2_train", *arguments, **process)


@contextmanager
def environment(**variables):
    """Environment variables for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@contextmanager
def threads():
    """nnU-Net's pools run as threads for a while, in a workspace that has spawned ones."""
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch.setattr)
        yield


@contextmanager
def arguments_of(*command):
    """A command's name and arguments in sys.argv for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(part) for part in command])
        yield


def log_of(folder: Path) -> str:
    """All training logs of a fold."""
    return "\n".join(file.read_text() for file in sorted(folder.glob("training_log_*.txt")))


def assert_same_field_of_view(lr: sitk.Image, hr: sitk.Image, *, factor: int, axis: int = 2) -> None:
    """The HR file has r slices for each LR slice along `axis` (x, y, z = 0, 1, 2), over the same physical box."""
    size = list(lr.GetSize())
    assert list(hr.GetSize()) == [n * factor if i == axis else n for i, n in enumerate(size)]
    for corner in np.ndindex(2, 2, 2):
        lr_index = [(n - 0.5) if upper else -0.5 for n, upper in zip(size, corner, strict=True)]
        hr_index = [(n - 0.5) if upper else -0.5 for n, upper in zip(hr.GetSize(), corner, strict=True)]
        lr_point = lr.TransformContinuousIndexToPhysicalPoint([float(i) for i in lr_index])
        hr_point = hr.TransformContinuousIndexToPhysicalPoint([float(i) for i in hr_index])
        np.testing.assert_allclose(hr_point, lr_point, atol=1e-3)


@contextmanager
def workspace(base: Path, *, threads: bool = True):
    """A Workspace, and everything as it was afterwards."""
    torch_threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        yield Workspace(base, patch, threads=threads)
    torch.set_num_threads(torch_threads)

"""A benchmark in a temporary folder, its runs, and commands that write what the real ones would."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

from benchmarks.guidance import runs as guidance_runs
from benchmarks.guidance.benchmark import GuidanceBenchmark
from benchmarks.guidance.rows import ROWS as GUIDANCE_ROWS
from benchmarks.quality.benchmark import CONFIGURATION, Benchmark
from benchmarks.quality.rows import ROWS
from benchmarks.quality.runs import Run
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT

DATASET = {"labels": {"background": 0, "a": 1, "b": 2}, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"}


@pytest.fixture
def make_benchmark(tmp_path):
    def make(**changes):
        settings = {"cases": 5, "test_cases": 2, "factor": 4, "axis": "z", "preset": "cpu", "baseline_epochs": 10}
        settings["precision"] = "float32"
        return Benchmark(
            **{"work": tmp_path / "work", "source": tmp_path / "source" / "Dataset004_Tiny", **settings, **changes}
        )

    return make


@pytest.fixture
def make_run(make_benchmark):
    def make(key, *, fold=0, seed=0, epochs=10, settings="", **changes):
        return Run(make_benchmark(**changes), ROWS[key], fold, seed, epochs, settings)

    return make


@pytest.fixture
def make_guidance(tmp_path):
    """A guidance benchmark."""

    def make(**changes):
        settings = {"number": 604, "pairs": 5, "cases": 5, "test_cases": 2, "resolution": 2.0, "snr": 12.0}
        settings |= {"contrast": 0.7, "preset": "cpu", "plans": "cpu", "batch_size": 2, "patch": None}
        settings["precision"] = "bfloat16"
        settings |= {
            "teacher_epochs": None,
            "keeper_epochs": None,
            "baseline_epochs": 5,
            "continued_epochs": 3,
            "keeper": "keeper",
        }
        folders = {"work": tmp_path / "work", "source": tmp_path / "source" / "Dataset004_Tiny"}
        return GuidanceBenchmark(**{**folders, **settings, **changes})

    return make


@pytest.fixture
def make_guided_run(make_guidance):
    def make(key, *, seed=0, **changes):
        return guidance_runs.Run(make_guidance(**changes), GUIDANCE_ROWS[key], seed)

    return make


@pytest.fixture
def write_volume():
    def write(file, values, *, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)):
        """Spacing and origin are x, y, z."""
        file.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(values)
        image.SetSpacing(spacing)
        image.SetOrigin(origin)
        image.SetDirection(direction)
        sitk.WriteImage(image, str(file))

    return write


@pytest.fixture
def write_json():
    def write(file, content):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    return write


@pytest.fixture
def write_source(write_volume, write_json):
    """An isotropic dataset: two labels in 16 x 12 x 12 voxels, oblique, every case at a place of its own."""

    def write(folder, *, cases=7):
        rng = np.random.default_rng(0)
        z, y, x = np.meshgrid(*(np.arange(n) for n in (16, 12, 12)), indexing="ij")
        turn = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
        for case in range(cases):
            labels = ((z - 8) ** 2 / 2 + (y - 5.5) ** 2 + (x - 5.5) ** 2 < 16).astype(np.uint8)
            labels[(labels > 0) & (x > 5)] = 2
            geometry = {"spacing": (1.0, 1.1, 0.9), "origin": (case, -2.0, 3.0), "direction": turn.ravel().tolist()}
            image = (20 * labels + rng.normal(size=labels.shape)).astype(np.float32)
            write_volume(folder / "imagesTr" / f"case_{case}_0000.nii.gz", image, **geometry)
            write_volume(folder / "labelsTr" / f"case_{case}.nii.gz", labels, **geometry)
        write_json(folder / "dataset.json", {**DATASET, "name": folder.name, "numTraining": cases})

    return write


@pytest.fixture
def finish(write_json):
    """Write what a finished training leaves: checkpoint, report, and names of predictions."""

    def write(run, *, report=True, cases=("case_0",), hr_cases=None):
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / FINAL_CHECKPOINT).touch()
        if report:
            write_json(run.report, {})
        if run.row.segments:
            folders = {"validation": cases}
            folders |= {"validation_hr": cases if hr_cases is None else hr_cases} if run.row.hr == "head" else {}
            for folder, names in folders.items():
                (run.folder / folder).mkdir(exist_ok=True)
                for name in names:
                    (run.folder / folder / f"{name}.nii.gz").touch()

    return write


@pytest.fixture
def recorder():
    """Stands for `execute`: keeps the commands, and calls `effect` with each as the command's work."""

    class Recorder(SimpleNamespace):
        def __call__(self, command, environment=None):
            self.commands.append(command)
            self.environments.append(environment)
            self.effect(command)
            return 0.0

    return Recorder(commands=[], environments=[], effect=lambda command: None)


@pytest.fixture
def nnunet_plans():
    """What nnU-Net plans for a spacing (z, y, x)."""

    def plans(dataset, spacing):
        configuration = {
            "data_identifier": f"nnUNetPlans_{CONFIGURATION}",
            "batch_size": 2 if spacing[0] > 2 else 5,
            "patch_size": [4, 16, 16],
            "spacing": list(spacing),
            "architecture": {"arch_kwargs": {"features_per_stage": [32, 64, 128], "n_stages": 3}},
        }
        return {
            "dataset_name": dataset,
            "plans_name": "nnUNetPlans",
            "configurations": {CONFIGURATION: configuration},
        }

    return plans

"""Train and predict what is missing, one row, fold and seed at a time, through nnU-Net's and REHRSeg's commands."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.datasets import CONFIGURATION, Benchmark, Execute
from benchmarks.quality.rows import ROWS, Row
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.training_lengths import trainer_name
from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE

OWN_TRAINERS = Path(__file__).resolve().parent / "trainers"
REPORTS = {
    "SMORETrainer": "smore_report.json",
    "SelfSRTrainer": "self_sr_report.json",
    "SelfSRTrainer_trueHRData": "self_sr_report.json",
}
DEFAULTS = {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Run:
    """A row of one fold and seed, and where its files are.

    Attributes:
        benchmark: what is compared.
        row: the row.
        fold: nnU-Net's number.
        seed: of the training process; every seed has a results folder of its own.
        stage_2_epochs: epochs of all that goes on from the baseline.
    """

    benchmark: Benchmark
    row: Row
    fold: int
    seed: int
    stage_2_epochs: int

    @property
    def epochs(self) -> int | None:
        """Epochs of its own training; None: what its settings say."""
        baseline = self.benchmark.baseline_epochs
        lengths = {"none": baseline, "baseline": self.stage_2_epochs, "scratch": baseline + self.stage_2_epochs}
        return lengths.get(self.row.start)

    @property
    def all_epochs(self) -> str:
        """What its network has been trained for, with what it started from."""
        before = f"{self.benchmark.baseline_epochs}+" if self.row.start == "baseline" else ""
        return f"{before}{self.epochs or ''}"

    @property
    def trainer(self) -> str:
        """Name of the trainer with its length."""
        return self.row.trainer if self.epochs is None else trainer_name(self.row.trainer, self.epochs)

    @property
    def results(self) -> Path:
        """nnUNet_results of this seed."""
        return self.benchmark.work / f"seed_{self.seed}" / "nnUNet_results"

    @property
    def folder(self) -> Path:
        """nnU-Net's fold folder."""
        plans = self.benchmark.plans_name(self.row.plans)
        model = f"{self.trainer}__{plans}__{CONFIGURATION}"
        return self.results / self.benchmark.dataset(self.row.data) / model / f"fold_{self.fold}"

    @property
    def predictions(self) -> Path:
        """Folder for the predictions of the test set, `lr` and `hr`."""
        return self.benchmark.work / f"seed_{self.seed}" / "predictions" / self.label

    @property
    def label(self) -> str:
        """Unique name of the run within its seed."""
        return f"{self.row.key}_{self.all_epochs or 'own'}epochs_fold{self.fold}"

    @property
    def report(self) -> Path:
        """What is there when the run is finished: a restoring network's report, or nnU-Net's summary."""
        return self.folder / REPORTS.get(self.row.trainer, "validation/summary.json")

    @property
    def finished(self) -> bool:
        """Whether it is trained and validated, with an HR head at HR too: nnU-Net's summary is there before that."""
        if not (self.report.is_file() and (self.folder / FINAL_CHECKPOINT).is_file()):
            return False
        at_hr = self.folder / "validation_hr"
        cases = (self.folder / "validation").glob("*.nii.gz") if self.row.hr == "head" else ()
        return all((at_hr / case.name).is_file() for case in cases)

    def other(self, key: str) -> Run:
        """Another row of the same fold and seed."""
        return Run(self.benchmark, ROWS[key], self.fold, self.seed, self.stage_2_epochs)

    def environment(self) -> dict[str, str]:
        """Environment variables that its commands need."""
        variables = {
            "nnUNet_raw": str(self.benchmark.work / "nnUNet_raw"),
            "nnUNet_preprocessed": str(self.benchmark.work / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.results),
        }
        # empty, as good as unset, else: one that the user has set is of another comparison
        variables[SELF_SR_VARIABLE] = str(self.other(self.row.stage_1).folder) if self.row.stage_1 else ""
        return variables


def set_environment(benchmark: Benchmark) -> None:
    """nnU-Net's variables for this process and its children, absolute paths; the user's own counts win."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        folder = benchmark.work / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ["nnUNet_results"] = str(benchmark.work)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    ensure_trainer_path()
    folders = os.environ["nnUNet_extTrainer"].split(os.pathsep)
    if str(OWN_TRAINERS) not in folders:
        os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, str(OWN_TRAINERS)])


def execute(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run one command of this Python's environment, print it first.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    print("$", *command, flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(command, check=True, env={**os.environ, **(environment or {}), "PATH": path})


def train(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Train and validate, from the last checkpoint if it was interrupted; nothing if it is finished."""
    if run.finished:
        return
    forget_results(run)
    if run.row.start == "baseline":
        _show_baseline(run)
    command = [sys.executable, "-m", "benchmarks.quality.launch", str(run.seed), run.benchmark.precision]
    command += [run.benchmark.dataset(run.row.data), CONFIGURATION, str(run.fold), "-tr", run.trainer]
    command += ["-p", run.benchmark.plans_name(run.row.plans), "-device", device]
    if run.row.hr == "upsampled":
        command.append("--npz")
    if (run.folder / FINAL_CHECKPOINT).is_file():
        command.append("--val")
    elif list(run.folder.glob("checkpoint_*.pth")):
        command.append("--c")
    with _measured(run, "train"):
        execute(command, run.environment())


def scores_file(run: Run) -> Path:
    """Where a run's scores are kept."""
    return run.benchmark.work / f"seed_{run.seed}" / "scores" / f"{run.label}.json"


def forget_results(run: Run) -> None:
    """Remove predictions and scores of a network that is about to change; of one that starts anew also its times."""
    shutil.rmtree(run.predictions, ignore_errors=True)
    scores_file(run).unlink(missing_ok=True)
    if not list(run.folder.glob("checkpoint_*.pth")):
        seconds_file(run).unlink(missing_ok=True)


def _show_baseline(run: Run) -> None:
    """Let trainings find the one baseline, whatever their length and plans: what differs does not concern it."""
    baseline = run.other("baseline").folder.parent
    name = f"nnUNetTrainer__{run.benchmark.plans_name(run.row.plans)}__{CONFIGURATION}"  # without length: for any
    if not (baseline.parent / name).exists():
        (baseline.parent / name).symlink_to(baseline.name, target_is_directory=True)


def predict(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Predict the test set, at LR and, for a row on thick slices, at HR; what is finished is left alone."""
    images = run.benchmark.folder("raw", run.benchmark.dataset(run.row.data)) / "imagesTs"
    if not images.is_dir():
        return
    commands = {"hr" if run.row.hr == "data" else "lr": "nnUNetv2_predict"}
    if run.row.hr != "data":
        commands["hr"] = "rehrseg predict"
    for resolution, command in commands.items():
        target = run.predictions / resolution
        if target.is_dir():
            continue
        partial = target.with_name(f"{resolution}_partial")
        shutil.rmtree(partial, ignore_errors=True)  # nnU-Net would keep a file that a kill has cut off
        arguments = ["-i", str(images), "-o", str(partial), "-d", run.benchmark.dataset(run.row.data)]
        arguments += ["-c", CONFIGURATION, "-f", str(run.fold), "-tr", run.trainer, "-device", device]
        arguments += ["-p", run.benchmark.plans_name(run.row.plans)]
        if run.row.hr == "upsampled" and resolution == "lr":
            arguments.append("--save_probabilities")
        with _measured(run, f"predict_{resolution}"):
            execute([*command.split(), *arguments], run.environment())
        partial.rename(target)


def seconds_file(run: Run) -> Path:
    """Where a run's durations are kept."""
    return run.benchmark.work / f"seed_{run.seed}" / "seconds" / f"{run.label}.json"


@contextmanager
def _measured(run: Run, step: str) -> Iterator[None]:
    """Add a step's wall and CPU seconds, those of its children, to what interrupted attempts have taken.

    What a killed attempt took is not known; the step is then marked `incomplete`.
    """
    file = seconds_file(run)
    file.parent.mkdir(parents=True, exist_ok=True)
    seconds = json.loads(file.read_text()) if file.is_file() else {}
    before = seconds.get(step, {"wall": 0.0, "cpu": 0.0})
    write_atomically(file, json.dumps({**seconds, step: {**before, "incomplete": True}}, indent=2))
    wall, cpu = time.perf_counter(), _children_cpu()
    try:
        yield
    finally:
        taken = {"wall": time.perf_counter() - wall, "cpu": _children_cpu() - cpu}
        seconds[step] = {**before, **{clock: before[clock] + value for clock, value in taken.items()}}
        write_atomically(file, json.dumps(seconds, indent=2))


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

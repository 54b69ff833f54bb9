"""nnU-Net's and REHRSeg's commands as the benchmarks start them: environment, trainings, predictions that are whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.quality.clock import Clock
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT

REPOSITORY = Path(__file__).resolve().parents[2]  # trainers of the benchmarks import from `benchmarks`
DEFAULTS = {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "PASSIVE"}
# of trainings side by side: each in one thread of one process, so that one does not take the other's core
SIDE_BY_SIDE = {"nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1"}


class Execute(Protocol):
    """Run a command, with more environment variables if need be; raise if it fails; its CPU seconds."""

    def __call__(self, command: list[str], environment: dict[str, str] | None = None, /) -> float:
        """See the class."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training by `nnUNetv2_train`.

    Attributes:
        dataset: nnU-Net's name or number.
        configuration: of the plans.
        fold: nnU-Net's number.
        trainer: its name with a length.
        plans: plans identifier.
        folder: nnU-Net's fold folder.
        seed: of the training process.
        precision: see `launch`.
        seconds: file for the seconds that it takes.
    """

    dataset: str
    configuration: str
    fold: int
    trainer: str
    plans: str
    folder: Path
    seed: int
    precision: str
    seconds: Path


def set_environment(work: Path, *, trainers: Sequence[Path], jobs: int = 1) -> None:
    """nnU-Net's variables for this process and its children, absolute paths; the user's own counts win.

    Args:
        work: folder of a benchmark.
        trainers: folders of its own trainers.
        jobs: trainings at the same time.
    """
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder)
    os.environ["nnUNet_results"] = str(work)
    for name, value in (DEFAULTS | (SIDE_BY_SIDE if jobs > 1 else {})).items():
        os.environ.setdefault(name, value)
    _put_last("PYTHONPATH", REPOSITORY)
    ensure_trainer_path()
    folders = os.environ["nnUNet_extTrainer"].split(os.pathsep)
    new = [str(folder) for folder in trainers if str(folder) not in folders]
    os.environ["nnUNet_extTrainer"] = os.pathsep.join([*folders, *new])


def _put_last(variable: str, folder: Path) -> None:
    """Put a folder behind those that an environment variable lists, once: an installed package goes before it."""
    others = [entry for entry in os.environ.get(variable, "").split(os.pathsep) if entry not in ("", str(folder))]
    os.environ[variable] = os.pathsep.join([*others, str(folder)])


def execute(command: list[str], environment: dict[str, str] | None = None) -> float:
    """Run one command of this Python's environment, print it first.

    Returns:
        CPU seconds of the command and its children.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    print("$", *command, flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(command, env={**os.environ, **(environment or {}), "PATH": path}) as process:
        _, status, usage = os.wait4(process.pid, 0)  # other jobs have children at the same time
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, command)
    return usage.ru_utime + usage.ru_stime


def training_command(training: Training, *, device: str) -> list[str]:
    """The command that trains and validates, from the last checkpoint if there is one."""
    own = training
    command = [sys.executable, "-m", "benchmarks.quality.launch", str(own.seed), own.precision, str(own.seconds)]
    command += [own.dataset, own.configuration, str(own.fold), "-tr", own.trainer, "-p", own.plans, "-device", device]
    if (own.folder / FINAL_CHECKPOINT).is_file():
        command.append("--val")
    elif list(own.folder.glob("checkpoint_*.pth")):
        command.append("--c")
    return command


def predict_folder(
    command: list[str], images: Path, target: Path, *, clock: Clock, execute: Callable[[list[str]], float]
) -> None:
    """Predict a folder of scans into a new one, which is there when all of it is; nothing if it is there.

    Args:
        command: with all arguments but the folders.
        images: scans.
        target: for the predictions.
        clock: for the seconds that it takes.
        execute: runs a command and raises if it fails.
    """
    if target.is_dir():
        return
    partial = target.with_name(f"{target.name}_partial")
    shutil.rmtree(partial, ignore_errors=True)  # nnU-Net would keep a file that a kill has cut off
    clock.save(execute([*command, "-i", str(images), "-o", str(partial)]))
    partial.rename(target)

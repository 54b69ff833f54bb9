"""What the demos have in common: a folder with nnU-Net's three, short trainings, and one log."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.nnunet.safe_files import write_atomically

SHAPE = (32, 40, 40)
PLANS, CONFIGURATION, FOLD = "demo", "3d_fullres", 0
STEPS_PER_EPOCH, VALIDATION_STEPS = 25, 5
WORKERS = "nnUNet_n_proc_DA"
# several trainings in one process would be one run of Weights & Biases, which refuses that
ENVIRONMENT = {"nnUNet_def_n_proc": "1", WORKERS: "1", "nnUNet_wandb_enabled": "0"}


def set_environment(folder: Path) -> None:
    """nnU-Net's folders and worker counts; nnU-Net reads some when it is imported, so nothing may import it earlier."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True)
        os.environ[name] = str(folder / name)
    os.environ.update(ENVIRONMENT)
    ensure_trainer_path()
    from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
    from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
    from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE

    for variable in (SELF_SR_VARIABLE, TEACHER_VARIABLE, KEEPER_VARIABLE):
        os.environ.pop(variable, None)  # those are of other data


class DemoFolder:
    """Steps of a demo, each printed with its progress; nnU-Net's own messages go to `demo.log`.

    Args:
        folder: folder that nnU-Net's environment variables point into.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "demo.log"

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Send everything that is said to the log."""
        with self.log.open("a") as log, redirect_stdout(log), redirect_stderr(log), _logging_to(log):
            yield

    def plan(self, number: int, *, methods: Collection[str]) -> None:
        """nnU-Net's planning and preprocessing of a dataset, and plans with the demo preset."""
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess,
        )

        from rehrseg_nnunet.config.presets import apply_preset, load_preset

        os.environ[WORKERS] = "1"  # nnU-Net's planner hands it to torch as a number of threads
        with self.quiet():
            extract_fingerprints([number], num_processes=1)
            plan_experiments([number])
            preprocess([number], configurations=[CONFIGURATION], num_processes=[1])
        (folder,) = (self.folder / "nnUNet_preprocessed").glob(f"Dataset{number:03d}_*")
        plans = json.loads((folder / "nnUNetPlans.json").read_text())
        plans = apply_preset(plans, load_preset("demo"), plans_name=PLANS, methods=methods)
        write_atomically(folder / f"{PLANS}.json", json.dumps(plans, indent=2))

    def train(self, title: str, trainer_name: str, *, number: int, epochs: int | None) -> None:
        """A training and its validation.

        Args:
            title: of the progress bar.
            trainer_name: class name.
            number: of the dataset.
            epochs: its length; None: that of the preset.
        """
        import torch
        from nnunetv2.run.run_training import get_trainer_from_args

        os.environ[WORKERS] = "0"  # for so little work, workers take longer to start than they save
        with self.quiet():
            trainer = get_trainer_from_args(
                str(number), CONFIGURATION, FOLD, trainer_name, PLANS, device=torch.device("cpu")
            )
        trainer.num_epochs = epochs or trainer.num_epochs
        trainer.num_iterations_per_epoch = STEPS_PER_EPOCH
        trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
        with tqdm(total=trainer.num_epochs, desc=title, unit="epoch") as bar, self.quiet():
            _count_epochs(trainer, bar)
            trainer.run_training()
            bar.set_postfix_str("writing predictions")
            trainer.perform_actual_validation(save_probabilities=True)
            bar.set_postfix_str("")

    def fold_of(self, dataset: str, trainer_name: str) -> Path:
        """nnU-Net's folder of a training."""
        return self.folder / "nnUNet_results" / dataset / f"{trainer_name}__{PLANS}__{CONFIGURATION}" / f"fold_{FOLD}"


@contextmanager
def _logging_to(stream: TextIO) -> Iterator[None]:
    """Send log messages to a stream only."""
    root = logging.getLogger()
    former = list(root.handlers)
    root.handlers[:] = [logging.StreamHandler(stream)]
    try:
        yield
    finally:
        root.handlers[:] = former


def _count_epochs(trainer: Any, bar: tqdm) -> None:
    finish_epoch = trainer.on_epoch_end

    def on_epoch_end() -> None:
        finish_epoch()
        bar.update()

    trainer.on_epoch_end = on_epoch_end

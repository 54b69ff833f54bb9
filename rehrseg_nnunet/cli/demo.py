"""Run everything on a generated phantom, on a CPU, in minutes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.nnunet.safe_files import write_atomically

SOURCE_ID, THICK_ID = 1, 2
FACTOR = 4
SHAPE = (32, 40, 40)
CASES = 15
SEED = 2025
PLANS, CONFIGURATION, FOLD = "demo", "3d_fullres", 0
STEPS_PER_EPOCH, VALIDATION_STEPS = 25, 5
BASELINE_EPOCHS, STAGE_2_EPOCHS = 20, 24
WORKERS = "nnUNet_n_proc_DA"
CLOSING = """
It worked if REHRSeg and the baselines are close on thick slices, and if on thin slices the nearest-neighbour rows
(repeated slices) are far below the others. REHRSeg's lead here is a phantom's: short trainings on real MRI do not
show it. Three phantoms and a few hundred steps say no more: numbers differ by some hundredths from run to run.

segment a scan with a trained model, here one of the phantoms:
    {predict}

finished in {minutes:.1f} min; everything is in {folder}
to look at, in a browser: {page}
your own data: docs/getting-started.md of the repository"""
# four trainings in one process would be one run of Weights & Biases, which refuses that
ENVIRONMENT = {"nnUNet_def_n_proc": "1", WORKERS: "1", "nnUNet_wandb_enabled": "0"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg demo`."""
    parser.add_argument(
        "-o", default="rehrseg_demo", metavar="FOLDER", help="new folder for all files (default: rehrseg_demo)"
    )


def run(args: argparse.Namespace) -> None:
    """Phantom, thick slices, baseline, stage 1, stage 2, tables, page."""
    folder = Path(args.o).resolve()
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"-o must name a new or empty folder, got {folder}")
    _set_environment(folder)
    started = time.monotonic()
    demo = Demo(folder)
    demo.prepare()
    demo.train_all()
    print(demo.tables())
    page = demo.write_page()
    minutes = (time.monotonic() - started) / 60
    print(CLOSING.format(minutes=minutes, folder=folder, page=page, predict=demo.predict_command()))


def _set_environment(folder: Path) -> None:
    """nnU-Net's folders and worker counts; nnU-Net reads some when it is imported, so nothing may import it earlier."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir(parents=True)
        os.environ[name] = str(folder / name)
    os.environ.update(ENVIRONMENT)
    ensure_trainer_path()
    from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE

    os.environ.pop(SELF_SR_VARIABLE, None)  # that is a stage 1 of other data


class Demo:
    """The demo's steps, each printed with its progress; nnU-Net's own messages go to `demo.log`.

    Args:
        folder: folder that nnU-Net's environment variables point into.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / "demo.log"
        self.source = folder / "nnUNet_raw" / f"Dataset{SOURCE_ID:03d}_Phantom"

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        with self.log.open("a") as log, redirect_stdout(log), redirect_stderr(log), _logging_to(log):
            yield

    def prepare(self) -> None:
        """Phantom, thick slices, nnU-Net's planning and preprocessing, the demo preset."""
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess,
        )

        from rehrseg_nnunet.cases.phantom import write_phantom_dataset
        from rehrseg_nnunet.cli.simulate import simulate
        from rehrseg_nnunet.config.presets import apply_preset, load_preset

        os.environ[WORKERS] = "1"  # nnU-Net's planner hands it to torch as a number of threads
        print(f"1/6 {CASES} phantoms, thick slices by a factor of {FACTOR}, nnU-Net's planning and preprocessing")
        write_phantom_dataset(self.source, cases=CASES, shape=SHAPE, seed=SEED)
        with self._quiet():
            self.thick = simulate(str(SOURCE_ID), THICK_ID, factor=FACTOR, axis="z")
            extract_fingerprints([THICK_ID], num_processes=1)
            plan_experiments([THICK_ID])
            preprocess([THICK_ID], configurations=[CONFIGURATION], num_processes=[1])
        preprocessed = self.folder / "nnUNet_preprocessed" / self.thick.name
        plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
        plans = apply_preset(plans, load_preset("demo"), plans_name=PLANS)
        write_atomically(preprocessed / f"{PLANS}.json", json.dumps(plans, indent=2))

    def train_all(self) -> None:
        """Baseline, the same continued, stage 1 and stage 2."""
        os.environ[WORKERS] = "0"  # for so little work, workers take longer to start than they save
        self._train("2/6 baseline", "nnUNetTrainer", epochs=BASELINE_EPOCHS)
        self._train("3/6 baseline, continued", "ContinuedBaselineTrainer", epochs=STAGE_2_EPOCHS)
        self._train("4/6 stage 1: self-super-resolution", "SelfSRTrainer", epochs=None)
        self._train("5/6 stage 2: REHRSeg", "REHRSegTrainer", epochs=STAGE_2_EPOCHS)

    def _train(self, title: str, trainer_name: str, *, epochs: int | None) -> None:
        import torch
        from nnunetv2.run.run_training import get_trainer_from_args

        with self._quiet():
            trainer = get_trainer_from_args(
                str(THICK_ID), CONFIGURATION, FOLD, trainer_name, PLANS, device=torch.device("cpu")
            )
        trainer.num_epochs = epochs or trainer.num_epochs
        trainer.num_iterations_per_epoch = STEPS_PER_EPOCH
        trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
        with tqdm(total=trainer.num_epochs, desc=title, unit="epoch") as bar, self._quiet():
            _count_epochs(trainer, bar)
            trainer.run_training()
            bar.set_postfix_str("writing predictions")
            trainer.perform_actual_validation(save_probabilities=True)
            bar.set_postfix_str("")

    def fold_folder(self, trainer_name: str) -> Path:
        """nnU-Net's folder of a training."""
        results = self.folder / "nnUNet_results" / self.thick.name
        return results / f"{trainer_name}__{PLANS}__{CONFIGURATION}" / f"fold_{FOLD}"

    def predict_command(self) -> str:
        """A command that segments a phantom with what was trained."""
        model, scan = self.fold_folder("REHRSegTrainer").parent, sorted((self.thick / "imagesTr").iterdir())[0]
        words = ["rehrseg", "predict", "-m", model, "-i", scan, "-o", self.folder / "segmentation.nii.gz"]
        return shlex.join(map(str, words))

    def tables(self) -> str:
        """LR and HR Dice and HD95 of the validation cases."""
        from rehrseg_nnunet.evaluation.fold_comparison import brief_table, compare_fold

        print("6/6 LR and HR comparison on the validation cases")
        with self._quiet():
            lr, hr = compare_fold(
                raw_folder=self.thick,
                fold_folders={
                    "baseline": self.fold_folder("nnUNetTrainer"),
                    "baseline, continued": self.fold_folder("ContinuedBaselineTrainer"),
                    "REHRSeg": self.fold_folder("REHRSegTrainer"),
                },
                factor=FACTOR,
                axis=0,
                output_folder=self.folder / "comparison",
            )
        return (
            f"\nThick slices (LR)\n\n{brief_table(lr)}\n\n"
            f"Thin slices (HR), against the true HR labels\n\n{brief_table(hr)}"
        )

    def write_page(self) -> Path:
        """The page of the REHRSeg fold."""
        from rehrseg_nnunet.report.folds import WantedFolds, read_folds
        from rehrseg_nnunet.report.page import write_page

        file = self.folder / "report.html"
        wanted = WantedFolds(str(THICK_ID), CONFIGURATION, (str(FOLD),), plans=PLANS)
        with self._quiet(), tempfile.TemporaryDirectory(prefix="rehrseg-report-") as scratch:
            write_page(read_folds(wanted, Path(scratch)), file)
        return file


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

"""Train and predict what is missing, one row, fold and seed at a time, through nnU-Net's and REHRSeg's commands."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality import commands
from benchmarks.quality.benchmark import CONFIGURATION, FILE_ENDING, Benchmark
from benchmarks.quality.clock import Clock
from benchmarks.quality.commands import Execute, execute
from benchmarks.quality.rows import ROWS, Row
from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
from rehrseg_nnunet.guided.report import SYNTHESIS_REPORT, TEACHER_REPORT
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.training_lengths import trainer_name
from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE

OWN_TRAINERS = Path(__file__).resolve().parent / "trainers"
REPORTS = {
    "SMORETrainer": "smore_report.json",
    "SelfSRTrainer": "self_sr_report.json",
    "SelfSRTrainer_trueHRData": "self_sr_report.json",
    "GuidanceTeacherTrainer": TEACHER_REPORT,
    "KnowledgeKeeperTrainer": SYNTHESIS_REPORT,
}


@dataclass(frozen=True)
class Run:
    """A row of one fold and seed, and where its files are.

    Attributes:
        benchmark: what is compared.
        row: the row.
        fold: nnU-Net's number.
        seed: of the training process; every seed has a results folder of its own.
        stage_2_epochs: epochs of all that goes on from the baseline.
        settings: name under which rows that depend on this package's settings are trained; "" for none.
    """

    benchmark: Benchmark
    row: Row
    fold: int
    seed: int
    stage_2_epochs: int
    settings: str = ""

    @property
    def plans_name(self) -> str:
        """Name of its plans."""
        return self.benchmark.plans_name("_".join(filter(None, [self._own_settings, self.row.plans])))

    @property
    def _own_settings(self) -> str:
        return self.settings if self.row.has_settings else ""

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
        model = f"{self.trainer}__{self.plans_name}__{CONFIGURATION}"
        return self.results / self.benchmark.dataset(self.row.data) / model / f"fold_{self.fold}"

    @property
    def predictions(self) -> Path:
        """Folder for the predictions of the test set, `lr` and `hr`."""
        return self.benchmark.work / f"seed_{self.seed}" / "predictions" / self.label

    @property
    def label(self) -> str:
        """Unique name of the run within its seed."""
        name = "_".join(filter(None, [self.row.key, self._own_settings]))
        return f"{name}_{self.all_epochs or 'own'}epochs_fold{self.fold}"

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
        with_head = self.row.segments and self.row.hr == "head"
        cases = (self.folder / "validation").glob("*.nii.gz") if with_head else ()
        return all((at_hr / case.name).is_file() for case in cases)

    def other(self, key: str) -> Run:
        """Another row of the same fold and seed."""
        return Run(self.benchmark, ROWS[key], self.fold, self.seed, self.stage_2_epochs, self.settings)

    @property
    def before(self) -> list[Run]:
        """The runs that it builds on itself."""
        return [self.other(key) for key in self.row.before]

    @property
    def pipeline(self) -> list[Run]:
        """All runs that must be trained for it, each once, itself last."""
        runs = {run.label: run for before in self.before for run in before.pipeline}
        return [*runs.values(), self]

    def environment(self) -> dict[str, str]:
        """Environment variables that its commands need."""
        variables = {
            "nnUNet_raw": str(self.benchmark.work / "nnUNet_raw"),
            "nnUNet_preprocessed": str(self.benchmark.work / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.results),
        }
        # empty, as good as unset, else: one that the user has set is of another comparison
        named = {
            SELF_SR_VARIABLE: self.row.stage_1,
            TEACHER_VARIABLE: "teacher" if "teacher" in self.row.after else "",
            KEEPER_VARIABLE: self.row.keeper,
        }
        for variable, key in named.items():
            variables[variable] = str(self.other(key).folder) if key else ""
        return variables


def set_environment(benchmark: Benchmark, *, jobs: int = 1) -> None:
    """See `commands.set_environment`."""
    commands.set_environment(benchmark.work, trainers=[OWN_TRAINERS], jobs=jobs)


def train(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Train and validate, from the last checkpoint if it was interrupted; nothing if it is finished."""
    if run.finished:
        return
    forget_results(run)
    if run.row.start == "baseline":
        _show_baseline(run)
    training = commands.Training(
        dataset=run.benchmark.dataset(run.row.data),
        configuration=CONFIGURATION,
        fold=run.fold,
        trainer=run.trainer,
        plans=run.plans_name,
        folder=run.folder,
        seed=run.seed,
        precision=run.benchmark.precision,
        seconds=seconds_file(run),
    )
    command = commands.training_command(training, device=device)
    if run.row.hr in ("upsampled", "data"):
        command.append("--npz")
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
    name = f"nnUNetTrainer__{run.plans_name}__{CONFIGURATION}"  # without length: for any
    with contextlib.suppress(FileExistsError):  # of another training of the same plans
        (baseline.parent / name).symlink_to(baseline.name, target_is_directory=True)


def predict(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Predict the test set, at LR and, for a row on thick slices, at HR; what is finished is left alone.

    For a row on thick slices also the validation cases by `rehrseg predict`: what is chosen on validation cases then
    holds for what is tested. HR predictions come with their probabilities.
    """
    images = run.benchmark.folder("raw", run.benchmark.dataset(run.row.data)) / "imagesTs"
    if not images.is_dir():
        return
    if run.row.hr == "data":
        _predict(run, "nnUNetv2_predict", images, "hr", device=device, execute=execute)
        return
    probabilities = run.row.hr == "upsampled"
    _predict(run, "nnUNetv2_predict", images, "lr", device=device, execute=execute, probabilities=probabilities)
    _predict(run, "rehrseg predict", images, "hr", device=device, execute=execute)
    _predict(run, "rehrseg predict", validation_images(run), "validation_hr", device=device, execute=execute)


def _predict(
    run: Run, command: str, images: Path, name: str, *, device: str, execute: Execute, probabilities: bool = True
) -> None:
    arguments = ["-d", run.benchmark.dataset(run.row.data), "-c", CONFIGURATION, "-f", str(run.fold)]
    arguments += ["-tr", run.trainer, "-device", device, "-p", run.plans_name]
    if probabilities:
        arguments.append("--save_probabilities")
    commands.predict_folder(
        [*command.split(), *arguments],
        images,
        run.predictions / name,
        clock=Clock(seconds_file(run), f"predict_{name}"),
        execute=lambda own: execute(own, run.environment()),
    )


def validation_images(run: Run) -> Path:
    """Folder with the images of the fold's validation cases, as links."""
    dataset = run.benchmark.dataset(run.row.data)
    folder = run.benchmark.work / "validation_images" / dataset / f"fold_{run.fold}"
    folder.mkdir(parents=True, exist_ok=True)
    splits = json.loads((run.benchmark.folder("preprocessed", dataset) / "splits_final.json").read_text())
    for case in splits[run.fold]["val"]:
        for image in (run.benchmark.folder("raw", dataset) / "imagesTr").glob(f"{case}_????{FILE_ENDING}"):
            with contextlib.suppress(FileExistsError):
                (folder / image.name).symlink_to(image)
    return folder


def seconds_file(run: Run) -> Path:
    """Where a run's durations are kept."""
    return run.benchmark.work / f"seed_{run.seed}" / "seconds" / f"{run.label}.json"

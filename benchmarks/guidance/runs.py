"""Train and predict what is missing, one row and seed at a time, through nnU-Net's and REHRSeg's commands."""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.guidance.benchmark import CONFIGURATION, FOLD, GuidanceBenchmark
from benchmarks.guidance.rows import ROWS, Row
from benchmarks.quality.benchmark import FILE_ENDING
from benchmarks.quality.clock import Clock
from benchmarks.quality.commands import Execute, Training, execute, predict_folder, training_command
from benchmarks.quality.runs import OWN_TRAINERS
from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
from rehrseg_nnunet.guided.report import SYNTHESIS_REPORT, TEACHER_REPORT
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.training_lengths import trainer_name

TRAINERS = (Path(__file__).resolve().parent / "trainers", OWN_TRAINERS)  # the other benchmark's have any length


@dataclass(frozen=True)
class Run:
    """A row of one seed, and where its files are. What was trained without this benchmark is found there as well.

    Attributes:
        benchmark: what is compared.
        row: the row.
        seed: of the training process; the first has nnUNet_results of the work folder, others have one of their own.
        first_seed: whose are the rows that are not trained for every seed.
    """

    benchmark: GuidanceBenchmark
    row: Row
    seed: int
    first_seed: int = 0

    @property
    def base(self) -> Path:
        """Folder of this seed."""
        work = self.benchmark.work
        return work if self.seed == self.first_seed else work / f"seed_{self.seed}"

    @property
    def epochs(self) -> int | None:
        """Epochs of its own training; None: what its settings say."""
        if self.row.epochs == "both":
            return self.benchmark.baseline_epochs + self.benchmark.continued_epochs
        return getattr(self.benchmark, f"{self.row.epochs}_epochs")

    @property
    def all_epochs(self) -> str:
        """What its network has been trained for, with what it started from."""
        before = f"{self.benchmark.baseline_epochs}+" if self.row.start else ""
        return f"{before}{self.epochs or ''}"

    @property
    def stage_2_epochs(self) -> int:
        """All rows are compared at one length."""
        return self.benchmark.continued_epochs

    @property
    def trainer(self) -> str:
        """Name of the trainer with its length."""
        return self.row.trainer if self.epochs is None else trainer_name(self.row.trainer, self.epochs)

    @property
    def plans_name(self) -> str:
        """Name of its plans."""
        return self.benchmark.plans_name(self.row.plans)

    @property
    def dataset(self) -> str:
        """Name of its dataset."""
        return self.benchmark.dataset(self.row.data)

    @property
    def model(self) -> Path:
        """nnU-Net's folder of the folds."""
        return self.base / "nnUNet_results" / self.dataset / f"{self.trainer}__{self.plans_name}__{CONFIGURATION}"

    @property
    def folder(self) -> Path:
        """nnU-Net's fold folder."""
        return self.model / f"fold_{FOLD}"

    @property
    def label(self) -> str:
        """Unique name of the run within its seed."""
        return f"{self.dataset}__{self.trainer}__{self.plans_name}"

    @property
    def seconds(self) -> Path:
        """Where its durations are kept."""
        return self.base / "seconds" / f"{self.label}.json"

    @property
    def scores(self) -> Path:
        """Where its scores are kept."""
        return self.base / "scores" / f"{self.label}.json"

    @property
    def predictions(self) -> Path:
        """Folder for the predictions of the test set."""
        other = "" if self.plans_name == self.benchmark.plans else f"__{self.plans_name}"
        return self.base / "predictions" / self.dataset / f"{self.trainer}{other}"

    @property
    def report(self) -> Path:
        """What a finished training leaves beside its checkpoint."""
        if not self.row.synthesises:
            return self.folder / "validation" / "summary.json"
        return self.folder / (TEACHER_REPORT if self.row.trainer == "GuidanceTeacherTrainer" else SYNTHESIS_REPORT)

    @property
    def finished(self) -> bool:
        """Whether it is trained and validated."""
        return self.report.is_file() and (self.folder / FINAL_CHECKPOINT).is_file()

    def other(self, key: str) -> Run:
        """The run of another row that goes with this one."""
        row = ROWS[key]
        return Run(self.benchmark, row, self.seed if row.seeded else self.first_seed, self.first_seed)

    @property
    def before(self) -> list[Run]:
        """The runs that it builds on."""
        return [self.other(key) for key in self.row.before] + ([self.keeper] if self.row.keeper else [])

    @property
    def keeper(self) -> Run:
        """The run of the keeper that guides."""
        return self.other(self.benchmark.keeper)

    @property
    def pipeline(self) -> list[Run]:
        """All runs that must be trained for it, each once, itself last."""
        runs = {run.label: run for before in self.before for run in before.pipeline}
        return [*runs.values(), self]

    @property
    def teacher(self) -> Run:
        """The run of its teacher, or the one in whose features its images are compared."""
        return self.other(self.row.teacher or "teacher")

    def environment(self) -> dict[str, str]:
        """Environment variables that its commands need; those that it must not have are empty."""
        own = self.teacher if self.row.teacher else None
        teacher = self.keeper.teacher if self.row.keeper else own
        return {
            "nnUNet_raw": str(self.benchmark.work / "nnUNet_raw"),
            "nnUNet_preprocessed": str(self.benchmark.work / "nnUNet_preprocessed"),
            "nnUNet_results": str(self.base / "nnUNet_results"),
            TEACHER_VARIABLE: str(teacher.folder) if teacher else "",
            KEEPER_VARIABLE: str(self.keeper.folder) if self.row.keeper else "",
        }


def train(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Train and validate, from the last checkpoint if it was interrupted; nothing if it is finished."""
    if run.finished:
        return
    forget_results(run)
    if run.row.start:
        show_baseline(run)
    training = Training(
        dataset=run.dataset,
        configuration=CONFIGURATION,
        fold=FOLD,
        trainer=run.trainer,
        plans=run.plans_name,
        folder=run.folder,
        seed=run.seed,
        precision=run.benchmark.precision,
        seconds=run.seconds,
    )
    execute(training_command(training, device=device), run.environment())


def forget_results(run: Run) -> None:
    """Remove predictions and scores of a network that is about to change; of one that starts anew also its times."""
    shutil.rmtree(run.predictions, ignore_errors=True)
    run.scores.unlink(missing_ok=True)
    if not list(run.folder.glob("checkpoint_*.pth")):
        run.seconds.unlink(missing_ok=True)


def show_baseline(run: Run) -> None:
    """Let a training of another length, or of another seed, find the one that it starts from, named without length."""
    baseline = run.other(run.row.start).model
    link = run.model.with_name(f"nnUNetTrainer__{run.plans_name}__{CONFIGURATION}")
    link.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        link.symlink_to(baseline, target_is_directory=True)


def predict(run: Run, *, device: str, execute: Execute = execute) -> None:
    """Predict the test set without mirroring, all rows alike; nothing if that is done."""
    target = run.predictions
    if has_every_case(run):
        return
    command = ["nnUNetv2_predict", "-d", run.dataset, "-c", CONFIGURATION, "-f", str(FOLD), "-tr", run.trainer]
    command += ["-p", run.plans_name, "-device", device, "--disable_tta", "-npp", "0", "-nps", "0"]
    images = run.benchmark.folder("raw", run.row.data) / "imagesTs"
    if target.is_dir():
        target.rename(target.with_name(f"{target.name}_partial"))  # of someone else, cut off
    clock = Clock(run.seconds, "predict")
    predict_folder(command, images, target, clock=clock, execute=lambda own: execute(own, run.environment()))


def has_every_case(run: Run) -> bool:
    """Whether every test case is predicted."""
    labels = run.benchmark.folder("raw", run.row.data) / "labelsTs"
    cases = [file.name for file in labels.glob(f"*{FILE_ENDING}")]
    return bool(cases) and all((run.predictions / case).is_file() for case in cases)

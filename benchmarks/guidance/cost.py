"""What guidance costs beside nnU-Net: step, memory, parameters, checkpoint and prediction, as ratios from one run.

    python -m benchmarks.guidance.cost --pairs 604 --segmentation 605 -p cpu

The datasets must be planned and preprocessed (nnU-Net's environment variables set), with patches and batches alike.
Nothing must be trained: networks have random weights of the plans' sizes, which cost the same. Times are medians of
calls in turn, so that a busy machine is as slow for all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from benchmarks.cost import WORKERS, interleaved, peak_gib, segmentation_batch
from benchmarks.guidance.benchmark import CONFIGURATION, FOLD
from benchmarks.guidance.tables import Cell, Table, as_csv
from benchmarks.quality.plans import merged
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.config.guidance import BLOCK
from rehrseg_nnunet.guided.frozen import FrozenTeacher
from rehrseg_nnunet.guided.networks import build_teacher
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_dataset_json, read_json
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.folders import find_dataset

STOCK, TEACHER, KEEPER, GUIDED = "nnU-Net", "teacher", "keeper", "guided"
TRAINERS = {
    STOCK: "nnUNetTrainer",
    TEACHER: "GuidanceTeacherTrainer",
    KEEPER: "KnowledgeKeeperTrainer",
    GUIDED: "GuidedTrainer_randomKeeper",
}
COLUMNS = {
    "step_ratio": "training step",
    "memory_ratio": "peak memory",
    "parameters_ratio": "parameters",
    "checkpoint_ratio": "checkpoint",
    "prediction_ratio": "network at prediction",
}
STEPS = 3  # of which memory is measured


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        kind: key of `TRAINERS`.
        width: `base_features`.
        kernel: of the keeper.
        hidden: width of fusion.
        residual: whether the keeper starts from the teacher's features of the scan.
    """

    kind: str
    width: int = 8
    kernel: int = 3
    hidden: float = 0.25
    residual: bool = True

    @property
    def title(self) -> str:
        """As printed."""
        parts = {
            STOCK: [],
            TEACHER: [f"width {self.width}"],
            KEEPER: [f"width {self.width}", f"kernel {self.kernel}"],
            GUIDED: [f"width {self.width}", f"kernel {self.kernel}", f"fusion {self.hidden:g} C"],
        }
        return ", ".join([self.kind, *parts[self.kind], *([] if self.residual else ["not residual"])])

    @property
    def changes(self) -> dict[str, Any]:
        """Of the plans' `guidance` block."""
        return {
            "base_features": self.width,
            "keeper": {"kernel": self.kernel, "residual": self.residual},
            "fusion": {"hidden": self.hidden},
        }


SUBJECTS = (
    Subject(STOCK),
    *(Subject(TEACHER, width) for width in (8, 16)),
    *(Subject(KEEPER, width, kernel) for width in (8, 16) for kernel in (3, 7)),
    *(Subject(GUIDED, width, kernel) for width in (8, 16) for kernel in (3, 7)),
    *(Subject(kind, residual=False) for kind in (KEEPER, GUIDED)),
    Subject(GUIDED, 16, 7, 1.0, residual=False),  # the preset `paper`
)


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as results:
        os.environ["nnUNet_results"] = results
        os.environ[WORKERS] = "0"
        ensure_trainer_path()
        if args.peak_of is not None:
            print(peak_gib(lambda: _steps(args, SUBJECTS[args.peak_of]), device=args.device))
            return
        table = measure(args)
    print(table.markdown())
    if args.csv is not None:
        args.csv.write_text(as_csv([table]))


def measure(args: argparse.Namespace) -> Table:
    """All subjects beside nnU-Net, whose own numbers stand in the heading of its row."""
    trainers = [build(args, subject) for subject in SUBJECTS]
    batches = [batch_of(trainer) for trainer in trainers]
    steps = interleaved([lambda t=t, b=b: step(t, b) for t, b in zip(trainers, batches, strict=True)], args.repeats)
    sizes = [_checkpoint_mib(trainer) for trainer in trainers]
    parameters = [sum(p.numel() for p in unwrap(trainer.network).parameters()) for trainer in trainers]
    predictions = interleaved([_prediction(*pair) for pair in zip(trainers, batches, strict=True)], args.repeats)
    del trainers
    peaks = [_peak_of(number) for number in range(len(SUBJECTS))]
    table = Table("Cost of guidance", COLUMNS, "", 1)
    measured = zip(SUBJECTS, steps, peaks, parameters, sizes, predictions, strict=True)
    for subject, *values in measured:
        firsts = (steps[0], peaks[0], parameters[0], sizes[0], predictions[0])
        ratios = zip(COLUMNS, values, firsts, strict=True)
        table.rows[subject.title] = {name: Cell(value / first, 2) for name, value, first in ratios}
    own = (
        f"{steps[0]:.3g} s, {peaks[0]:.3g} GiB, {parameters[0] / 1e6:.3g} M, {sizes[0]:.3g} MiB, {predictions[0]:.3g} s"
    )
    print(f"{STOCK}: {own}\n")
    return table


def build(args: argparse.Namespace, subject: Subject) -> Any:
    """A trainer as nnU-Net makes it, under the plans with the subject's settings, initialised; without its words."""
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        return _build(args, subject)


def _build(args: argparse.Namespace, subject: Subject) -> Any:
    number = args.pairs if subject.kind in (TEACHER, KEEPER) else args.segmentation
    folder = find_dataset(Path(os.environ["nnUNet_preprocessed"]), number)
    plans = read_json(folder / f"{args.p}.json", remedy=PREPROCESS_FIRST)
    for configuration in plans["configurations"].values():
        configuration[BLOCK] = merged(configuration.get(BLOCK, {}), subject.changes)
    plans["continue_training"] = False
    trainer: Any = recursive_find_trainer_class_by_name(TRAINERS[subject.kind])(
        plans=plans,
        configuration=CONFIGURATION,
        fold=FOLD,
        dataset_json=read_dataset_json(folder / "dataset.json"),
        device=torch.device(args.device),
    )
    trainer.print_to_log_file = lambda *_, **__: None
    trainer.initialize()
    if subject.kind == KEEPER:
        teacher = build_teacher(trainer.configuration_manager.configuration)
        teacher.reconstruction = None
        teacher.eval().requires_grad_(False).to(trainer.device)
        trainer.teacher = FrozenTeacher(Path(), teacher, "")
    return trainer


def batch_of(trainer: Any) -> dict[str, Any]:
    """Random data of the shapes that the trainer's loader gives."""
    if not hasattr(trainer, "channels"):
        return segmentation_batch(trainer)
    size = trainer.configuration_manager.patch_size
    counts = (len(trainer.channels.source), len(trainer.channels.privileged), 1)
    source, privileged, inside = (torch.randn(trainer.batch_size, count, *size) for count in counts)
    return {"data": source, "target": [privileged, torch.ones_like(inside)]}


def step(trainer: Any, batch: dict[str, Any]) -> None:
    """A training step, the first one of its epoch for schedules that count."""
    trainer._step = 0
    trainer.train_step(batch)


def _steps(args: argparse.Namespace, subject: Subject) -> None:
    trainer = build(args, subject)
    batch = batch_of(trainer)
    for _ in range(STEPS):
        step(trainer, batch)


def _peak_of(number: int) -> float:
    command = [sys.executable, "-m", "benchmarks.guidance.cost", *sys.argv[1:], "--peak-of", str(number)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _checkpoint_mib(trainer: Any) -> float:
    """Of the file that a training leaves, with its optimiser."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint_final.pth"
        trainer.save_checkpoint(str(file))
        return file.stat().st_size / 2**20


def _prediction(trainer: Any, batch: dict[str, Any]) -> Any:
    """A call of the network as prediction or synthesis needs it, on one patch."""
    network = trainer.network.eval()
    kind = type(trainer).__name__
    image = batch["target"][0] if kind == TRAINERS[TEACHER] else batch["data"]
    patch = image[:1].to(trainer.device)
    if kind in (TRAINERS[STOCK], TRAINERS[GUIDED]):
        trainer.set_deep_supervision_enabled(False)

    def predict() -> None:
        with torch.inference_mode():
            network(patch)

    return predict


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.guidance.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", required=True, help="dataset of pairs")
    parser.add_argument("--segmentation", required=True, help="dataset of scans with labels")
    parser.add_argument("-p", default="cpu", help="plans of both (default: cpu)")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--csv", type=Path, help="file for the numbers")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()

"""Quality on real MRI with known truth: one resumable command from an isotropic dataset to the tables.

    python -m benchmarks.quality --source nnUNet_raw/Dataset004_Hippocampus --work /scratch/quality --tables 2 3

simulates thick slices, plans, preprocesses, trains and predicts through nnU-Net's own commands, for every fold and
seed, and prints the tables of what is finished: Dice and HD95 of the validation cases, and of test cases that no
training has seen, at LR and against the true HR labels. Run it again to go on: a finished row is never computed again,
a training that was stopped goes on from its last checkpoint, a tenth of it back at most. More folds, seeds, rows or
epochs of stage 2 go to the same work folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from benchmarks.quality.benchmark import Benchmark
from benchmarks.quality.datasets import prepare
from benchmarks.quality.filling import require_filter
from benchmarks.quality.jobs import Job, do_jobs
from benchmarks.quality.launch import PRECISIONS
from benchmarks.quality.rows import ROWS, TABLES, in_order
from benchmarks.quality.runs import Run, execute, predict, set_environment, train
from benchmarks.quality.scores import score
from benchmarks.quality.tables import write_tables
from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.config.presets import preset_names

SETTINGS = (
    "letters and digits; train this package's trainers under this name, beside those of a version of other settings"
)
PATCH = "patch size of thick slices, r times as many thin ones (default: nnU-Net's own)"


def main(argv: list[str] | None = None) -> None:
    """Do what is missing and print the tables."""
    args = _parser().parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    try:
        benchmark = _benchmark(args)
        trained = _runs(benchmark, args.rows or [key for table in args.tables for key in TABLES[table][1]], args)
        if not args.report:
            _work_alone(benchmark, trained, args)
    except (ValueError, OSError, ModuleNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    numbers = [n for n in TABLES if {*args.rows} & {*TABLES[n][1]}] if args.rows else args.tables
    folder = benchmark.work / "tables"
    shown = _runs(benchmark, [key for number in numbers for key in TABLES[number][1]], args)
    print(f"\n{write_tables(numbers, shown, folder)}\n{_legend(args)}\n\nEverything per case: {folder}")


def _benchmark(args: argparse.Namespace) -> Benchmark:
    """What the options mean, checked, and written down in the work folder unless it is only reported."""
    for option in ("baseline_epochs", "stage_2_epochs", "jobs"):
        values = getattr(args, option)
        if min(values if isinstance(values, list) else [values]) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {values}")
    benchmark = Benchmark(
        work=args.work.resolve(),
        source=args.source.resolve(),
        cases=args.cases,
        test_cases=args.test_cases,
        factor=args.factor,
        axis=args.axis,
        preset=args.preset,
        baseline_epochs=args.baseline_epochs,
        precision=args.precision,
        patch=None if args.patch is None else tuple(args.patch),
    )
    in_order(args.rows or [])
    benchmark.check()
    benchmark.remember(write=not args.report)
    return benchmark


def _runs(benchmark: Benchmark, keys: list[str], args: argparse.Namespace) -> list[Run]:
    """Runs of rows and of what they build on, each once: all rows of a seed and fold before the next."""
    runs = [
        Run(benchmark, row, fold, seed, epochs, args.settings)
        for seed in args.seeds
        for fold in args.folds
        for row in in_order(keys)
        for epochs in args.stage_2_epochs
    ]
    return list({(run.seed, run.label): run for run in reversed(runs)}.values())[::-1]


def _work_alone(benchmark: Benchmark, runs: list[Run], args: argparse.Namespace) -> None:
    """Do what is missing, unless another process does in this folder.

    Raises:
        ValueError: another one does.
    """
    try:
        with FileLock(benchmark.work / "work.lock", timeout=0):
            _work(benchmark, runs, args)
    except Timeout:
        raise ValueError(f"--work {benchmark.work} is being worked in; wait for that, or add --report") from None


def _work(benchmark: Benchmark, runs: list[Run], args: argparse.Namespace) -> None:
    rows = [run.row for run in runs]
    if any(row.hr == "upsampled" for row in rows):
        require_filter()  # not after hours
    set_environment(benchmark, jobs=args.jobs)
    datasets = {row.data for row in rows} - {"thick"}
    prepare(benchmark, datasets, {row.plans for row in rows}, execute, settings=args.settings)

    def work(run: Run) -> None:
        train(run, device=args.device)
        if run.row.segments:
            predict(run, device=args.device)
            score(run)

    do_jobs([Job(_name(run), frozenset(map(_name, run.before)), partial(work, run)) for run in runs], at_once=args.jobs)


def _name(run: Run) -> tuple[int, str]:
    return run.seed, run.label


def _legend(args: argparse.Namespace) -> str:
    return (
        f"r = {args.factor} along {args.axis}, preset {args.preset}, {args.precision}, {args.cases} cases in nnU-Net's "
        f"5 folds, folds {args.folds}, seeds {args.seeds}; epochs of 250 steps, a+b: b epochs from the baseline's "
        "checkpoint. Mean of all classes ± standard deviation over cases. A structure that is missed or made up has "
        "Dice and NSD 0, and HD95 and ASSD of the image's diagonal; NSD has a tolerance of one pixel. Minus first: "
        "mean over paired runs (folds and seeds) ± standard error, which says how sure the difference is for another "
        "training. 95 % and p, for other cases: bootstrap interval, and Wilcoxon test corrected by Holm for the number "
        "of methods, over cases with their mean over runs. CPU time: of all that the row needs, with validation and "
        "export."
    )


def _settings(name: str) -> str:
    if name and not name.isalnum():
        raise argparse.ArgumentTypeError(f"must be letters and digits, got {name}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="isotropic nnU-Net raw dataset folder (.nii.gz)")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; run again to resume")
    parser.add_argument("--cases", type=int, default=60, help="first cases of the source, in order of their names")
    parser.add_argument("--test-cases", type=int, default=0, help="cases after these, for testing alone")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--axis", choices=AXES, default="z")
    parser.add_argument("--preset", choices=preset_names(), default="cpu")
    parser.add_argument("--folds", type=int, nargs="+", choices=range(5), default=[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--baseline-epochs", type=int, default=10)
    parser.add_argument("--stage-2-epochs", type=int, nargs="+", default=[10], help="one or more lengths")
    parser.add_argument("--patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help=PATCH)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, with one thread each if more than 1")
    parser.add_argument("--settings", type=_settings, default="", metavar="NAME", help=SETTINGS)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=["2", "3", "4", "5", "6"])
    parser.add_argument("--rows", nargs="+", metavar="ROW", help=f"train these instead, of: {', '.join(ROWS)}")
    parser.add_argument("--report", action="store_true", help="train nothing, print what is finished")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="bfloat16 is faster on CPUs that have it"
    )
    parser.add_argument("--device", default="cpu")
    return parser


if __name__ == "__main__":
    main()

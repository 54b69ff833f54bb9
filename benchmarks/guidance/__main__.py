"""What guidance gives on pairs with known truth: one resumable command from a dataset of good scans to the tables.

    python -m benchmarks.guidance --source nnUNet_raw/Dataset004_Hippocampus --work /scratch/guidance --jobs 2

simulates what a weaker scanner would have given, plans, preprocesses, trains and predicts through nnU-Net's own
commands, and prints the tables of what is finished. Part `pairs`: teacher, keeper and a plain U-Net taught by L1, their
images scored on the validation cases of the pairs. Part `segmentation`: nnU-Net guided by that keeper, its rivals and
controls, on cases of their own, scored on test cases that no training has seen. Run it again to go on: a finished
training, prediction or score is never computed again, and what nnU-Net's commands have trained in the folder's
nnUNet_results counts as well.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from nnunetv2.training.nnUNetTrainer.variants.training_length import nnUNetTrainer_Xepochs

from benchmarks.guidance import image_scores, segmentation_scores
from benchmarks.guidance.benchmark import SIMULATED, SUFFIXES, GuidanceBenchmark
from benchmarks.guidance.datasets import add_synthesised, prepare, simulate, write_variant
from benchmarks.guidance.image_table import image_table
from benchmarks.guidance.page import new_page
from benchmarks.guidance.picture import write_picture
from benchmarks.guidance.rows import KEEPERS, PARTS, ROWS, in_order
from benchmarks.guidance.runs import TRAINERS, Run, predict, train
from benchmarks.guidance.segmentation_table import segmentation_table
from benchmarks.guidance.tables import Table, as_csv, as_markdown, into_page
from benchmarks.quality.commands import execute, set_environment
from benchmarks.quality.jobs import Job, do_jobs
from benchmarks.quality.launch import PRECISIONS
from rehrseg_nnunet.config.presets import preset_names
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.training_lengths import trainer_name


def main(argv: list[str] | None = None) -> None:
    """Do what is missing and print the tables."""
    args = _parser().parse_args(argv)
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    try:
        benchmark = _benchmark(args)
        runs = _runs(benchmark, _keys(args), args.seeds)
        if not args.report:
            _work_alone(benchmark, runs, args)
        _write(benchmark, [run for part in PARTS for run in _runs(benchmark, PARTS[part], args.seeds)], args)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def _benchmark(args: argparse.Namespace) -> GuidanceBenchmark:
    """What the options mean, checked, and written down in the work folder unless it is only reported."""
    for option in ("teacher_epochs", "keeper_epochs", "baseline_epochs", "continued_epochs", "batch_size", "jobs"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(args, option)}")
    names = [field.name for field in fields(GuidanceBenchmark) if field.name not in ("work", "source", "patch")]
    benchmark = GuidanceBenchmark(
        work=args.work.resolve(),
        source=args.source.resolve(),
        patch=None if args.patch is None else tuple(args.patch),
        **{name: getattr(args, name) for name in names},
    )
    baseline = trainer_name("nnUNetTrainer", args.baseline_epochs)
    if not hasattr(nnUNetTrainer_Xepochs, baseline):
        raise ValueError(f"--baseline-epochs must be a length of nnU-Net's own trainers, but it has no {baseline}")
    rows = in_order(_keys(args), keeper=args.keeper)
    segmentations = any(not row.synthesises for row in rows)
    benchmark.check(segmentations=segmentations)
    benchmark.remember(write=not args.report, segmentations=segmentations)
    return benchmark


def _keys(args: argparse.Namespace) -> list[str]:
    return args.rows or [key for part in args.parts for key in PARTS[part]]


def _runs(benchmark: GuidanceBenchmark, keys: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """Runs of rows and of what they build on, each once: all rows of a seed before the next."""
    rows, first = in_order(keys, keeper=benchmark.keeper), seeds[0]
    return [Run(benchmark, row, seed, first) for seed in seeds for row in rows if row.seeded or seed == first]


def _work_alone(benchmark: GuidanceBenchmark, runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Do what is missing, unless another process does in this folder.

    Raises:
        ValueError: another one does.
    """
    try:
        with FileLock(benchmark.work / "work.lock", timeout=0):
            set_environment(benchmark.work, trainers=TRAINERS, jobs=args.jobs)
            if args.jobs > 1:
                torch.set_num_threads(1)
            do_jobs(list(_jobs(benchmark, runs, args.device)), at_once=args.jobs)
    except Timeout:
        raise ValueError(f"--work {benchmark.work} is being worked in; wait for that, or add --report") from None


def _jobs(benchmark: GuidanceBenchmark, runs: Sequence[Run], device: str) -> Iterator[Job]:
    """Datasets, trainings and scores. Datasets are made one after another: each of them takes all cores."""
    used = {run.row.data for run in runs} | ({"source"} if _segments(runs) else set())
    datasets = sorted(used, key=["source", *(data for data in SUFFIXES if data != "source")].index)
    for number, data in enumerate(datasets):
        after = {("data", before) for before in datasets[:number]}
        after |= {_name(run.keeper) for run in runs if run.row.data == data == "synthesised"}
        yield Job(("data", data), frozenset(after), partial(_make, benchmark, data, runs))
    for run in runs:
        after = {("data", run.row.data), *map(_name, run.before)}
        if run.row.synthesises:
            after.add(_name(run.other("teacher")))  # whose features the images are compared in
        yield Job(_name(run), frozenset(after - {_name(run)}), partial(_work, run, device))


def _segments(runs: Sequence[Run]) -> bool:
    return any(not run.row.synthesises for run in runs)


def _make(benchmark: GuidanceBenchmark, data: str, runs: Sequence[Run]) -> None:
    if data in SIMULATED:
        simulate(benchmark, data, execute)
    else:
        add_synthesised(benchmark, next(run for run in runs if run.row.data == data).keeper.model, execute)
    prepare(benchmark, data, execute)
    for run in runs:
        if run.row.data == data:
            write_variant(benchmark, data, run.row.plans)


def _work(run: Run, device: str) -> None:
    train(run, device=device)
    if run.row.synthesises:
        image_scores.score(run)
    else:
        predict(run, device=device)
        segmentation_scores.score(run)


def _name(run: Run) -> tuple[int, str]:
    return run.seed, run.label


def _write(benchmark: GuidanceBenchmark, runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Print the tables and write them, to a page of docs/results too if one is named."""
    tables: list[Table] = [table for table in (image_table(runs), segmentation_table(runs)) if table.rows]
    folder = benchmark.work / f"tables_{benchmark.number}"
    folder.mkdir(exist_ok=True)
    print(f"\n{as_markdown(tables)}")
    write_atomically(folder / "tables.md", as_markdown(tables))
    write_atomically(folder / "tables.csv", as_csv(tables))
    if args.page is not None:
        page = args.page.read_text() if args.page.is_file() else new_page(benchmark, args.page.stem)
        write_atomically(args.page, into_page(page, tables))
        write_atomically(args.page.with_suffix(".csv"), as_csv(tables))
    if args.picture is not None:
        write_picture(runs, args.picture, case=args.case)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.guidance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", type=Path, required=True, help="nnU-Net raw dataset folder of good scans with labels (.nii.gz)")
    add("--work", type=Path, required=True, help="folder for everything; run again to resume")
    add("--number", type=int, default=604, help="of the dataset of pairs; the others have the next ones")
    add("--pairs", type=int, default=60, help="first cases of the source, in order of their names")
    add("--cases", type=int, default=15, help="cases after these, with labels, for segmentations")
    add("--test-cases", type=int, default=60, help="cases after these, for testing alone")
    add("--resolution", type=float, default=2.0, help="voxels of the weaker scanner (mm)")
    add("--snr", type=float, default=12.0, help="its signal-to-noise ratio")
    add("--contrast", type=float, default=0.7, help="share of the contrast that it leaves")
    add("--preset", choices=preset_names(), default="cpu")
    add("--plans", default="cpu", help="name of the plans")
    add("--batch-size", type=int, default=2)
    add("--patch", type=int, nargs=3, metavar=("Z", "Y", "X"), help="patch size (default: nnU-Net's own)")
    add("--precision", choices=PRECISIONS, default="float32", help="bfloat16 is faster on CPUs that have it")
    add("--teacher-epochs", type=int, help="default: what the preset says")
    add("--keeper-epochs", type=int, help="of keepers and the plain U-Net (default: what the preset says)")
    add("--baseline-epochs", type=int, default=5, help="a length that nnU-Net has a trainer of")
    add("--continued-epochs", type=int, default=3, help="of all that goes on from the baseline")
    add("--keeper", choices=KEEPERS, default="keeper", help="row that guides (default: keeper)")
    add("--seeds", type=int, nargs="+", default=[0], help="of segmentations; pairs and baseline have the first")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--rows", nargs="+", metavar="ROW", help=f"train these instead, of: {', '.join(ROWS)}")
    add("--jobs", type=int, default=1, help="trainings at a time, with one thread each if more than 1")
    add("--report", action="store_true", help="train nothing, print what is finished")
    add("--page", type=Path, metavar="FILE.md", help="page whose tables, and csv beside it, get the numbers")
    add("--picture", type=Path, metavar="FILE.png", help="draw a validation case of the pairs")
    add("--case", help="which one (default: the first by name)")
    add("--device", default="cpu")
    return parser


if __name__ == "__main__":
    main()

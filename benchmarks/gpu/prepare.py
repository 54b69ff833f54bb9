r"""Prepare what the GPU run needs: `python -m benchmarks.gpu.prepare`.

    python -m benchmarks.gpu.prepare --source RAW/Dataset004_Hippocampus --large RAW/Dataset120_BrainDeep \
        --out .gpu/data

simulates thick slices, plans and preprocesses both datasets, trains a short stage 1 on the first and keeps its
pseudo-HR cases, and keeps the true thin slices of the validation and test cases. Then it makes a few pairs and scans of
the same source for guidance, which are all that

    python -m benchmarks.gpu.prepare --add-pairs --source RAW/Dataset004_Hippocampus --out .gpu/data

adds to a folder that has the rest. Both end with an error if what travels (the repository's files, the wheels and these
data) is larger than `--limit-mib`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.data import (
    CONFIGURATION,
    DEFAULT,
    FOLD,
    PAPER,
    PREPROCESSED,
    SMALL,
    TRUTH,
    GPUData,
    set_environment,
)
from benchmarks.gpu.prepare_pairs import PairsWanted, add_pairs, copy_source, write_one_fold
from benchmarks.quality.datasets import interpolate_dataset, whole
from benchmarks.quality.plans import merged
from rehrseg_nnunet.cli.simulate import AXES, simulate
from rehrseg_nnunet.config.presets import DEFAULTS, Preset, apply_preset, load_preset, scale_width
from rehrseg_nnunet.config.rehrseg import BLOCK
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.restoration.report import true_hr_case

SOURCE, LARGE, THICK, THICK_LARGE, INTERPOLATED = 1, 2, 501, 502, 601
LARGE_PATCH, TINY_LARGE_PATCH = (32, 128, 128), (8, 32, 32)  # z, y, x
TINY_WIDTH = 0.125
TINY: dict[str, Any] = {
    "self_sr": {"base_features": 4, "candidates": 2, "batch_size": 2, "patch_size": [16, 16]},
    "smore": {"features": 4, "blocks": 1, "batch_size": 2, "patch_size": [16, 16]},
}
STAGE_1_EPOCHS = 2  # one of each phase
REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 2**20


def main(argv: Sequence[str] | None = None) -> None:
    """Prepare the folder and say what travels."""
    args = _parser().parse_args(argv)
    try:
        complete(args) if args.add_pairs else prepare(args)
        check_size(travelling(args.out, args.wheels), limit_mib=args.limit_mib)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="isotropic nnU-Net raw dataset folder (.nii.gz)")
    parser.add_argument("--large", type=Path, help="another one, of larger volumes; --add-pairs needs none")
    parser.add_argument("--out", type=Path, required=True, help="new folder, with --add-pairs a prepared one")
    parser.add_argument("--add-pairs", action="store_true", help="only make the pairs and scans of guidance anew")
    parser.add_argument("--pairs", type=int, default=5, help="first cases of --source, for pairs")
    parser.add_argument("--scans", type=int, default=3, help="cases after these, for guided segmentation")
    parser.add_argument("--cases", type=int, default=40, help="first cases of --source, in nnU-Net's five folds")
    parser.add_argument("--test-cases", type=int, default=24, help="cases after these, for testing alone")
    parser.add_argument("--large-cases", type=int, default=6, help="first cases of --large")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--axis", choices=AXES, default="z")
    parser.add_argument("--preset", default="cpu", help="of the plans that are trained for quality")
    parser.add_argument("--stage-1-steps", type=int, default=250)
    parser.add_argument("--tiny", action="store_true", help="tiny networks and batches in all plans, for a rehearsal")
    parser.add_argument("--wheels", type=Path, default=REPOSITORY / ".gpu", help="what bundle.sh wrote")
    parser.add_argument("--limit-mib", type=float, default=60)
    return parser


def prepare(args: argparse.Namespace) -> None:
    """Make the folder.

    Raises:
        FileExistsError: it is there.
        ValueError: a source that cannot be used, or no --large.
    """
    if args.out.exists():
        raise FileExistsError(f"--out must name a new folder, got {args.out}")
    if args.large is None:
        raise ValueError("--large must be given, unless --add-pairs completes a prepared folder")
    with _workspace() as work:
        thick = _thick_dataset(args.source, (SOURCE, THICK), args.cases + args.test_cases, args)
        large = _thick_dataset(args.large, (LARGE, THICK_LARGE), args.large_cases, args)
        interpolated = _interpolated_dataset(work, thick, args)
        _write_plans(work / PREPROCESSED / thick, args)
        _write_plans(work / PREPROCESSED / large, args, patch=TINY_LARGE_PATCH if args.tiny else LARGE_PATCH)
        _write_interpolated_plans(work / PREPROCESSED, thick, interpolated, args)
        validation, test = _write_splits(work / PREPROCESSED, (thick, interpolated), args)
        write_one_fold(work / PREPROCESSED / large)
        set_environment({"nnUNet_n_proc_DA": "0"})  # the training here wants no workers
        _train_stage_1(thick, args.stage_1_steps)
        with whole(args.out.resolve()) as target:
            data = GPUData(target, thick, interpolated, large, args.factor, validation, test)
            _gather(work, data)
            set_environment({"nnUNet_n_proc_DA": "1"})
            add_pairs(work, data, _pairs_wanted(args)).write()


def complete(args: argparse.Namespace) -> None:
    """Make the datasets of guidance in a prepared folder.

    Raises:
        FileNotFoundError: it is none.
        ValueError: a source that cannot be used.
    """
    data = GPUData.read(args.out)
    with _workspace() as work:
        add_pairs(work, data, _pairs_wanted(args)).write()


def _pairs_wanted(args: argparse.Namespace) -> PairsWanted:
    return PairsWanted(args.source, args.pairs, args.scans, args.preset, args.tiny)


@contextmanager
def _workspace() -> Iterator[Path]:
    """nnU-Net's folders, for as long as the context lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        names = {name: str(Path(scratch, name)) for name in ("nnUNet_raw", PREPROCESSED, "nnUNet_results")}
        for folder in names.values():
            Path(folder).mkdir()
        # nnU-Net's planner takes the number of workers for one of threads
        set_environment({**names, "nnUNet_n_proc_DA": "1"})
        yield Path(scratch)


def _thick_dataset(source: Path, numbers: tuple[int, int], cases: int, args: argparse.Namespace) -> str:
    """Copy cases, make their slices thick, plan and preprocess; returns the dataset's name."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    original, number = numbers
    raw = Path(os.environ["nnUNet_raw"], f"Dataset{original:03d}_{source.name.split('_', 1)[1]}")
    copy_source(source, raw, cases=cases)
    thick = simulate(str(original), number, factor=args.factor, axis=args.axis)
    _plan(number)
    preprocess([number], configurations=[CONFIGURATION], num_processes=[2])
    return thick.name


def _plan(number: int) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([number], num_processes=2)
    plan_experiments([number])


def _interpolated_dataset(work: Path, thick: str, args: argparse.Namespace) -> str:
    """The interpolated cases' plans; the cases themselves would not travel well and are made on the GPU machine."""
    name = f"Dataset{INTERPOLATED:03d}_{thick.split('_', 1)[1]}_interpolated"
    raw = work / "nnUNet_raw"
    interpolate_dataset(raw / thick, raw / name, factor=args.factor, axis=AXES[args.axis])
    _plan(INTERPOLATED)
    return name


def _presets(args: argparse.Namespace) -> dict[str, Preset]:
    return {SMALL: load_preset(args.preset), DEFAULT: DEFAULTS, PAPER: load_preset("paper")}


def _write_plans(folder: Path, args: argparse.Namespace, *, patch: Sequence[int] | None = None) -> None:
    stock = json.loads((folder / "nnUNetPlans.json").read_text())
    for name, preset in _presets(args).items():
        plans = apply_preset(stock, preset, plans_name=name)
        configuration = plans["configurations"][CONFIGURATION]
        if patch is not None:
            configuration.update(patch_size=list(patch), batch_size=2)
        if args.tiny:
            configuration["batch_size"] = 2
            scale_width(configuration["architecture"]["arch_kwargs"], TINY_WIDTH)
            configuration[BLOCK] = merged(configuration[BLOCK], TINY)
        _write_json(folder / f"{name}.json", plans)


def _write_interpolated_plans(preprocessed: Path, thick: str, interpolated: str, args: argparse.Namespace) -> None:
    """nnU-Net's plans for thin slices, with the width and batch size of the thick slices' small plans."""
    plans = json.loads((preprocessed / interpolated / "nnUNetPlans.json").read_text())
    configuration = plans["configurations"][CONFIGURATION]
    own = json.loads((preprocessed / thick / f"{SMALL}.json").read_text())["configurations"][CONFIGURATION]
    configuration["batch_size"] = own["batch_size"]
    width = load_preset(args.preset).network_width * (TINY_WIDTH if args.tiny else 1)
    scale_width(configuration["architecture"]["arch_kwargs"], width)
    _write_json(preprocessed / interpolated / f"{SMALL}.json", {**plans, "plans_name": SMALL})


def _write_splits(
    preprocessed: Path, datasets: Sequence[str], args: argparse.Namespace
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """One fold for datasets of the same cases; returns its validation cases and the test cases, which it leaves out."""
    raw = Path(os.environ["nnUNet_raw"], datasets[0], "labelsTr")
    cases = sorted(file.name.removesuffix(".nii.gz") for file in raw.glob("*.nii.gz"))
    training, test = cases[: args.cases], cases[args.cases :]
    validation = training[:: max(1, args.cases // max(1, args.cases // 5))]
    split = {"train": [case for case in training if case not in validation], "val": validation}
    for dataset in datasets:
        _write_json(preprocessed / dataset / "splits_final.json", [split])
    return tuple(validation), tuple(test)


def _train_stage_1(thick: str, steps: int) -> None:
    """As short as said, with both phases; it ends with the pseudo-HR cases."""
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(thick, CONFIGURATION, FOLD, "SelfSRTrainer", SMALL, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch = STAGE_1_EPOCHS, max(1, steps // STAGE_1_EPOCHS)
    trainer.num_val_iterations_per_epoch = 1
    trainer.run_training()
    trainer.perform_actual_validation()


def _gather(work: Path, data: GPUData) -> None:
    """Copy what is needed: plans, cases, stage 1 without its optimiser, true volumes."""
    for dataset in (data.thick, data.large, data.interpolated):
        target = data.preprocessed(dataset)
        target.mkdir(parents=True)
        for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json", *_plan_files(dataset, data)):
            if (work / PREPROCESSED / dataset / name).is_file():
                shutil.copy(work / PREPROCESSED / dataset / name, target)
    here = GPUData(work, data.thick, data.interpolated, data.large, data.factor, data.validation, data.test)
    for dataset in (data.thick, data.large):
        shutil.copytree(here.cases_folder(dataset), data.cases_folder(dataset))
    _gather_stage_1(here._run("SelfSRTrainer", work / "nnUNet_results").folder, data.stage_1)
    _write_truth(here, data.folder / TRUTH)


def _plan_files(dataset: str, data: GPUData) -> list[str]:
    plans = [SMALL] if dataset == data.interpolated else [SMALL, DEFAULT, PAPER]
    return [f"{name}.json" for name in plans]


def _gather_stage_1(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for folder in ("pseudo_hr", "pseudo_hr_cases"):
        shutil.copytree(source / folder, target / folder)
    shutil.copy(source / "pseudo_hr.json", target)
    checkpoint = torch.load(source / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    torch.save({**checkpoint, "optimizer_state": None}, target / "checkpoint_final.pth")


def _write_truth(here: GPUData, folder: Path) -> None:
    """Labels of validation and test cases, and images of validation cases.

    Raises:
        ValueError: a case that nnU-Net resampled or normalised in another way than linearly.
    """
    folder.mkdir()
    planned = here.planned(here.thick)
    planned = type(planned)(**{**vars(planned), "raw_folder": here.folder / "nnUNet_raw" / here.thick})
    for case in (*here.validation, *here.test):
        image, _, _, properties = here.cases(here.thick).load_case(case)
        truth = true_hr_case(planned, case, np.asarray(image[:], dtype=np.float32), properties)
        if truth is None:
            raise ValueError(f"{case} must be preprocessed without resampling, so that its true slices can be kept")
        kept = {"labels": truth[1].astype(np.uint8)}
        if case in here.validation:
            kept["image"] = truth[0]
        np.savez_compressed(folder / f"{case}.npz", **kept)


def _write_json(file: Path, content: Any) -> None:
    write_atomically(file, json.dumps(content, indent=2))


def travelling(out: Path, wheels: Path) -> dict[str, float]:
    """MiB of the repository's files, of the wheels and of the prepared folder."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,  # without git nothing is known of the code
    ).stdout.splitlines()
    code = [REPOSITORY / name for name in listed if (REPOSITORY / name).is_file()]
    prepared = [file for file in out.rglob("*") if file.is_file()]
    bundled = [file for file in wheels.rglob("*") if file.is_file() and out.resolve() not in file.resolve().parents]
    parts = {"code": code, "wheels": bundled, "data": prepared}
    return {name: sum(file.stat().st_size for file in files) / MIB for name, files in parts.items()}


def check_size(parts: dict[str, float], *, limit_mib: float) -> None:
    """Print what travels.

    Raises:
        ValueError: it is too much.
    """
    text = ", ".join(f"{name} {size:.1f} MiB" for name, size in parts.items())
    total = sum(parts.values())
    print(f"what travels: {text}; together {total:.1f} MiB")
    if total > limit_mib:
        raise ValueError(
            f"what travels must be at most {limit_mib:g} MiB, got {total:.1f} ({text}); "
            "take fewer --cases, --test-cases or --large-cases"
        )


if __name__ == "__main__":
    main()

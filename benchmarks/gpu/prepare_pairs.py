"""The datasets of the trainers with guidance: a few pairs simulated from the source, and scans of other cases."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.data import CONFIGURATION, DEFAULT, PREPROCESSED, SMALL, GPUData
from benchmarks.quality.datasets import copy_cases
from benchmarks.quality.plans import merged
from rehrseg_nnunet.cli import simulate_field
from rehrseg_nnunet.config.guidance import BLOCK
from rehrseg_nnunet.config.presets import DEFAULTS, apply_preset, load_preset, scale_width
from rehrseg_nnunet.nnunet.folders import find_dataset
from rehrseg_nnunet.nnunet.safe_files import write_atomically

SOURCE, PAIRS, SCANS = 3, 503, 504
READER = "NibabelIO"  # the GPU machine has no SimpleITK
SCANNER = ("--resolution", "2", "--snr", "12", "--contrast", "0.7")
BATCH_SIZE = 2
SMALL_PATCH = (24, 32, 24)  # z, y, x: the reference on the CPU shall be done in seconds
TINY_WIDTH = 0.125
TINY: dict[str, Any] = {"base_features": 4, "keeper": {"kernel": 3}}


@dataclass(frozen=True)
class PairsWanted:
    """What to make.

    Attributes:
        source: isotropic nnU-Net raw dataset folder.
        pairs: first cases, of which pairs are made.
        scans: cases after these, with labels and without the better scan.
        preset: of the small plans.
        tiny: tiny networks in all plans.
    """

    source: Path
    pairs: int
    scans: int
    preset: str
    tiny: bool


def add_pairs(work: Path, data: GPUData, wanted: PairsWanted) -> GPUData:
    """Simulate, plan and preprocess both datasets in `work` and copy them to the prepared folder.

    Args:
        work: with nnU-Net's three folders, which its variables name.
        data: the prepared folder, whose description still has to be written.
        wanted: what to make.

    Returns:
        The folder with the names of both datasets.
    """
    source = work / "nnUNet_raw" / f"Dataset{SOURCE:03d}_{wanted.source.name.split('_', 1)[1]}"
    copy_source(wanted.source, source, cases=wanted.pairs + wanted.scans)
    pairs = _dataset(source, PAIRS, "pairs", f"0:{wanted.pairs}", wanted)
    scans = _dataset(source, SCANS, "source", f"{wanted.pairs}:{wanted.pairs + wanted.scans}", wanted)
    for dataset in (pairs, scans):
        _gather(work / PREPROCESSED / dataset, data.preprocessed(dataset))
    return replace(data, pairs=pairs, scans=scans)


def _dataset(source: Path, number: int, channels: str, cases: str, wanted: PairsWanted) -> str:
    """Simulate, plan and preprocess one; returns its name."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprints,
        plan_experiments,
        preprocess,
    )

    parser = argparse.ArgumentParser()
    simulate_field.add_arguments(parser)
    options = ["-d", source.name, "-o", str(number), *SCANNER, "--channels", channels, "--cases", cases, "-np", "1"]
    simulate_field.run(parser.parse_args(options))
    extract_fingerprints([number], num_processes=2)
    plan_experiments([number])
    preprocess([number], configurations=[CONFIGURATION], num_processes=[2])
    folder = find_dataset(Path(os.environ[PREPROCESSED]), str(number))
    _write_plans(folder, wanted)
    write_one_fold(folder)
    return folder.name


def _write_plans(folder: Path, wanted: PairsWanted) -> None:
    stock = json.loads((folder / "nnUNetPlans.json").read_text())
    for name, preset in {SMALL: load_preset(wanted.preset), DEFAULT: DEFAULTS}.items():
        plans = apply_preset(stock, preset, plans_name=name, methods=[BLOCK])
        configuration = plans["configurations"][CONFIGURATION]
        configuration["batch_size"] = BATCH_SIZE
        if name == SMALL:
            configuration["patch_size"] = [
                min(sizes) for sizes in zip(configuration["patch_size"], SMALL_PATCH, strict=True)
            ]
        if wanted.tiny:
            scale_width(configuration["architecture"]["arch_kwargs"], TINY_WIDTH)
            configuration[BLOCK] = merged(configuration[BLOCK], TINY)
        write_atomically(folder / f"{name}.json", json.dumps(plans, indent=2))


def copy_source(source: Path, target: Path, *, cases: int) -> None:
    """Copy the first cases of a raw dataset, to be read by what the GPU machine has."""
    copy_cases(source, target, cases=cases, test_cases=0)
    file = target / "dataset.json"
    write_atomically(file, json.dumps({**json.loads(file.read_text()), "overwrite_image_reader_writer": READER}))


def write_one_fold(folder: Path) -> None:
    """The first case validates: so few cases have no five folds."""
    raw = Path(os.environ["nnUNet_raw"], folder.name, "labelsTr")
    first, *others = sorted(file.name.removesuffix(".nii.gz") for file in raw.glob("*.nii.gz"))
    write_atomically(folder / "splits_final.json", json.dumps([{"train": others, "val": [first]}]))


def _gather(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)  # of an earlier --add-pairs
    target.mkdir(parents=True)
    plans = [f"{name}.json" for name in (SMALL, DEFAULT)]
    for name in ("dataset.json", "dataset_fingerprint.json", "splits_final.json", *plans):
        shutil.copy(source / name, target)
    configuration = json.loads((source / f"{SMALL}.json").read_text())["configurations"][CONFIGURATION]
    identifier = configuration["data_identifier"]
    shutil.copytree(source / identifier, target / identifier)

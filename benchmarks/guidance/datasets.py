"""The datasets that are compared: pairs, scans with labels, better scans with labels; planned alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.crossval_split import generate_crossval_split

from benchmarks.guidance.benchmark import CONFIGURATION, SIMULATED, GuidanceBenchmark
from benchmarks.guidance.rows import PLANS
from benchmarks.quality.benchmark import FILE_ENDING, labelled_files
from benchmarks.quality.commands import Execute
from benchmarks.quality.datasets import PLANNING_THREADS, whole
from benchmarks.quality.plans import merged, with_patch
from rehrseg_nnunet.config.guidance import BLOCK, parse_block
from rehrseg_nnunet.config.presets import apply_preset, load_preset
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically

SYNTHESISED_CHANNEL = "synthesised"


def simulate(benchmark: GuidanceBenchmark, data: str, execute: Execute) -> None:
    """Make a simulated raw dataset, unless it is there.

    Raises:
        ValueError: it is there, of another scanner or of other cases.
    """
    folder = benchmark.folder("raw", data)
    if folder.is_dir():
        _check_scanner(benchmark, folder)
        _check_cases(benchmark, data, folder)
        return
    scans = benchmark.work / "nnUNet_raw" / benchmark.source.name
    if not scans.exists():
        scans.parent.mkdir(parents=True, exist_ok=True)
        scans.symlink_to(benchmark.source, target_is_directory=True)
    cases, test_cases = benchmark.case_range(data)
    command = ["rehrseg", "simulate-field", "-d", scans.name, "-o", folder.name[7:10]]
    command += ["--resolution", f"{benchmark.resolution:g}", "--snr", f"{benchmark.snr:g}"]
    command += ["--contrast", f"{benchmark.contrast:g}", "--channels", SIMULATED[data], "--cases", cases]
    execute([*command, *(["--test-cases", test_cases] if test_cases else [])])


def _check_scanner(benchmark: GuidanceBenchmark, folder: Path) -> None:
    file = folder / "low_field.json"
    if not file.is_file():
        raise ValueError(f"{folder} must be of rehrseg simulate-field, but {file.name} is missing")
    found = json.loads(file.read_text())["settings"]
    wanted = {"resolution_mm": benchmark.resolution, "snr": benchmark.snr, "contrast": benchmark.contrast}
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(f"{folder} was made with {name} {found[name]:g}, got {value:g}; take another --number")


def _check_cases(benchmark: GuidanceBenchmark, data: str, folder: Path) -> None:
    names = [file.name for file in labelled_files(benchmark.source)]
    for part, text in zip(("Tr", "Ts"), benchmark.case_range(data), strict=True):
        first, last = map(int, (text or "0:0").split(":"))
        found = {file.name for file in (folder / f"labels{part}").glob(f"*{FILE_ENDING}")}
        if found != set(names[first:last]):
            wanted = text or "none"
            raise ValueError(f"{folder}/labels{part} must be of cases {wanted}, got others; take another --number")


def prepare(benchmark: GuidanceBenchmark, data: str, execute: Execute) -> None:
    """Plan and preprocess a raw dataset, unless its plans are there; these are written last."""
    folder = benchmark.folder("preprocessed", data)
    file = folder / f"{benchmark.plans}.json"
    if file.is_file():
        return
    number = str(int(folder.name[7:10]))
    threads = {"nnUNet_n_proc_DA": PLANNING_THREADS}
    options = ["-c", CONFIGURATION, "-npfp", "2", "-np", "2", "--verify_dataset_integrity"]
    execute(["nnUNetv2_plan_and_preprocess", "-d", number, *options], threads)
    if data == "everyone":
        _write_splits_of_everyone(benchmark)
    write_atomically(file, json.dumps(_plans(benchmark, data), indent=2))


def _write_splits_of_everyone(benchmark: GuidanceBenchmark) -> None:
    """nnU-Net's folds of the cases with labels, the pairs' cases among those that are trained on."""
    everyone, source = (_cases(benchmark.folder("raw", data)) for data in ("everyone", "source"))
    folds = generate_crossval_split(sorted(source))
    splits = [{**fold, "train": sorted(set(everyone) - set(fold["val"]))} for fold in folds]
    file = benchmark.folder("preprocessed", "everyone") / "splits_final.json"
    write_atomically(file, json.dumps(splits, indent=4))


def _cases(folder: Path) -> list[str]:
    return [file.name.removesuffix(FILE_ENDING) for file in (folder / "labelsTr").glob(f"*{FILE_ENDING}")]


def _plans(benchmark: GuidanceBenchmark, data: str) -> dict[str, Any]:
    """The preset's plans; those of several channels, or of more cases, have the source dataset's network and patch."""
    stock = read_json(benchmark.folder("preprocessed", data) / "nnUNetPlans.json", remedy=PREPROCESS_FIRST)
    if benchmark.patch is not None:
        stock["configurations"][CONFIGURATION] = with_patch(stock["configurations"][CONFIGURATION], benchmark.patch)
    preset = load_preset(benchmark.preset)
    plans = apply_preset(stock, preset, plans_name=benchmark.plans, methods=[BLOCK])
    for configuration in plans["configurations"].values():
        if "batch_size" in configuration:
            configuration["batch_size"] = benchmark.batch_size
    if data in ("both", "synthesised", "everyone"):
        source = benchmark.folder("preprocessed", "source") / f"{benchmark.plans}.json"
        like = read_json(source, remedy=PREPROCESS_FIRST)["configurations"][CONFIGURATION]
        spacing = plans["configurations"][CONFIGURATION]["spacing"]
        if spacing != like["spacing"]:
            wanted = f"as {source}, {like['spacing']}, so that networks can be compared"
            raise ValueError(f"{benchmark.dataset(data)} must be planned for voxels {wanted}, got {spacing}")
        plans["configurations"][CONFIGURATION] |= {key: like[key] for key in ("architecture", "patch_size")}
    return plans


def write_variant(benchmark: GuidanceBenchmark, data: str, key: str) -> None:
    """A dataset's plans with the changes of a key of `PLANS`; those that are there are taken if they have them.

    Raises:
        ValueError: they have other settings.
    """
    if not key:
        return
    folder = benchmark.folder("preprocessed", data)
    name = benchmark.plans_name(key)
    file = folder / f"{name}.json"
    if not file.is_file():
        plans = read_json(folder / f"{benchmark.plans}.json", remedy=PREPROCESS_FIRST)
        plans["plans_name"] = name
        for configuration in plans["configurations"].values():
            if BLOCK in configuration:
                configuration[BLOCK] = merged(configuration[BLOCK], PLANS[key])
        write_atomically(file, json.dumps(plans, indent=2))
    block = read_json(file, remedy="remove it")["configurations"][CONFIGURATION].get(BLOCK, {})
    settings = parse_block(block).model_dump()
    if not _has(settings, PLANS[key]):
        raise ValueError(f"{file} must have {json.dumps(PLANS[key])} in its {BLOCK}, got other settings; remove it")


def _has(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    return all(
        _has(settings[key], value) if isinstance(value, Mapping) else settings[key] == value
        for key, value in changes.items()
    )


def add_synthesised(benchmark: GuidanceBenchmark, keeper: Path, execute: Execute) -> None:
    """Make the raw dataset of scans and what a keeper makes of them, unless it is there.

    Args:
        benchmark: whose.
        keeper: folder of the keeper's model, which has the folder of its fold.
        execute: runs a command and raises if it fails.
    """
    target, source = benchmark.folder("raw", "synthesised"), benchmark.folder("raw", "source")
    if target.is_dir():
        return
    dataset = json.loads((source / "dataset.json").read_text())
    channels = len(dataset["channel_names"])
    dataset["channel_names"][str(channels)] = SYNTHESISED_CHANNEL
    with whole(target) as partial:
        for part in ("Tr", "Ts"):
            shutil.copytree(source / f"images{part}", partial / f"images{part}")
            shutil.copytree(source / f"labels{part}", partial / f"labels{part}")
            made = partial / f"made{part}"
            arguments = ["-i", str(source / f"images{part}"), "-o", str(made), "-m", str(keeper), "-f", "0"]
            execute(["rehrseg", "synthesize", *arguments, "-device", "cpu", "-npp", "0", "-nps", "0"])
            for image in sorted(made.glob(f"*{FILE_ENDING}")):
                case = image.name.removesuffix(FILE_ENDING)
                image.rename(partial / f"images{part}" / f"{case}_{channels:04d}{FILE_ENDING}")
            shutil.rmtree(made)
        write_atomically(partial / "dataset.json", json.dumps({**dataset, "name": target.name}, indent=2))

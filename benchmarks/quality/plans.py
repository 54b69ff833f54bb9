"""The plans that the compared networks are trained with: one width, one batch size, and if wanted one patch for all."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from benchmarks.quality.benchmark import CONFIGURATION, Benchmark
from benchmarks.quality.rows import GUIDED_PLANS, PLANS
from rehrseg_nnunet.cli.thin_plans import plan_thin_input
from rehrseg_nnunet.config.presets import add_blocks, apply_preset, load_preset, scale_width
from rehrseg_nnunet.config.rehrseg import BLOCK, parse_block
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically

# nnU-Net's planner has these
SMALLEST_FEATURE_MAP = 4
NO_LIMIT = 999999
FEATURES, MOST_FEATURES = 32, 320
CONVOLUTIONS = 2  # of a stage, encoder and decoder


def write_plans(benchmark: Benchmark, key: str, *, settings: str = "") -> None:
    """The preset's plans, with what `PLANS` changes, under the name of the settings if they have one."""
    folder = benchmark.folder("preprocessed", benchmark.dataset("thick"))
    name = benchmark.plans_name("_".join(filter(None, [settings, key])))
    stock = _stock_plans(benchmark, "thick")
    preset = load_preset(benchmark.preset)
    plans = apply_preset(stock, preset, plans_name=name)
    if key in GUIDED_PLANS:
        plans = add_blocks(plans, preset, methods=["guidance"])
    if PLANS[key].get("segmentation", {}).get("input") == "thin":
        plans = _with_thin_input(benchmark, plans)
    for configuration in plans["configurations"].values():
        if BLOCK in configuration:
            block = parse_block(merged(configuration[BLOCK], PLANS[key]))
            configuration[BLOCK] = block.model_dump(mode="json")  # every key: another version may have other defaults
    _write_once(folder / f"{name}.json", plans)


def _with_thin_input(benchmark: Benchmark, plans: Mapping[str, Any]) -> dict[str, Any]:
    """Plans with the network of thin slices, for the benchmark's patch and, as for all others, their own batch size."""
    result = plan_thin_input(plans)
    for configuration in result["configurations"].values():
        if BLOCK not in configuration:
            continue
        thin = configuration[BLOCK]["segmentation"]["thin"]
        thin["batch_size"] = configuration["batch_size"]
        patch = benchmark.patch_size("interpolated")
        if patch is not None:
            finer = [benchmark.factor, 1, 1]
            spacing = [a / b for a, b in zip(configuration["spacing"], finer, strict=True)]
            planned = with_patch({**thin, "spacing": spacing}, patch)
            scale_width(planned["architecture"]["arch_kwargs"], load_preset(benchmark.preset).network_width)
            thin |= {"architecture": planned["architecture"], "patch_size": benchmark.patch_size("thick")}
    return result


def keep_plans(benchmark: Benchmark) -> None:
    """The preset's plans for networks that do not depend on this package's settings: those of any version will do."""
    if not (benchmark.folder("preprocessed", benchmark.dataset("thick")) / f"{benchmark.plans_name()}.json").is_file():
        write_plans(benchmark, "")


def write_hr_plans(benchmark: Benchmark, data: str, *, settings: str = "") -> None:
    """nnU-Net's plans for thin slices, with the width and batch size of the thick slices' plans.

    Those of pairs have the preset's `guidance` block, and the name of the settings if they have one.
    """
    name = benchmark.plans_name(settings if data == "pairs" else "")
    folder = benchmark.folder("preprocessed", benchmark.dataset(data))
    thick = benchmark.folder("preprocessed", benchmark.dataset("thick")) / f"{benchmark.plans_name()}.json"
    plans = _stock_plans(benchmark, data)
    plans["plans_name"] = name
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = json.loads(thick.read_text())["configurations"][CONFIGURATION]["batch_size"]
    preset = load_preset(benchmark.preset)
    scale_width(configuration["architecture"]["arch_kwargs"], preset.network_width)
    if data == "pairs":
        plans = add_blocks(plans, preset, methods=["guidance"])
    _write_once(folder / f"{name}.json", plans)


def _stock_plans(benchmark: Benchmark, data: str) -> dict[str, Any]:
    """nnU-Net's plans of a dataset, for the benchmark's patch if it has one."""
    folder = benchmark.folder("preprocessed", benchmark.dataset(data))
    plans = read_json(folder / "nnUNetPlans.json", remedy=PREPROCESS_FIRST)
    patch = benchmark.patch_size(data)
    if patch is not None:
        plans["configurations"][CONFIGURATION] = with_patch(plans["configurations"][CONFIGURATION], patch)
    return plans


def with_patch(configuration: Mapping[str, Any], patch: Sequence[int]) -> dict[str, Any]:
    """A planned configuration for another patch: nnU-Net's planner again, without its search for the size.

    Args:
        configuration: of plans, without inheritance; not changed.
        patch: patch size (z, y, x) in voxels.

    Raises:
        ValueError: the network that nnU-Net plans for this patch needs another size.
    """
    result = copy.deepcopy(dict(configuration))
    _, strides, kernels, size, _ = get_pool_and_conv_props(
        configuration["spacing"], list(patch), SMALLEST_FEATURE_MAP, NO_LIMIT
    )
    size = [int(length) for length in size]
    if size != list(patch):
        raise ValueError(f"--patch must be a size that nnU-Net's network can halve, got {list(patch)}; {size} is one")
    stages = len(strides)
    result["patch_size"] = size
    result["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [min(MOST_FEATURES, FEATURES * 2**stage) for stage in range(stages)],
        "kernel_sizes": [list(map(int, kernel)) for kernel in kernels],
        "strides": [list(map(int, stride)) for stride in strides],
        "n_conv_per_stage": [CONVOLUTIONS] * stages,
        "n_conv_per_stage_decoder": [CONVOLUTIONS] * (stages - 1),
    }
    return result


def _write_once(file: Path, plans: dict[str, Any]) -> None:
    """Write plans; runs that are there were made with what is there.

    Raises:
        ValueError: the file is there and says something else.
    """
    if not file.is_file():
        write_atomically(file, json.dumps(plans, indent=2))
    elif json.loads(file.read_text()) != plans:
        remedy = "take another --work folder, or give this version's settings a name with --settings"
        raise ValueError(f"{file} must be what this version makes of its preset; {remedy}")


def merged(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary with some values replaced, at every depth."""
    result = dict(block)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result

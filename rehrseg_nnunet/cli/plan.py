"""Write nnU-Net plans with a REHRSeg preset."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rehrseg_nnunet.cli.thin_plans import plan_thin_input, planning_threads
from rehrseg_nnunet.config.presets import DEFAULTS, apply_preset, load_preset, preset_names
from rehrseg_nnunet.config.rehrseg import BLOCK, parse_block, upgraded_plans
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_plans
from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.resampling import set_order_along_z
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.slices.geometry import check_thick_slices


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg plan`."""
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset number or name")
    parser.add_argument("-o", required=True, metavar="NAME", help="name of the new plans, for nnU-Net's -p")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="plans to start from (default: nnUNetPlans)")
    parser.add_argument(
        "--preset",
        choices=preset_names(),
        help="settings to add (default: all defaults, or those that the plans to start from have already)",
    )
    parser.add_argument(
        "--z-spacing",
        choices=("plans", "median"),
        default="plans",
        help="median: plan 3d_fullres with the median slice spacing instead of nnU-Net's 10th percentile, which makes "
        "most cases of a mixed dataset hold copied slices (default: plans)",
    )
    parser.add_argument(
        "--order-z",
        type=int,
        choices=(0, 1),
        default=0,
        help="interpolation between slices where a case's spacing is not the plans': 0 nearest as in nnU-Net, 1 linear "
        "(default: 0)",
    )
    parser.add_argument(
        "--input",
        choices=("thick", "thin"),
        default="thick",
        help="thin: plan a network of thin slices too, which REHRSegTrainer then trains (quality mode; default: thick)",
    )


def run(args: argparse.Namespace) -> None:
    """Write the plans and say what comes next."""
    folder = find_dataset(nnunet_folder("nnUNet_preprocessed"), args.d)
    if args.o == args.p:
        raise ValueError(f"-o must be another name than the plans to start from, got {args.o}")
    _check_free(folder, args.o)
    plans = _read(folder, args.p)
    if _has_settings(plans):
        _check_copy(args)
        plans = _copy(plans, args)
    else:
        preset = load_preset(args.preset) if args.preset else DEFAULTS
        plans = _plans_with_median_spacing(folder, args) if args.z_spacing == "median" else plans
        plans = apply_preset(plans, preset, plans_name=args.o)
    preprocess = args.z_spacing == "median" or args.order_z == 1
    if preprocess:
        _set_order_z(plans, args.order_z)
    if args.input == "thin":
        plans = plan_thin_input(plans)
    write_atomically(folder / f"{args.o}.json", json.dumps(plans, indent=4))
    print(f"wrote {folder / args.o}.json")
    if preprocess:
        print(f"next: nnUNetv2_preprocess -d {_dataset_number(folder)} -plans_name {args.o} -c 3d_fullres")


def _read(folder: Path, plans_name: str) -> dict[str, Any]:
    return read_plans(folder / f"{plans_name}.json", remedy=PREPROCESS_FIRST)


def _check_copy(args: argparse.Namespace) -> None:
    """Plans with settings keep them: a preset's width is relative to nnU-Net's plans, and planning anew loses both."""
    if args.preset or args.z_spacing == "median":
        option = f"--preset {args.preset}" if args.preset else "--z-spacing median"
        raise ValueError(f"-p must be plans without a {BLOCK} block to take {option}, but {args.p} has one")


def _copy(plans: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Plans with settings under another name, if this version can train with them."""
    copied = {**upgraded_plans(plans), "plans_name": args.o}
    for name, configuration in copied["configurations"].items():
        try:
            parse_block(configuration.get(BLOCK, {}))
        except ValueError as error:
            raise ValueError(f"-p {args.p}, {name}: {error}") from None
    return copied


def _has_settings(plans: dict[str, Any]) -> bool:
    return any(BLOCK in configuration for configuration in plans["configurations"].values())


def _check_free(folder: Path, plans_name: str) -> None:
    """Plans without a REHRSeg preset are somebody else's: models and preprocessed data may belong to them."""
    file = folder / f"{plans_name}.json"
    if file.is_file() and not _has_settings(_read(folder, plans_name)):
        raise FileExistsError(f"-o must be a new name or plans with a {BLOCK} block, but {file} has none")


def _dataset_number(folder: Path) -> int:
    return int(folder.name[len("Dataset") :].split("_")[0])


def _plans_with_median_spacing(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Let nnU-Net's own planner plan 3d_fullres at the median slice spacing."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    old = _read(folder, args.p)
    if "3d_fullres" not in old["configurations"]:
        raise ValueError(f"-p must be plans with a 3d_fullres configuration, got {sorted(old['configurations'])}")
    spacing = list(old["configurations"]["3d_fullres"]["spacing"])
    spacing[0] = old["original_median_spacing_after_transp"][0]
    check_thick_slices(spacing)  # before nnU-Net's planner writes a file
    with planning_threads():
        plan_experiment_dataset(
            _dataset_number(folder),
            PlansManager(old).experiment_planner_class,
            # the planner takes the files' axis order
            overwrite_target_spacing=tuple(spacing[axis] for axis in old["transpose_backward"]),
            overwrite_plans_name=args.o,
        )
    return _read(folder, args.o)


def _set_order_z(plans: dict[str, Any], order_z: int) -> None:
    """Own preprocessed data: they differ from those of the plans this started from."""
    for name, configuration in plans["configurations"].items():
        if "data_identifier" in configuration:
            configuration["data_identifier"] = f"{plans['plans_name']}_{name}"
        set_order_along_z(configuration, order_z)

"""Write nnU-Net plans with settings of REHRSeg, of guidance by a better scan, or of both."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rehrseg_nnunet.cli.thin_plans import plan_thin_input, planning_threads
from rehrseg_nnunet.config.blocks import METHODS, blocks_of, parse_blocks
from rehrseg_nnunet.config.presets import DEFAULTS, Preset, add_blocks, apply_preset, load_preset, preset_names
from rehrseg_nnunet.config.rehrseg import upgraded_plans
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
        "--method",
        choices=(*METHODS, "both"),
        default="rehrseg",
        help="whose settings to add: rehrseg, for thick slices; guidance, by a better scan; or both; plans that have "
        "some already keep them (default: rehrseg)",
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
    plans = _copy(plans, args) if blocks_of(plans) else _with_settings(plans, folder, args)
    preprocess = args.z_spacing == "median" or args.order_z == 1
    if preprocess:
        _set_order_z(plans, args.order_z)
    if args.input == "thin":
        if "rehrseg" not in blocks_of(plans):
            raise ValueError("--input thin is of thick slices and needs --method rehrseg or both")
        plans = plan_thin_input(plans)
    write_atomically(folder / f"{args.o}.json", json.dumps(plans, indent=4))
    print(f"wrote {folder / args.o}.json")
    if preprocess:
        print(f"next: nnUNetv2_preprocess -d {_dataset_number(folder)} -plans_name {args.o} -c 3d_fullres")


def _read(folder: Path, plans_name: str) -> dict[str, Any]:
    return read_plans(folder / f"{plans_name}.json", remedy=PREPROCESS_FIRST)


def _methods(args: argparse.Namespace) -> list[str]:
    return list(METHODS) if args.method == "both" else [args.method]


def _preset(args: argparse.Namespace) -> Preset:
    return load_preset(args.preset) if args.preset else DEFAULTS


def _with_settings(plans: dict[str, Any], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Plans that had no settings."""
    plans = _plans_with_median_spacing(folder, args) if args.z_spacing == "median" else plans
    return apply_preset(plans, _preset(args), plans_name=args.o, methods=_methods(args))


def _copy(plans: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Plans with settings under another name, if this version can train with them, with the blocks that they lack."""
    missing = [method for method in _methods(args) if method not in blocks_of(plans)]
    _check_copy(args, blocks=blocks_of(plans), missing=missing)
    copied = {**upgraded_plans(plans), "plans_name": args.o}
    for name, configuration in copied["configurations"].items():
        try:
            parse_blocks(configuration)
        except ValueError as error:
            raise ValueError(f"-p {args.p}, {name}: {error}") from None
    return add_blocks(copied, _preset(args), methods=missing)


def _check_copy(args: argparse.Namespace, *, blocks: Sequence[str], missing: Sequence[str]) -> None:
    """Plans with settings keep them: a preset's width is relative to nnU-Net's plans, and planning anew loses both."""
    if (args.preset and not missing) or args.z_spacing == "median":
        option = f"--preset {args.preset}" if args.preset else "--z-spacing median"
        raise ValueError(f"-p must be plans without a {blocks[0]} block to take {option}, but {args.p} has one")


def _check_free(folder: Path, plans_name: str) -> None:
    """Plans without settings of ours are somebody else's: models and preprocessed data may belong to them."""
    file = folder / f"{plans_name}.json"
    if file.is_file() and not blocks_of(_read(folder, plans_name)):
        raise FileExistsError(
            f"-o must be a new name or plans with a {' or '.join(METHODS)} block, but {file} has none"
        )


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

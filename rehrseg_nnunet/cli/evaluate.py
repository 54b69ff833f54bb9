"""Compare segmentations or images with a reference."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from rehrseg_nnunet.evaluation.compare import default_workers, evaluate_folders
from rehrseg_nnunet.evaluation.pairing import common_folder, expand_folders, short_names
from rehrseg_nnunet.evaluation.tables import format_summary, write_summary
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.safe_files import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg evaluate`; names are those of nnUNetv2_evaluate_folder where the meaning is."""
    parser.description = (
        "Dice, HD95, NSD (surface Dice), ASSD and volume bias of segmentations, or PSNR and SSIM of images, for every "
        "case and label, for one or more methods side by side. Files must have the same physical voxel positions as "
        "their reference. Where both masks are empty nothing is defined. A structure that is missed or made up is a "
        "failure: Dice and NSD 0, HD95 and ASSD the image's diagonal; failures are counted."
    )
    parser.add_argument("-ref", required=True, metavar="FOLDER", help="folder with the reference files")
    parser.add_argument(
        "-pred",
        required=True,
        nargs="+",
        metavar="FOLDER",
        help="one entry for each method: a folder, or its folds: folders joined by commas, or a quoted pattern such as "
        "'A/fold_*/validation'. The others are tested against the first",
    )
    parser.add_argument("-names", nargs="+", metavar="NAME", help="names of the methods (default: from the folders)")
    parser.add_argument("-djfile", required=True, metavar="FILE", help="dataset.json with labels and file ending")
    parser.add_argument(
        "-pfile", metavar="FILE", help="plans file that names the reader (default: nnU-Net's choice for dataset.json)"
    )
    parser.add_argument(
        "-o",
        metavar="FOLDER",
        help="write summary.json and metrics.csv there, or FILE.json and FILE.csv if this ends in .json "
        "(default: print only)",
    )
    parser.add_argument("-np", type=int, metavar="N", help="cases compared at the same time (default: as nnU-Net)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="MM",
        help="distance that NSD takes for no difference (default: one pixel of the reference's slices)",
    )
    parser.add_argument("--images", action="store_true", help="compare images (PSNR, SSIM) instead of segmentations")
    parser.add_argument("--chill", action="store_true", help="skip files without a partner instead of refusing them")


def run(args: argparse.Namespace) -> None:
    """Compare, print the tables and write the files."""
    if args.tolerance is not None and not (math.isfinite(args.tolerance) and args.tolerance >= 0):
        raise ValueError(f"--tolerance must be a finite number of mm >= 0, got {args.tolerance}")
    methods = _methods(args.pred, args.names)
    reference_folder = Path(args.ref)
    inputs = [reference_folder, *(folder for folders in methods.values() for folder in folders)]
    outputs = None if args.o is None else _output_files(args.o, inputs)
    summary = evaluate_folders(
        reference_folder,
        methods,
        dataset_json=read_dataset_json(Path(args.djfile), required=("file_ending",)),
        plans_file=args.pfile,
        images=args.images,
        chill=args.chill,
        workers=default_workers() if args.np is None else args.np,
        tolerance_mm=args.tolerance,
    )
    print(format_summary(summary))
    if outputs is not None:
        write_summary(summary, json_file=outputs[0], csv_file=outputs[1])
        print(f"\nwrote {outputs[0]} and {outputs[1]}")


def _methods(entries: Sequence[str], names: Sequence[str] | None) -> dict[str, list[Path]]:
    folders = [expand_folders(entry) for entry in entries]
    names = short_names([common_folder(method) for method in folders]) if names is None else names
    if len(names) != len(folders):
        raise ValueError(f"-names must have one name for each of the {len(folders)} entries of -pred, got {names}")
    if len(set(names)) < len(names):
        raise ValueError(f"-pred must name different methods; give them different -names, got {list(names)}")
    return dict(zip(names, folders, strict=True))


def _output_files(target: str, inputs: Sequence[Path]) -> tuple[Path, Path]:
    path = Path(target)
    files = path / "summary.json", path / "metrics.csv"
    if path.suffix == ".json":
        files = path, path.with_suffix(".csv")
    # nnU-Net keeps its own summary.json beside a fold's predictions and reads it to find the best configuration.
    if files[0].name == "summary.json" and files[0].parent.resolve() in [folder.resolve() for folder in inputs]:
        raise ValueError(f"-o must not replace a summary.json of nnU-Net, got {target}; choose another folder or name")
    there = next(folder for folder in (files[0].parent, *files[0].parent.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"-o must be a folder or the name of a .json file, but {there} is a file")
    check_writable(there, purpose="the tables are written there; choose another folder with -o")
    return files

"""Make a dataset of low-field twins: pairs to try guidance with, and poor scans with labels."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rehrseg_nnunet.guided.low_field import LowField
from rehrseg_nnunet.guided.low_field_dataset import FieldDataset, write_field_dataset
from rehrseg_nnunet.guided.paired_channels import KEY
from rehrseg_nnunet.nnunet.each_case import cases_at_a_time
from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.new_dataset import check_free_number, new_raw_dataset, read_raw_dataset_json
from rehrseg_nnunet.nnunet.raw_cases import RawCase, raw_cases

SUFFIXES = {"pairs": "pairs", "source": "lowfield", "privileged": "better"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg simulate-field`."""
    parser.add_argument("-d", required=True, metavar="SOURCE", help="number or name of a dataset in nnUNet_raw")
    parser.add_argument("-o", required=True, type=int, metavar="ID", help="number of the dataset to write")
    parser.add_argument("--resolution", required=True, type=float, metavar="MM", help="voxels of the weaker scanner")
    parser.add_argument(
        "--snr",
        required=True,
        type=float,
        help="its signal-to-noise ratio: the head's 90th percentile over the noise's standard deviation",
    )
    parser.add_argument(
        "--contrast", required=True, type=float, help="share of the contrast between tissues that is left, 0 to 1"
    )
    parser.add_argument("--gamma", type=float, default=1.0, help="exponent of the intensities (default: 1, none)")
    parser.add_argument(
        "--bias", type=float, default=0.2, help="largest relative deviation of the bias field (default: 0.2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and bias fields (default: 0)")
    parser.add_argument(
        "--channels",
        choices=SUFFIXES,
        default="pairs",
        help="pairs: twins and the scans they are made of; source: twins alone; privileged: the scans alone "
        "(default: pairs)",
    )
    parser.add_argument(
        "--cases", metavar="FIRST:LAST", help="which cases, counted from 0 in order of their names (default: all)"
    )
    parser.add_argument(
        "--test-cases", metavar="FIRST:LAST", help="which others to write as a test set (default: none)"
    )
    parser.add_argument("-np", type=int, metavar="N", help="cases at a time (default: processor cores, at most 8)")


def run(args: argparse.Namespace) -> None:
    """Write the dataset and say how poor the twins are."""
    scanner = LowField(args.resolution, args.snr, args.contrast, gamma=args.gamma, bias=args.bias)
    processes = cases_at_a_time(args.np)
    folder = find_dataset(nnunet_folder("nnUNet_raw"), args.d)
    check_free_number(args.o)
    dataset = read_raw_dataset_json(folder)
    _check_no_pairs(folder, dataset)
    everything = raw_cases(folder, "Tr", dataset)
    cases = chosen_cases(everything, args.cases or ":", option="--cases")
    test_cases = chosen_cases(everything, args.test_cases, option="--test-cases") if args.test_cases else []
    both = sorted(case.images[0] for case in cases if case in test_cases)
    if both:
        raise ValueError(f"--test-cases must be other cases than --cases, got {both[0]} in both")
    plan = FieldDataset(scanner, args.seed, args.channels, dataset, cases, test_cases)
    with new_raw_dataset(args.o, f"{folder.name.split('_', 1)[1]}_{SUFFIXES[args.channels]}") as (partial, target):
        means = write_field_dataset(plan, partial, name=target.name, processes=processes)
    print(f"wrote {target}: {len(cases)} cases" + (f", {len(test_cases)} test cases" if test_cases else ""))
    known = f"; after the best line a x + b: PSNR {means['psnr']:.1f} dB, SSIM {means['ssim']:.3f}"
    print(
        f"low-field twins, voxels of {scanner.resolution_mm:g} mm, SNR {scanner.snr:g}, contrast {scanner.contrast:g}"
        + (known if math.isfinite(means["psnr"]) else "")
    )
    print(f"next: nnUNetv2_plan_and_preprocess -d {args.o} --verify_dataset_integrity")


def _check_no_pairs(folder: Path, dataset: Mapping[str, Any]) -> None:
    if KEY in dataset:
        raise ValueError(
            f"-d must be a dataset of scans, but dataset.json of {folder.name} has {KEY}: it has pairs already; give "
            "the dataset of their better scans"
        )


def chosen_cases(cases: Sequence[RawCase], text: str, *, option: str) -> Sequence[RawCase]:
    """Some cases in order of their names.

    Args:
        cases: all of them.
        text: `FIRST:LAST`, from 0 on, without the last; either may be left out.
        option: which option says so, for messages.

    Raises:
        ValueError: another text, or no cases.
    """
    match = re.fullmatch(r"(\d*):(\d*)", text)
    if match is None:
        raise ValueError(f"{option} must be FIRST:LAST, for example 0:60, got {text}")
    first, last = int(match[1] or 0), int(match[2] or len(cases))
    if not 0 <= first < last <= len(cases):
        raise ValueError(f"{option} must be within 0:{len(cases)}, the cases of the dataset, got {text}")
    return cases[first:last]

"""Make an nnU-Net dataset of scans and better scans of the same subjects."""

from __future__ import annotations

import argparse

from rehrseg_nnunet.guided.pair_dataset import PairFolders, write_pairs
from rehrseg_nnunet.guided.pair_files import (
    check_channel_names,
    check_own_folders,
    common_cases,
    find_case_folder,
    find_label_folder,
)
from rehrseg_nnunet.nnunet.each_case import cases_at_a_time
from rehrseg_nnunet.nnunet.new_dataset import check_free_number, check_name, new_raw_dataset
from rehrseg_nnunet.nnunet.raw_files import listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg pair`."""
    parser.add_argument(
        "--source",
        required=True,
        action="append",
        metavar="DIR",
        help="folder of the usual scans, one file for each case; again for each channel; NAME=DIR names the channel, "
        "else the folder does",
    )
    parser.add_argument(
        "--privileged",
        required=True,
        action="append",
        metavar="DIR",
        help="folder of the better scans, registered and resampled to the usual ones, files of the same names; again "
        "for each channel",
    )
    parser.add_argument(
        "--labels",
        metavar="DIR",
        help="folder of label maps of the same names: patches are drawn around labels (default: where the head is)",
    )
    parser.add_argument("-o", required=True, type=int, metavar="ID", help="number of the dataset to write")
    parser.add_argument("--name", default="Pairs", help="its name (default: Pairs)")
    parser.add_argument("--skip-unpaired", action="store_true", help="leave out cases that lack a file in a folder")
    parser.add_argument("-np", type=int, metavar="N", help="cases at a time (default: processor cores, at most 8)")


def run(args: argparse.Namespace) -> None:
    """Write the dataset and say what comes next."""
    processes = cases_at_a_time(args.np)
    check_free_number(args.o)
    check_name(args.name, option="--name")
    source = [find_case_folder(argument) for argument in args.source]
    privileged = [find_case_folder(argument) for argument in args.privileged]
    labels = None if args.labels is None else find_label_folder(args.labels, [*source, *privileged])
    everything = [*source, *privileged, *([labels] if labels else [])]
    check_own_folders(everything)
    check_channel_names([*source, *privileged])
    cases, left_out = common_cases(everything, leave_out=args.skip_unpaired)
    folders = PairFolders(source, privileged, labels, cases)
    with new_raw_dataset(args.o, args.name) as (partial, target):
        write_pairs(folders, partial, name=target.name, processes=processes)
    if left_out:
        print(f"left out: {listed(left_out)}")
    print(f"wrote {target}: {len(cases)} pairs")
    print(f"next: nnUNetv2_plan_and_preprocess -d {args.o} --verify_dataset_integrity")

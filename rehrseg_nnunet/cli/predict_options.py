"""The options of `rehrseg predict`: those of nnUNetv2_predict, and its own."""

from __future__ import annotations

import argparse
import os

from rehrseg_nnunet.cli.surfaces import add_prediction_options

OWN = (
    "-m",
    "--grid",
    "--hr_from",
    "--no_hr_head",
    "--keep_going",
    "--surfaces",
    "--ras",
    "--seg_nrrd",
)  # what nnUNetv2_predict does not have


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All options."""
    _add_files(parser)
    _add_model(parser)
    _add_run(parser)
    add_machine(parser, exported="segmentations")
    add_prediction_options(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "-i",
        required=True,
        nargs="+",
        metavar="FILE|FOLDER|CSV",
        help="the scan, any name, one file for each channel; or a folder of images named as nnU-Net wants them "
        "(case_0000.nii.gz, ...; any names if the model has one channel); or a csv file with the columns case, file0, "
        "file1, ..., paths relative to it",
    )
    add(
        "-o",
        required=True,
        metavar="FILE|FOLDER",
        help="the segmentation for one scan, a folder for many; made if it does not exist",
    )
    add(
        "--grid",
        nargs="+",
        metavar="hr|native|MM,MM,MM|FILE|FOLDER",
        help="grid of the output: hr, r slices for every input slice (models with thick slices); native, the input's "
        "own; voxels of a size in mm along the file's axes, such as 0.5,0.5,0.5; or that of a file, or of each case's "
        "file in a folder; several, and their files end in _hr, _native, ... (default: hr with thick slices, native "
        "without)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    add_model(
        parser,
        trainer="REHRSegTrainer",
        about="; what a network without HR head says on thick slices, nnUNetTrainer's for example, is interpolated",
        mean="networks are",
    )
    parser.add_argument(
        "-prev_stage_predictions",
        metavar="FOLDER",
        help="segmentations of the previous stage, for cascades, as nnUNetv2_predict or --grid native writes them",
    )


def add_model(parser: argparse.ArgumentParser, *, trainer: str, about: str = "", mean: str) -> None:
    """Which trained model.

    Args:
        parser: gets the options.
        trainer: default of `-tr`.
        about: what else there is to say of other trainers.
        mean: what of several folds is averaged, and the verb.
    """
    add = parser.add_argument
    add(
        "-m",
        metavar="FOLDER|ZIP",
        help="the trained model, instead of -d: its folder (TRAINER__PLANS__CONFIGURATION) or a zip file of "
        "nnUNetv2_export_model_to_zip; none of nnU-Net's variables is needed; if it holds several models, -tr, -p and "
        "-c choose",
    )
    add("-d", metavar="DATASET", help="number or name of the dataset the network was trained on, in $nnUNet_results")
    add("-p", metavar="PLANS", help="plans name (default: nnUNetPlans with -d)")
    add("-tr", metavar="TRAINER", help=f"trainer class{about} (default: {trainer} with -d)")
    add("-c", metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres; required with -d")
    add(
        "-f",
        nargs="+",
        metavar="FOLD",
        help=f"folds whose {mean} averaged: numbers or all (default: 0 1 2 3 4 with -d, what is there with -m)",
    )
    add("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint (default: checkpoint_final.pth)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_step_size(parser)
    add(
        "--disable_tta",
        action="store_true",
        help="do not average over mirrored inputs (without an HR head, at several slice phases): faster, less accurate",
    )
    add_source = parser.add_mutually_exclusive_group().add_argument
    add_source(
        "--hr_from",
        choices=("head", "lr", "mean"),
        help="where thin slices come from: head, REHRSegTrainer's HR head; lr, what the network says on thick slices, "
        "interpolated, at several slice phases; mean, both (default: the model's hr_from, lr without an HR head)",
    )
    add_source("--no_hr_head", dest="hr_from", action="store_const", const="lr", help="another name of --hr_from lr")
    add("--save_probabilities", action="store_true", help="write class probabilities as npz, e.g. for ensembling")
    add_many_cases(parser)


def add_step_size(parser: argparse.ArgumentParser) -> None:
    """The sliding window."""
    help_text = "step of the sliding window, share of the patch (default: 0.5)"
    parser.add_argument("-step_size", type=float, default=0.5, help=help_text)


def add_many_cases(parser: argparse.ArgumentParser) -> None:
    """How many cases are handled."""
    add = parser.add_argument
    add("--verbose", action="store_true", help="print more")
    add("--continue_prediction", action="store_true", help="keep the cases that are already there")
    add(
        "--keep_going",
        action="store_true",
        help="of a folder or csv file, a scan that cannot be used costs that case alone: it is written to failures.csv "
        "in the folder of -o, the others are predicted, and the exit status is 1",
    )


def add_machine(parser: argparse.ArgumentParser, *, exported: str) -> None:
    """Processes and devices; `exported` is what they write."""
    add = parser.add_argument
    for flag, variable, role in (
        ("-npp", "nnUNet_npp", "preprocessing"),
        ("-nps", "nnUNet_nps", f"exporting {exported}"),
    ):
        add(
            flag,
            type=int,
            default=os.environ.get(variable) or 3,
            metavar="N",
            help=f"processes for {role}; 0 for both -npp and -nps works in one process, as one scan always does "
            f"(default: ${variable} or 3)",
        )
    add("-num_parts", type=int, default=1, metavar="N", help="split the cases over this many calls (default: 1)")
    add("-part_id", type=int, metavar="I", help="which of these calls this is, from 0; required with -num_parts")
    add(
        "-device",
        choices=("cuda", "cpu", "mps"),
        help="choose among several GPUs with CUDA_VISIBLE_DEVICES (default: cuda if there is such a GPU, else cpu)",
    )
    add("--disable_progress_bar", action="store_true", help="no progress bars, e.g. in batch jobs")
    add("--not_on_device", action="store_true", help="keep the results in CPU memory: for cases too large for the GPU")

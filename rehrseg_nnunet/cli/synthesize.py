"""Synthesize the better scan that a keeper sees in a usual one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rehrseg_nnunet.cli.predict_options import add_machine, add_many_cases, add_model, add_step_size
from rehrseg_nnunet.cli.run_model import Product, choose_device, run_model

if TYPE_CHECKING:
    from rehrseg_nnunet.prediction.synthesis_predictor import SynthesisPredictor

IMAGE = Product(name="image", trainer="KnowledgeKeeperTrainer", is_segmentation=False)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg synthesize`, named as those of `rehrseg predict`."""
    add = parser.add_argument
    add(
        "-i",
        required=True,
        nargs="+",
        metavar="FILE|FOLDER|CSV",
        help="the usual scan, any name, one file for each source channel; or a folder of images named as nnU-Net wants "
        "them (case_0000.nii.gz, ...; any names if there is one source channel); or a csv file with the columns case, "
        "file0, file1, ..., paths relative to it",
    )
    add(
        "-o",
        required=True,
        metavar="FILE|FOLDER",
        help="the image for one scan, a folder for many; made if it does not exist; of several privileged channels "
        "each has its number in the name (_0001, ...)",
    )
    add_model(parser, trainer=IMAGE.trainer, mean="images are")
    add_step_size(parser)
    add_many_cases(parser)
    add_machine(parser, exported="images")


def run(args: argparse.Namespace) -> None:
    """Synthesize for one scan, or every case of a folder or csv file; see `run_model` for what it raises."""
    args.save_probabilities, args.prev_stage_predictions, args.grid = False, None, None
    run_model(args, _predictor, IMAGE)


def _predictor(args: argparse.Namespace) -> SynthesisPredictor:
    from rehrseg_nnunet.prediction.synthesis_predictor import SynthesisPredictor

    device = choose_device(args.device)
    return SynthesisPredictor(
        tile_step_size=args.step_size,
        use_mirroring=False,
        perform_everything_on_device=device.type == "cuda" and not args.not_on_device,
        device=device,
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
    )

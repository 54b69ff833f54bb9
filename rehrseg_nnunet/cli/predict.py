"""Predict with a trained network, REHRSegTrainer's or any other of nnU-Net's, on thin slices or any other grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rehrseg_nnunet.cli.predict_options import add_arguments
from rehrseg_nnunet.cli.run_model import Product, choose_device, run_model
from rehrseg_nnunet.cli.surfaces import check_prediction_options, prediction_writers

__all__ = ["add_arguments", "run"]

SEGMENTATION = Product(name="segmentation", trainer="REHRSegTrainer", is_segmentation=True)

if TYPE_CHECKING:
    from rehrseg_nnunet.prediction.predictor import HRPredictor


def run(args: argparse.Namespace) -> None:
    """Predict one scan, or every case of a folder or csv file; see `run_model` for what it raises."""
    previous = args.prev_stage_predictions
    if previous is not None and not Path(previous).is_dir():
        raise FileNotFoundError(f"-prev_stage_predictions must be an existing folder, got {previous}")
    check_prediction_options(args)
    run_model(args, _predictor, SEGMENTATION)


def _predictor(args: argparse.Namespace) -> HRPredictor:
    from rehrseg_nnunet.prediction.parse_grids import parse_grids
    from rehrseg_nnunet.prediction.predictor import HRPredictor

    device = choose_device(args.device)
    return HRPredictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=device.type == "cuda" and not args.not_on_device,
        device=device,
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
        grid=None if args.grid is None else parse_grids(args.grid),
        hr_from=args.hr_from,
        writers=prediction_writers(args),
    )

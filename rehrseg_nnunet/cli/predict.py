"""Predict high-resolution segmentations with a trained network, REHRSegTrainer's or any other of thick slices."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rehrseg_nnunet.cli.surfaces import add_prediction_options, check_prediction_options, prediction_writers
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.cli.workers import end_workers
from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.safe_files import check_writable

NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

if TYPE_CHECKING:
    import torch

    from rehrseg_nnunet.prediction.predictor import HRPredictor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of nnUNetv2_predict, `--grid`, `--hr_from` and `--no_hr_head`."""
    _add_model_options(parser)
    _add_run_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-i", required=True, metavar="FOLDER", help="images, named as nnU-Net wants them (case_0000.nii.gz, ...)")
    add("-o", required=True, metavar="FOLDER", help="where to write; made if it does not exist")
    add(
        "--grid",
        nargs="+",
        metavar="hr|native|MM,MM,MM|FILE|FOLDER",
        help="grid of the output: hr, r slices for every input slice (models with thick slices); native, the input's "
        "own; voxels of a size in mm along the file's axes, such as 0.5,0.5,0.5; or that of a file, or of each case's "
        "file in a folder; several, and their files end in _hr, _native, ... (default: hr with thick slices, native "
        "without)",
    )
    add("-d", required=True, metavar="DATASET", help="number or name of the dataset the network was trained on")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans name (default: nnUNetPlans)")
    add(
        "-tr",
        default="REHRSegTrainer",
        metavar="TRAINER",
        help="trainer class; what a network without HR head says on thick slices, nnUNetTrainer's for example, is "
        "interpolated (default: REHRSegTrainer)",
    )
    add("-c", required=True, metavar="CONFIGURATION", help="configuration, e.g. 3d_fullres")
    add(
        "-f",
        nargs="+",
        default=(0, 1, 2, 3, 4),
        metavar="FOLD",
        help="folds whose networks are averaged: numbers or all (default: 0 1 2 3 4)",
    )
    add("-chk", default="checkpoint_final.pth", metavar="NAME", help="checkpoint (default: checkpoint_final.pth)")
    add(
        "-prev_stage_predictions",
        metavar="FOLDER",
        help="segmentations of the previous stage, for cascades, as nnUNetv2_predict or --grid native writes them",
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-step_size", type=float, default=0.5, help="step of the sliding window, share of the patch (default: 0.5)")
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
    add("--verbose", action="store_true", help="print more")
    add("--save_probabilities", action="store_true", help="write class probabilities as npz, e.g. for ensembling")
    add("--continue_prediction", action="store_true", help="keep the cases that are already there")
    for flag, variable, role in (
        ("-npp", "nnUNet_npp", "preprocessing"),
        ("-nps", "nnUNet_nps", "exporting segmentations"),
    ):
        add(
            flag,
            type=int,
            default=os.environ.get(variable) or 3,
            metavar="N",
            help=f"processes for {role}; 0 for both -npp and -nps works in one process (default: ${variable} or 3)",
        )
    add("-num_parts", type=int, default=1, metavar="N", help="split the cases over this many calls (default: 1)")
    add("-part_id", type=int, default=0, metavar="I", help="which of these calls this is, from 0 (default: 0)")
    add(
        "-device",
        choices=("cuda", "cpu", "mps"),
        default="cuda",
        help="choose among several GPUs with CUDA_VISIBLE_DEVICES (default: cuda)",
    )
    add("--disable_progress_bar", action="store_true", help="no progress bars, e.g. in batch jobs")
    add_prediction_options(parser)
    add("--not_on_device", action="store_true", help="keep the results in CPU memory: for cases too large for the GPU")


def run(args: argparse.Namespace) -> None:
    """Predict every case of a folder.

    Raises:
        ValueError: impossible options, images not named as nnU-Net wants them, a cascade without its previous stage, or
            a damaged checkpoint.
        FileNotFoundError: missing model, checkpoint, input folder, reference grid or segmentation of a previous stage.
        OSError: the output folder cannot be written to, or a result could not be; named.
    """
    _check(args)
    ensure_trainer_path()
    from rehrseg_nnunet.nnunet.raw_files import say_left_out
    from rehrseg_nnunet.surfaces.viewers import describe_predictions

    model = _model_folder(args)
    folds = [fold if fold == "all" else int(fold) for fold in args.f]
    _check_checkpoints(model, folds, args.chk)
    predictor = _predictor(args)
    predictor.initialize_from_trained_model_folder(str(model), folds, checkpoint_name=args.chk)
    predictor.image_files(Path(args.i))  # before anything is written
    say_left_out(Path(args.i), predictor.dataset_json["file_ending"])
    output = Path(args.o)
    output.mkdir(parents=True, exist_ok=True)
    check_writable(output, purpose="predictions are written there; choose another folder with -o")
    with end_workers(), _naming(output):
        _predict(predictor, args)
        describe_predictions(predictor.dataset_json, output)
    print(f"the segmentations are in {output}")


@contextmanager
def _naming(output: Path) -> Iterator[None]:
    """Name the folder where the system names no file: nnU-Net's copies of plans and dataset.json did not fit."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE or error.filename is not None:
            raise
        raise OSError(
            f"{output}: a file could not be written there ({error.strerror}); free space or choose another folder"
        ) from error


def _model_folder(args: argparse.Namespace) -> Path:
    from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier

    results = find_dataset(nnunet_folder("nnUNet_results"), args.d)
    model = results / convert_trainer_plans_config_to_identifier(args.tr, args.p, args.c)
    if not model.is_dir():
        found = sorted(folder.name for folder in results.iterdir() if folder.name.count("__") == 2)
        raise FileNotFoundError(
            f"no training {model.name} in {results}; found: {', '.join(found) or 'none'}; check -tr, -p and -c"
        )
    return model


def _check_checkpoints(model: Path, folds: Sequence[int | str], name: str) -> None:
    from rehrseg_nnunet.nnunet.weights import read_checkpoint

    trained = sorted(file.parent.name.removeprefix("fold_") for file in model.glob(f"fold_*/{name}"))
    for fold in folds:
        file = model / f"fold_{fold}" / name
        if not file.is_file():
            raise FileNotFoundError(
                f"fold {fold} is not trained: {file} does not exist; trained folds: {' '.join(trained) or 'none'}; "
                "choose with -f, or another checkpoint with -chk"
            )
        read_checkpoint(file, remedy="choose other folds with -f, or another checkpoint with -chk")


def _predict(predictor: HRPredictor, args: argparse.Namespace) -> None:
    options = {
        "save_probabilities": args.save_probabilities,
        "overwrite": not args.continue_prediction,
        "folder_with_segs_from_prev_stage": args.prev_stage_predictions,
    }
    if args.npp == 0:
        predictor.predict_from_files_sequential(args.i, args.o, **options)
        return
    predictor.predict_from_files(
        args.i,
        args.o,
        **options,
        num_processes_preprocessing=args.npp,
        num_processes_segmentation_export=args.nps,
        num_parts=args.num_parts,
        part_id=args.part_id,
    )


def _check(args: argparse.Namespace) -> None:
    previous = args.prev_stage_predictions
    if previous is not None and not Path(previous).is_dir():
        raise FileNotFoundError(f"-prev_stage_predictions must be an existing folder, got {previous}")
    if Path(args.o).exists() and not Path(args.o).is_dir():
        raise ValueError(f"-o must be a folder, but {args.o} is a file; choose another name")
    if not Path(args.i).is_dir():
        raise FileNotFoundError(f"-i must be an existing folder, got {args.i}")
    if not 0 <= args.part_id < args.num_parts:
        raise ValueError(f"-part_id must be from 0 to -num_parts - 1, got {args.part_id} of {args.num_parts}")
    if not 0 < args.step_size <= 1:
        raise ValueError(f"-step_size must be above 0 and at most 1, got {args.step_size}")
    if min(args.npp, args.nps) < 0 or (args.npp == 0) != (args.nps == 0):
        raise ValueError(f"-npp and -nps must be both 0 or both positive, got {args.npp} and {args.nps}")
    if args.npp == 0 and args.num_parts > 1:
        raise ValueError(f"-num_parts must be 1 with -npp 0 -nps 0, got {args.num_parts}")
    check_prediction_options(args)
    for fold in args.f:
        if fold != "all" and not str(fold).isdigit():
            raise ValueError(f"-f must be numbers or all, got {fold}")


def _predictor(args: argparse.Namespace) -> HRPredictor:
    from rehrseg_nnunet.prediction.parse_grids import parse_grids
    from rehrseg_nnunet.prediction.predictor import HRPredictor

    return HRPredictor(
        tile_step_size=args.step_size,
        use_mirroring=not args.disable_tta,
        perform_everything_on_device=args.device == "cuda" and not args.not_on_device,
        device=_device(args.device),
        verbose=args.verbose,
        verbose_preprocessing=args.verbose,
        allow_tqdm=not args.disable_progress_bar,
        grid=None if args.grid is None else parse_grids(args.grid),
        hr_from=args.hr_from,
        writers=prediction_writers(args),
    )


def _device(name: str) -> torch.device:
    """The device, with PyTorch's threads set as nnUNetv2_predict sets them: all on a CPU, one beside a GPU."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("-device must be available, got cuda without a CUDA GPU; use -device cpu")
    if name == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    elif name == "cuda":
        torch.set_num_threads(1)
        if torch.get_num_interop_threads() != 1:  # may be set once per process
            torch.set_num_interop_threads(1)
    return torch.device(name)

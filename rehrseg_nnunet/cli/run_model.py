"""One scan or many through a trained model to files: what `rehrseg predict` and `rehrseg synthesize` share."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rehrseg_nnunet.cli.workers import end_workers
from rehrseg_nnunet.nnunet.folders import check_input, check_model_path, find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.staging_folders import output_folder
from rehrseg_nnunet.nnunet.trainer_path import ensure_trainer_path

NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

if TYPE_CHECKING:
    import torch

    from rehrseg_nnunet.prediction.inputs import Case, Failure
    from rehrseg_nnunet.prediction.manifest import RunRecord
    from rehrseg_nnunet.prediction.many_cases import RunOptions
    from rehrseg_nnunet.prediction.model_folder import TrainedModel
    from rehrseg_nnunet.prediction.outputs import Output
    from rehrseg_nnunet.prediction.predictor import HRPredictor


@dataclass(frozen=True)
class Product:
    """What a command makes.

    Attributes:
        name: of one, in what it prints.
        trainer: the class whose models it takes by default.
        is_segmentation: label values, which viewers can be told the names of.
    """

    name: str
    trainer: str
    is_segmentation: bool

    @property
    def kind(self) -> str | None:
        """Of the models that make it, see `Wanted`."""
        return None if self.is_segmentation else self.trainer


def run_model(args: argparse.Namespace, build: Callable[[argparse.Namespace], HRPredictor], product: Product) -> None:
    """Predict one scan, or every case of a folder or csv file.

    Args:
        args: of `predict_options`.
        build: the predictor, without a model.
        product: what it makes.

    Raises:
        ValueError: impossible options, images not named as nnU-Net wants them, a cascade without its previous stage, or
            a damaged model.
        FileNotFoundError: missing model, checkpoint, input, reference grid or segmentation of a previous stage.
        OSError: the output folder cannot be written to, or a result could not be; named.
        CasesFailedError: with --keep_going, some cases failed.
    """
    _check_paths(args)
    _check(args)
    ensure_trainer_path()
    predictor, model = _load(args, build, product)
    sources = _sources(args)
    found, output = _cases(args, sources, predictor)  # before anything is written
    _say_left_out(sources, predictor)
    purpose = "predictions are written there; choose another place with -o"
    with output_folder(output.folder, purpose=purpose), end_workers(), _naming(output.folder):
        if output.stem is not None:
            _predict_one(predictor, found[0][0], output.stem, args, product)
        else:
            record = _record(predictor, model, output.folder, args)
            _predict_many(predictor, found, record, args, product)


def _cases(
    args: argparse.Namespace, sources: list[Path], predictor: HRPredictor
) -> tuple[tuple[list[Case], list[Failure]], Output]:
    """Cases that can be tried, those that cannot, and where results go."""
    from dataclasses import replace

    from rehrseg_nnunet.prediction.inputs import read_cases
    from rehrseg_nnunet.prediction.many_cases import with_companions
    from rehrseg_nnunet.prediction.outputs import choose_output

    cases, failures = read_cases(sources, predictor.images, keep_going=args.keep_going)
    output = choose_output(args.o, sources, cases, predictor.images)
    predictor.write_as(output.ending)
    options = _options(args)
    # a single scan is an error of the call
    options = options if output.stem is None else replace(options, keep_going=False)
    cases, lacking = with_companions(predictor, cases, options)
    return (cases, [*failures, *lacking]), output


def _check_paths(args: argparse.Namespace) -> None:
    """What can be told without nnU-Net and PyTorch, which take seconds to import."""
    _check_model_options(args)
    if args.m is not None:
        check_model_path(Path(args.m))
    else:
        find_dataset(nnunet_folder("nnUNet_results"), args.d)
    for source in _sources(args):
        check_input(source)


def _check(args: argparse.Namespace) -> None:
    from rehrseg_nnunet.prediction.inputs import check_sources
    from rehrseg_nnunet.prediction.model_folder import parse_folds
    from rehrseg_nnunet.prediction.outputs import check_output
    from rehrseg_nnunet.prediction.parse_grids import parse_grids

    _check_numbers(args)
    parse_folds(args.f or ())
    parse_grids(args.grid or ())
    check_sources(_sources(args))
    check_output(args.o, _sources(args))


def _sources(args: argparse.Namespace) -> list[Path]:
    return [Path(source) for source in args.i]


def _say_left_out(sources: list[Path], predictor: HRPredictor) -> None:
    from rehrseg_nnunet.nnunet.raw_files import say_left_out

    if sources[0].is_dir():
        say_left_out(sources[0], predictor.images.ending)


def _predict_one(predictor: HRPredictor, case: Case, stem: Path, args: argparse.Namespace, product: Product) -> None:
    from rehrseg_nnunet.prediction.export import stems
    from rehrseg_nnunet.prediction.many_cases import check_results, is_there, predict_case

    options = _options(args)
    files = ", ".join(name + predictor.dataset_json["file_ending"] for name in stems(str(stem), predictor.grids))
    if not options.overwrite and is_there(stem, predictor, options):
        print(f"{files}: there and kept")
        return
    if product.is_segmentation:
        check_results([stem], predictor, options)
    written = predict_case(predictor, case, stem, options, is_segmentation=product.is_segmentation)
    print(f"the {product.name} is {files}")
    others = [str(file) for file in written if str(file) not in files]
    if others:
        print(f"also written: {', '.join(others)}")


def _predict_many(
    predictor: HRPredictor,
    found: tuple[list[Case], list[Failure]],
    record: RunRecord,
    args: argparse.Namespace,
    product: Product,
) -> None:
    from rehrseg_nnunet.prediction.many_cases import check_results, predict_cases, raise_if_failed
    from rehrseg_nnunet.surfaces.viewers import describe_predictions

    # of all names, so that a scan that was mended stays in its part
    mine = set(sorted(case.name for case in (*found[0], *found[1]))[_part(args) :: args.num_parts])
    cases = [case for case in found[0] if case.name in mine]
    failures = [failure for failure in found[1] if failure.name in mine]
    if args.num_parts > 1:
        print(f"part {_part(args)} of {args.num_parts}: {len(mine)} of {len(found[0]) + len(found[1])} cases")
    if product.is_segmentation:
        check_results([record.folder / case.name for case in cases], predictor, _options(args))
    record.names = sorted(case.name for case in (*cases, *failures))
    record.failures = failures
    with _saved(record):
        predict_cases(predictor, cases, record.folder, _options(args), record)
        if product.is_segmentation and _part(args) == 0:  # one of those that share the folder
            describe_predictions(predictor.dataset_json, record.folder)
    if len(record.failures) < len(record.names):
        print(f"the {product.name}s are in {record.folder}")
    raise_if_failed(record)


def _record(predictor: HRPredictor, model: TrainedModel, folder: Path, args: argparse.Namespace) -> RunRecord:
    from rehrseg_nnunet.prediction.manifest import RunRecord, device_name, model_hash

    about = {
        "model": {
            "dataset": predictor.plans_manager.dataset_name,
            "trainer": model.trainer,
            "plans": predictor.plans_manager.plans_name,
            "configuration": model.configuration,
            "folds": list(model.folds),
            "checkpoint": model.checkpoint,
            "sha256": model_hash(predictor.list_of_parameters or ()),
        },
        "device": device_name(predictor.device),
        "options": {
            "grid": [grid.name for grid in predictor.grids],
            "mirroring": predictor.use_mirroring,
            "step_size": args.step_size,
            "hr_from": predictor.hr_from,
        },
    }
    part, beside = (_part(args), args.num_parts), [args.prev_stage_predictions, *(args.grid or ())]
    paths = [Path(name) for name in beside if name is not None and Path(name).exists()]
    unnamed = [path if path.is_dir() else path.parent for path in paths]
    return RunRecord(folder, part=part, about=about, keep=args.continue_prediction, unnamed=unnamed)


@contextmanager
def _saved(record: RunRecord) -> Iterator[None]:
    """Write the record at the end, also of a run that an error or Ctrl-C ends."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # a full disk may be what ended the run
            record.save(finished=False)
        raise
    record.save(finished=True)


def _options(args: argparse.Namespace) -> RunOptions:
    from rehrseg_nnunet.prediction.many_cases import RunOptions

    return RunOptions(
        save_probabilities=args.save_probabilities,
        overwrite=not args.continue_prediction,
        preprocessing=args.npp,
        export=args.nps,
        previous_stage=args.prev_stage_predictions,
        keep_going=args.keep_going,
    )


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


def _load(
    args: argparse.Namespace, build: Callable[[argparse.Namespace], HRPredictor], product: Product
) -> tuple[HRPredictor, TrainedModel]:
    """The predictor, initialised, after a check of the model's files; what was unpacked is gone then."""
    from rehrseg_nnunet.prediction.model_folder import Wanted, open_model, parse_folds, trained_model

    folds = None if args.f is None else parse_folds(args.f)
    if args.m is None:
        model = trained_model(_model_folder(args, product), folds=folds or range(5), checkpoint=args.chk)
        predictor = build(args)
        model.load_into(predictor)
        return predictor, model
    wanted = Wanted(args.tr, args.p, args.c, kind=product.kind)
    with open_model(Path(args.m), wanted, checkpoint=args.chk) as folder:
        model = trained_model(folder, folds=folds, checkpoint=args.chk, source=args.m, wanted=wanted)
        predictor = build(args)
        model.load_into(predictor)
        return predictor, model


def _model_folder(args: argparse.Namespace, product: Product) -> Path:
    from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier

    from rehrseg_nnunet.prediction.model_folder import Wanted

    results = find_dataset(nnunet_folder("nnUNet_results"), args.d)
    trainer = args.tr or product.trainer
    model = results / convert_trainer_plans_config_to_identifier(trainer, args.p or "nnUNetPlans", args.c)
    if not model.is_dir():
        names, wanted = (folder.name for folder in results.iterdir()), Wanted(kind=product.kind)
        found = sorted(name for name in names if name.count("__") == 2 and wanted.can_use(name))
        raise FileNotFoundError(
            f"no training {model.name} in {results}; found: {', '.join(found) or 'none'}; check -tr, -p and -c"
        )
    return model


def _check_model_options(args: argparse.Namespace) -> None:
    if args.m is not None and args.d is not None:
        raise ValueError(f"-m names the model's files and -d its dataset; leave out one of -m {args.m} and -d {args.d}")
    if args.m is not None and (args.m.isdigit() or args.m.startswith("Dataset")) and not Path(args.m).exists():
        raise ValueError(f"-m must be a model's folder or zip file; a dataset goes with -d {args.m} -c CONFIGURATION")
    if args.m is None and args.d is None:
        raise ValueError("the model must be named, by -m FOLDER or -m ZIP, or by -d DATASET -c CONFIGURATION")
    if args.m is None and args.c is None:
        raise ValueError("-d needs -c, the configuration that was trained, e.g. -c 3d_fullres")


def _check_numbers(args: argparse.Namespace) -> None:
    from rehrseg_nnunet.prediction.inputs import is_single

    if not 0 <= _part(args) < args.num_parts:
        raise ValueError(f"-part_id must be from 0 to -num_parts - 1, got {args.part_id} of {args.num_parts}")
    if not 0 < args.step_size <= 1:
        raise ValueError(f"-step_size must be above 0 and at most 1, got {args.step_size}")
    if args.num_parts > 1 and is_single(_sources(args)):
        raise ValueError(f"-num_parts splits the cases of a folder or csv file, got one scan {args.i[0]}; leave it out")
    if args.num_parts > 1 and args.part_id is None:
        raise ValueError(f"-num_parts {args.num_parts} needs -part_id too, the number of this part from 0")
    if min(args.npp, args.nps) < 0 or (args.npp == 0) != (args.nps == 0):
        raise ValueError(f"-npp and -nps must be both 0 or both positive, got {args.npp} and {args.nps}")


def _part(args: argparse.Namespace) -> int:
    return args.part_id or 0


def choose_device(name: str | None) -> torch.device:
    """The device, with PyTorch's threads set as nnUNetv2_predict sets them: all on a CPU, one beside a GPU.

    Args:
        name: None for a CUDA GPU if there is one; Apple's lack some 3D operations.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu":
            print("no CUDA GPU found: predicting on the CPU")

    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("-device must be available, got cuda without a CUDA GPU; use -device cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ValueError("-device must be available, got mps without an Apple GPU; use -device cpu")
    if name == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    elif name == "cuda":
        torch.set_num_threads(1)
        if torch.get_num_interop_threads() != 1:  # may be set once per process
            torch.set_num_interop_threads(1)
    return torch.device(name)

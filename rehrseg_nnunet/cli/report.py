"""Write a page to look at."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rehrseg_nnunet.nnunet.safe_files import check_writable
from rehrseg_nnunet.report.folds import WantedFolds, read_folds
from rehrseg_nnunet.report.page import PICTURES, write_page
from rehrseg_nnunet.report.predictions import PredictionFolders, read_predictions

_FOLD_ONLY = {"-c": "c", "-f": "f", "-tr": "tr", "-p": "p"}
_PREDICTION_ONLY = {"-acquired": "acquired", "-ref": "ref", "-i": "i", "-djfile": "djfile"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg report`; names are those of nnU-Net's commands where the meaning is."""
    parser.description = (
        "Write one HTML file by which a trained fold (-d, -c) or a folder of predictions (-pred) can be judged: all "
        "cases worst first, pictures, volumes, curves of training. It opens without a network. It holds images of the "
        "scans and names of the cases."
    )
    fold = parser.add_argument_group("a trained fold")
    fold.add_argument("-d", metavar="DATASET", help="number or name; its training lies in nnUNet_results")
    fold.add_argument("-c", metavar="CONFIGURATION", help="such as 3d_fullres")
    fold.add_argument("-f", nargs="+", metavar="FOLD", help="numbers or 'all' (default: all that are there)")
    fold.add_argument("-tr", metavar="TRAINER", help="class name (default: REHRSegTrainer)")
    fold.add_argument("-p", metavar="PLANS", help="name of the plans (default: nnUNetPlans)")
    folder = parser.add_argument_group("a folder of predictions")
    folder.add_argument("-pred", metavar="FOLDER", help="predictions")
    folder.add_argument("-acquired", metavar="FOLDER", help="predictions of the same cases on the acquired slices")
    folder.add_argument(
        "-ref", metavar="FOLDER", help="reference labels, on the predictions' grid or on the acquired slices"
    )
    folder.add_argument("-i", metavar="FOLDER", help="the scans, named as for prediction, shown behind the outlines")
    folder.add_argument("-djfile", metavar="FILE", help="dataset.json (default: the one beside the predictions)")
    parser.add_argument(
        "-baseline",
        metavar="NAME",
        help="what to compare with: a trainer for a fold (default: nnUNetTrainer if it is trained), else a folder of "
        "predictions on the reference's grid",
    )
    parser.add_argument("-o", required=True, metavar="FILE", help="the page, such as report.html")
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N", help="of the N worst cases (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Find the cases, write the page, print where it is."""
    file = _output(args.o)
    _check_form(args)
    if args.pictures < 0:
        raise ValueError(f"--pictures must be 0 or more, got {args.pictures}")
    with tempfile.TemporaryDirectory(prefix="rehrseg-report-") as scratch:
        material = read_predictions(_folders(args)) if args.d is None else read_folds(_wanted(args), Path(scratch))
        write_page(material, file, pictures=args.pictures)
    print(f"to look at: {file} (it holds images and names of cases)")


def _output(target: str) -> Path:
    file = Path(target)
    if file.suffix.lower() not in (".html", ".htm") or file.is_dir():
        raise ValueError(f"-o must be a file that ends in .html, got {target}")
    if not file.absolute().parent.is_dir():
        raise FileNotFoundError(f"-o must lie in an existing folder, got {target}")
    check_writable(file.absolute().parent, purpose="the page is written there; choose another place with -o")
    return file


def _check_form(args: argparse.Namespace) -> None:
    if (args.d is None) == (args.pred is None):
        raise ValueError("name either a trained fold, by -d DATASET -c CONFIGURATION, or predictions, by -pred FOLDER")
    if args.d is not None and args.c is None:
        raise ValueError("-c must name the configuration of the training, such as 3d_fullres")
    others = _PREDICTION_ONLY if args.pred is None else _FOLD_ONLY
    wrong = [option for option, name in others.items() if getattr(args, name) is not None]
    if wrong:
        form = "-d" if args.pred is None else "-pred"
        raise ValueError(f"{', '.join(wrong)} must be left out with {form}; see rehrseg report -h")


def _folders(args: argparse.Namespace) -> PredictionFolders:
    def path(value: str | None) -> Path | None:
        return None if value is None else Path(value)

    return PredictionFolders(
        predictions=Path(args.pred),
        acquired=path(args.acquired),
        reference=path(args.ref),
        scans=path(args.i),
        baseline=path(args.baseline),
        dataset_json=path(args.djfile),
    )


def _wanted(args: argparse.Namespace) -> WantedFolds:
    names = {"folds": args.f and tuple(args.f), "trainer": args.tr, "plans": args.p}
    chosen = {name: value for name, value in names.items() if value is not None}
    return WantedFolds(dataset=args.d, configuration=args.c, baseline=args.baseline, **chosen)

"""Any 3D model on any grid: one resumable command from a dataset of 1 mm voxels to a table.

    python -m benchmarks.grids --source nnUNet_raw/Dataset004_Hippocampus --work /scratch/grids

makes 2 mm voxels, 3 mm slices and 4 mm slices of the dataset, trains nnU-Net on each, predicts test cases that no
training has seen on 1 mm, and scores them against the truth: `rehrseg predict --grid 1,1,1`, the labels of
`nnUNetv2_predict` repeated, and `nnUNetv2_predict` on the image resampled to 1 mm. Run it again to go on.
"""

from __future__ import annotations

import argparse
import csv
import os
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import wilcoxon

from benchmarks.grids.models import MODELS, Study, prepare
from benchmarks.grids.scores import METHODS, METRICS, OWN, Score, predict, score
from benchmarks.quality.commands import DEFAULTS
from benchmarks.quality.launch import PRECISIONS
from benchmarks.quality.runs import OWN_TRAINERS
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.evaluation.tables import format_table


def parser() -> argparse.ArgumentParser:
    """Its options."""
    result = argparse.ArgumentParser(
        "python -m benchmarks.grids", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--source", type=Path, required=True, help="nnU-Net raw dataset folder with 1 mm voxels")
    result.add_argument("--work", type=Path, required=True, help="folder for everything; run again to resume")
    result.add_argument("--cases", type=int, default=60, help="first cases of the source, in order of their names")
    result.add_argument("--test-cases", type=int, default=30, help="cases after these, for testing alone")
    result.add_argument("--epochs", type=int, default=10, help="a length that nnU-Net has a trainer for")
    result.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="of the trainings")
    result.add_argument(
        "--trained",
        nargs="+",
        default=[],
        metavar="NAME=FOLDER",
        help=f"models that are trained already, of: {', '.join(model.name for model in MODELS)}",
    )
    return result


def main(argv: list[str] | None = None) -> None:
    """Do what is missing and print the table."""
    args = parser().parse_args(argv)
    trained = {name: Path(folder) for name, _, folder in (value.partition("=") for value in args.trained)}
    study = Study(
        args.work.resolve(), args.source.resolve(), args.cases, args.test_cases, args.epochs, args.precision, trained
    )
    _set_environment(study)
    scores = []
    for model in MODELS:
        prepare(study, model)
        predict(study, model, torch.device("cpu"))
        scores += score(study, model)
    _write(scores, study.work / "scores.csv")
    print(format_table(_rows(scores)))


def _set_environment(study: Study) -> None:
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(study.work / f"nnUNet_{name}")
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    ensure_trainer_path()
    os.environ["nnUNet_extTrainer"] += os.pathsep + str(OWN_TRAINERS)


def _write(scores: list[Score], file: Path) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Score)])
        writer.writeheader()
        writer.writerows(asdict(entry) for entry in scores)


def _rows(scores: list[Score]) -> list[dict[str, str]]:
    """Means over cases and labels; p: paired Wilcoxon test of the cases' means against the first method."""
    rows = []
    for model in MODELS:
        own = {metric: _case_means(scores, model.name, OWN, metric) for metric in METRICS}
        for method in METHODS:
            row = {"model": model.name, "method": method}
            for metric in METRICS:
                values = _case_means(scores, model.name, method, metric)
                p = "" if method == OWN else f"{_p_value(values, own[metric]):.2g}"
                row |= {metric: f"{np.nanmean(values):.3f}", f"p ({metric})": p}
            rows.append(row)
    return rows


def _p_value(values: np.ndarray, others: np.ndarray) -> float:
    return float(np.asarray(wilcoxon(values, others))[1])


def _case_means(scores: list[Score], model: str, method: str, metric: str) -> np.ndarray:
    chosen = [entry for entry in scores if (entry.model, entry.method) == (model, method)]
    cases = sorted({entry.case for entry in chosen})
    return np.array([np.nanmean([getattr(e, metric) for e in chosen if e.case == case]) for case in cases])


if __name__ == "__main__":
    main()

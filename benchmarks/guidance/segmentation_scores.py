"""Scores of segmentations of the test set, case by case, computed once and kept."""

from __future__ import annotations

import json

from benchmarks.guidance.runs import Run
from rehrseg_nnunet.evaluation.compare import evaluate_folders
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically


def score(run: Run) -> None:
    """Score a run's predictions of the test set; nothing if that was done.

    The file holds ``labels``, names by nnU-Net's key, and ``cases``, as of `evaluate_folders`.
    """
    if run.scores.is_file():
        return
    raw = run.benchmark.folder("raw", "source")
    dataset_json = read_dataset_json(raw / "dataset.json")
    summary = evaluate_folders(raw / "labelsTs", {"": [run.predictions]}, dataset_json=dataset_json)
    (fold,) = summary["methods"][""]["folds"].values()
    cases = [{"case": case["case"], "metrics": case["metrics"]} for case in fold["metric_per_case"]]
    run.scores.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(run.scores, json.dumps({"labels": summary["settings"]["labels"], "cases": cases}))

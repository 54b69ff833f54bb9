"""Every finished run's scores, case by case, computed once and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.quality.benchmark import Benchmark
from benchmarks.quality.datasets import decimate_folder, whole
from benchmarks.quality.runs import Run, scores_file
from rehrseg_nnunet.evaluation.compare import evaluate_folders
from rehrseg_nnunet.evaluation.upsampling import METHODS, upsample_in_every_way
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically

SETS = {"validation": "Tr", "test": "Ts"}
ALL_PHASES = "cubic logits, all phases"  # what `rehrseg predict` makes of a network without an HR head


def score(run: Run) -> None:
    """Score the validation cases and the test set of a segmenting run; nothing if that was done in every way to HR.

    The file holds ``{set: {resolution: {way to HR, or "": {"labels": names by key, "cases": [...]}}}}``, as of
    `evaluate_folders`.
    """
    if _complete(run):
        return
    file = scores_file(run)
    result = {name: _score_set(run, name) for name in SETS if _source(run, name) is not None}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(result))


def read_scores(run: Run) -> dict[str, Any] | None:
    """A run's scores, None if it has none yet."""
    file = scores_file(run)
    return json.loads(file.read_text()) if file.is_file() else None


def _complete(run: Run) -> bool:
    """Whether the scores are there, by all ways: an earlier version may have known fewer."""
    scores = read_scores(run)
    return scores is not None and all(_ways(run, name) <= scored["hr"].keys() for name, scored in scores.items())


def _ways(run: Run, name: str) -> set[str]:
    if run.row.hr != "upsampled":
        return {""}
    return {*METHODS.values(), *([ALL_PHASES] if name == "test" else [])}


def _source(run: Run, name: str) -> Path | None:
    """Folder of the LR predictions (HR ones of a run on HR data) of a set, None where there are none."""
    if name == "validation":
        return run.folder / "validation"
    folder = run.predictions / ("hr" if run.row.hr == "data" else "lr")
    return folder if folder.is_dir() else None


def _score_set(run: Run, name: str) -> dict[str, dict[str, Any]]:
    raw = run.benchmark.folder("raw", run.benchmark.dataset("thick"))
    folders = {"lr": {"": _lr_folder(run, name)}, "hr": dict(_hr_folders(run, name))}
    references = {"lr": raw / f"labels{SETS[name]}", "hr": raw / f"labels{SETS[name]}HR"}
    scored: dict[str, dict[str, Any]] = {}
    for resolution, methods in folders.items():
        summary = evaluate_folders(
            references[resolution],
            {way: [folder] for way, folder in methods.items()},
            dataset_json=_dataset_json(run.benchmark),
            chill=True,
        )
        labels = summary["settings"]["labels"]
        scored[resolution] = {way: {"labels": labels, "cases": _cases(summary["methods"][way])} for way in methods}
    return scored


def _cases(method: dict[str, Any]) -> list[dict[str, Any]]:
    (fold,) = method["folds"].values()
    return [{"case": case["case"], "metrics": case["metrics"]} for case in fold["metric_per_case"]]


def _lr_folder(run: Run, name: str) -> Path:
    source = _source(run, name)
    if run.row.hr != "data":
        return source
    target = run.predictions / f"{name}_slice_centres"
    if not target.is_dir():
        with whole(target) as partial:
            decimate_folder(source, partial, factor=run.benchmark.factor, axis=run.benchmark.array_axis)
    return target


def _hr_folders(run: Run, name: str) -> Iterator[tuple[str, Path]]:
    if run.row.hr == "data":
        yield "", _source(run, name)
    elif run.row.hr == "head":
        yield "", run.folder / "validation_hr" if name == "validation" else run.predictions / "hr"
    else:
        yield from upsample_in_every_way(
            _source(run, name),
            lambda method: run.predictions / f"{name}_{method}",
            plans_file=run.folder.parent / "plans.json",
            factor=run.benchmark.factor,
            axis=run.benchmark.array_axis,
            dataset_json=_dataset_json(run.benchmark),
        )
        if name == "test":
            yield ALL_PHASES, run.predictions / "hr"


def _dataset_json(benchmark: Benchmark) -> dict[str, Any]:
    return read_dataset_json(benchmark.folder("raw", benchmark.dataset("thick")) / "dataset.json")

"""Every finished run's scores, case by case, computed once and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from benchmarks.quality.benchmark import Benchmark
from benchmarks.quality.datasets import FILES, decide_at_centres, read_folder, whole
from benchmarks.quality.filling import fill_cases
from benchmarks.quality.runs import Run, scores_file
from benchmarks.quality.unbiased import choose_on_folder, decide_folder, has_probabilities
from rehrseg_nnunet.evaluation.compare import evaluate_folders
from rehrseg_nnunet.evaluation.summary import SEGMENTATION_METRICS
from rehrseg_nnunet.evaluation.upsampling import METHODS, upsample_in_every_way
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.slices.geometry import scale_slice_geometry

SETS = {"validation": "Tr", "test": "Ts"}
ALL_PHASES = "cubic logits, all phases"  # what `rehrseg predict` makes of a network without an HR head
FILLED = "Fill between slices"
UNBIASED = "one offset a class"  # see `unbiased`


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
    """Whether the scores are there, by all ways and metrics: an earlier version may have known fewer."""
    scores = read_scores(run)
    return scores is not None and all(
        _ways(run, name) <= scored["hr"].keys() and all(map(_has_every_metric, scored["hr"].values()))
        for name, scored in scores.items()
    )


def _has_every_metric(scored: Mapping[str, Any]) -> bool:
    return all(set(SEGMENTATION_METRICS) <= metrics.keys() for metrics in scored["cases"][0]["metrics"].values())


def _ways(run: Run, name: str) -> set[str]:
    """Ways to HR that a set of a run can be scored by."""
    best = ""
    ways = {best}
    if run.row.hr == "upsampled":
        best = ALL_PHASES
        ways = {*METHODS.values(), FILLED, *([best] if _best_folder(run, name).is_dir() else [])}
    return ways | ({_unbiased(best)} if _probabilities(run) is not None else set())


def _unbiased(best: str) -> str:
    return ", ".join(filter(None, [best, UNBIASED]))


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
    target = run.predictions / f"{name}_at_centres"
    if not target.is_dir():
        plans = PlansManager(str(run.folder.parent / "plans.json"))
        with whole(target) as partial:
            decide_at_centres(
                source,
                partial,
                factor=run.benchmark.factor,
                axis=run.benchmark.array_axis,
                label_manager=plans.get_label_manager(_dataset_json(run.benchmark)),
            )
    return target


def _hr_folders(run: Run, name: str) -> Iterator[tuple[str, Path]]:
    best = ""
    if run.row.hr == "data":
        yield best, _source(run, name)
    elif run.row.hr == "head":
        yield best, run.folder / "validation_hr" if name == "validation" else run.predictions / "hr"
    else:
        best = ALL_PHASES
        yield from _upsampled_folders(run, name)
        if _best_folder(run, name).is_dir():
            yield best, _best_folder(run, name)
    if _probabilities(run) is not None:
        yield _unbiased(best), _unbiased_folder(run, name)


def _upsampled_folders(run: Run, name: str) -> Iterator[tuple[str, Path]]:
    source, factor, axis = _source(run, name), run.benchmark.factor, run.benchmark.array_axis
    yield from upsample_in_every_way(
        source,
        lambda method: run.predictions / f"{name}_{method}",
        plans_file=run.folder.parent / "plans.json",
        factor=factor,
        axis=axis,
        dataset_json=_dataset_json(run.benchmark),
    )
    filled = run.predictions / f"{name}_filled"
    if not filled.is_dir():
        with whole(filled) as partial:
            cases = {file.name: (labels, properties) for file, labels, properties in read_folder(source, labels=True)}
            thin = fill_cases({case: labels for case, (labels, _) in cases.items()}, factor, axis)
            for case, (_, properties) in cases.items():
                FILES().write_seg(thin[case], str(partial / case), scale_slice_geometry(properties, axis, 1 / factor))
    yield FILLED, filled


def _best_folder(run: Run, name: str) -> Path:
    """Folder of a set's HR predictions as a user would make them, with probabilities."""
    if run.row.hr == "data":
        return run.folder / "validation" if name == "validation" else run.predictions / "hr"
    return run.predictions / ("validation_hr" if name == "validation" else "hr")


def _probabilities(run: Run) -> tuple[Path, Path] | None:
    """Folders of the validation and the test set's HR predictions; None for regions, or without probabilities."""
    folders = _best_folder(run, "validation"), _best_folder(run, "test")
    labels = _dataset_json(run.benchmark)["labels"].values()
    return folders if has_probabilities(folders) and all(isinstance(label, int) for label in labels) else None


def _unbiased_folder(run: Run, name: str) -> Path:
    """A set's HR predictions with one offset a class, which the validation cases' thick labels choose."""
    raw = run.benchmark.folder("raw", run.benchmark.dataset("thick"))
    offsets = choose_on_folder(
        _best_folder(run, "validation"),
        raw / "labelsTr",
        classes=len(_dataset_json(run.benchmark)["labels"]),
        factor=run.benchmark.factor,
        file=run.predictions / "offsets.json",
    )
    decide_folder(_best_folder(run, name), run.predictions / f"{name}_unbiased", offsets)
    return run.predictions / f"{name}_unbiased"


def _dataset_json(benchmark: Benchmark) -> dict[str, Any]:
    return read_dataset_json(benchmark.folder("raw", benchmark.dataset("thick")) / "dataset.json")

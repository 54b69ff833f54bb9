"""A folder of predictions, with or without reference, as material of a page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rehrseg_nnunet.evaluation.compare import default_workers, evaluate_folders
from rehrseg_nnunet.evaluation.volumes import read_volume
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.raw_files import group_channels, listed, require_images
from rehrseg_nnunet.nnunet.whole_files import WholeFiles, whole_files_of
from rehrseg_nnunet.report.cases import CaseFiles, GridFiles
from rehrseg_nnunet.report.material import Material
from rehrseg_nnunet.slices.grids import corner_distance_mm, tolerance_mm

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class PredictionFolders:
    """What the user named.

    Attributes:
        predictions: what is judged.
        acquired: predictions of the same cases on the acquired slices.
        reference: labels on the grid of the predictions, or on the acquired slices.
        scans: that were predicted, named as nnU-Net wants them.
        baseline: predictions to compare with, on the reference's grid.
        dataset_json: file; None takes that of the predictions.
    """

    predictions: Path
    acquired: Path | None = None
    reference: Path | None = None
    scans: Path | None = None
    baseline: Path | None = None
    dataset_json: Path | None = None


def read_predictions(folders: PredictionFolders) -> Material:
    """Find and score the cases.

    Raises:
        FileNotFoundError: folders or files are missing, or nothing pairs.
        ValueError: files that cannot be used, or that lie on other grids.
    """
    dataset_json = _read_dataset_json(folders)
    ending = dataset_json["file_ending"]
    files = require_images(folders.predictions, ending)
    for folder in (folders.acquired, folders.reference, folders.baseline):
        if folder is not None:
            require_images(folder, ending)
    reader = whole_files_of(dataset_json, files[0])
    names = [file.name.removesuffix(ending) for file in files]
    judged_acquired = _reference_is_acquired(folders, names, ending, reader)
    judged = folders.acquired if judged_acquired and folders.acquired is not None else folders.predictions
    model, baseline = folders.predictions.resolve().name, None
    methods: dict[str, list[Path]] = {model: [judged]}
    if folders.baseline is not None:
        baseline = folders.baseline.resolve().name
        baseline = baseline if baseline != model else f"{baseline} (baseline)"
        methods = {baseline: [folders.baseline], **methods}
    summary = None
    if folders.reference is not None:
        summary = score(folders.reference, methods, dataset_json)
    scans = _scans(folders, names, ending)
    cases = [_case(folders, name, ending, scans.get(name), judged_acquired) for name in names]
    return Material(
        title=f"Predictions in {model}",
        facts={"predictions": model, "cases": str(len(names)), **recorded_facts(folders.predictions)},
        dataset_json=dataset_json,
        reader=reader,
        cases=cases,
        model=model,
        baseline=baseline,
        main_summary=None if judged_acquired else summary,
        acquired_summary=summary if judged_acquired else None,
        notes=_notes(folders, cases, scans),
    )


def score(reference: Path, methods: Mapping[str, Sequence[Path]], dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of the cases that have a reference."""
    return evaluate_folders(reference, methods, dataset_json=dataset_json, chill=True, workers=default_workers())


def _read_dataset_json(folders: PredictionFolders) -> dict[str, Any]:
    file = folders.dataset_json or folders.predictions / DATASET_JSON
    if not folders.predictions.is_dir():
        raise FileNotFoundError(f"-pred must be an existing folder, got {folders.predictions}")
    if folders.dataset_json is None and not file.is_file():
        raise FileNotFoundError(f"{file} is missing, which names the labels; name the dataset's with -djfile")
    return read_dataset_json(file, required=("labels", "file_ending"))


def _reference_is_acquired(folders: PredictionFolders, names: Sequence[str], ending: str, reader: WholeFiles) -> bool:
    """Whether the reference lies on the acquired slices and not on the predictions' grid."""
    if folders.reference is None or folders.acquired is None:
        return False
    name = next((name for name in names if (folders.reference / f"{name}{ending}").is_file()), None)
    if name is None:
        return False
    files = [folder / f"{name}{ending}" for folder in (folders.reference, folders.predictions)]
    reference, prediction = (read_volume(file, reader=reader, labels=True).grid for file in files)
    same_shape = reference.shape == prediction.shape
    return not (same_shape and corner_distance_mm(prediction, reference) <= tolerance_mm(reference))


def _scans(folders: PredictionFolders, names: Sequence[str], ending: str) -> dict[str, Path]:
    """The first channel of each case."""
    if folders.scans is None:
        return {}
    require_images(folders.scans, ending)
    by_channels = group_channels(folders.scans, ending)[0]
    found = {case: Path(by_channels[case][0]) for case in names if case in by_channels}
    for case in names:  # scans of one channel may be called like the case
        file = existing(folders.scans, f"{case}{ending}")
        if file is not None:
            found[case] = file
    if not found:
        raise FileNotFoundError(
            f"no scan in {folders.scans} is of a case in {folders.predictions}, as {names[0]}_0000 or {names[0]}"
        )
    return found


def _case(folders: PredictionFolders, name: str, ending: str, scan: Path | None, judged_acquired: bool) -> CaseFiles:
    main = grid_files(folders.predictions, name, ending, scan)
    acquired = None
    if folders.acquired is not None and (folders.acquired / f"{name}{ending}").is_file():
        acquired = grid_files(folders.acquired, name, ending, scan)
    judged = {
        "reference": existing(folders.reference, f"{name}{ending}"),
        "baseline": existing(folders.baseline, f"{name}{ending}"),
    }
    if judged_acquired:
        return CaseFiles(name, main, None if acquired is None else replace(acquired, **judged))
    return CaseFiles(name, replace(main, **judged), acquired)


def grid_files(folder: Path, name: str, ending: str, scan: Path | None) -> GridFiles:
    """A prediction with its probabilities, if they were written."""
    return GridFiles(folder / f"{name}{ending}", scan=scan, probabilities=existing(folder, f"{name}.npz"))


def existing(folder: Path | None, name: str) -> Path | None:
    """A file of a folder, None where it is not there."""
    return folder / name if folder is not None and (folder / name).is_file() else None


def recorded_facts(folder: Path) -> dict[str, str]:
    """What `rehrseg predict` wrote of itself beside its predictions; nothing where it did not."""
    record = next(iter(_records(folder)), None)
    if record is None:
        return {}
    model, versions = record["model"], record["versions"]
    return {
        **{key: str(model[key]) for key in ("dataset", "trainer", "plans", "configuration") if key in model},
        "folds": ", ".join(str(fold) for fold in model["folds"]),
        "grid": " ".join(str(grid) for grid in record["options"]["grid"]),
        "predicted": f"{record['started'][:10]} on {record['device']}",
        "weights": str(model.get("sha256", ""))[:12],
        "predicted with": ", ".join(f"{name} {number}" for name, number in versions.items()),
    }


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Records of `rehrseg predict`, one for each part; of another program's files none."""
    for file in sorted(folder.glob("prediction*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and {"model", "versions", "options", "started", "failures"} <= record.keys():
            yield record


def _notes(folders: PredictionFolders, cases: Sequence[CaseFiles], scans: Mapping[str, Path]) -> list[str]:
    notes = [
        f"{name} has no prediction: {reason}"
        for record in _records(folders.predictions)
        for name, reason in record["failures"].items()
    ]
    graded = [case.main.reference or (case.acquired and case.acquired.reference) for case in cases]
    unknown = [case.name for case, reference in zip(cases, graded, strict=True) if reference is None]
    if folders.reference is not None and unknown:
        notes.append(f"{len(unknown)} cases have no reference: {listed(unknown)}")
    unseen = [case.name for case in cases if case.name not in scans]
    if folders.scans is not None and unseen:
        notes.append(f"{len(unseen)} cases have no scan: {listed(unseen)}")
    return notes

"""LR and HR tables of one fold: baselines upsampled in every way beside methods that predict HR themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rehrseg_nnunet.evaluation.compare import evaluate_folders
from rehrseg_nnunet.evaluation.summary import MEAN, MISSED
from rehrseg_nnunet.evaluation.tables import format_table, write_summary
from rehrseg_nnunet.evaluation.upsampling import upsample_in_every_way
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json


def compare_fold(
    *,
    raw_folder: Path,
    fold_folders: Mapping[str, Path],
    factor: int,
    axis: int,
    output_folder: Path,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Compare the validation cases of one fold, at LR with `labelsTr` and at HR with `labelsTrHR`.

    Args:
        raw_folder: simulated dataset in nnUNet_raw.
        fold_folders: method name to nnU-Net's fold folder. Every one gives an LR row; one with `validation_hr` gives an
            HR row, any other one for each of `upsampling.METHODS` (`--npz`).
        factor: r.
        axis: array axis of the slices in the files.
        output_folder: for upsampled files, `lr.json`, `hr.json` and their csv.

    Returns:
        The LR and the HR summary of `evaluate_folders`; both are also written to `output_folder`.
    """
    dataset_json = read_dataset_json(raw_folder / "dataset.json")
    output_folder.mkdir(parents=True, exist_ok=True)
    lr_methods = {name: [fold / "validation"] for name, fold in fold_folders.items()}
    hr_methods: dict[str, list[Path]] = {}
    for name, fold in fold_folders.items():
        if (fold / "validation_hr").is_dir():
            hr_methods[name] = [fold / "validation_hr"]
            continue
        upsampled = upsample_in_every_way(
            fold / "validation",
            (output_folder / name.replace(" ", "_")).joinpath,
            plans_file=fold.parent / "plans.json",
            factor=factor,
            axis=axis,
            dataset_json=dataset_json,
        )
        hr_methods |= {f"{name}, {title}": [folder] for title, folder in upsampled}
    summaries = []
    for resolution, methods, labels in (("lr", lr_methods, "labelsTr"), ("hr", hr_methods, "labelsTrHR")):
        summary = evaluate_folders(raw_folder / labels, methods, dataset_json=dataset_json, chill=True)
        write_summary(
            summary,
            json_file=output_folder / f"{resolution}.json",
            csv_file=output_folder / f"{resolution}.csv",
        )
        summaries.append(summary)
    return summaries[0], summaries[1]


def brief_table(summary: Mapping[str, Any]) -> str:
    """One row per method of `evaluate_folders`: Dice and HD95, mean over foreground and mean ± std over cases.

    Where structures are missed or made up, they are counted.
    """
    rows = []
    for name, method in summary["methods"].items():
        scores = method["over_cases"][MEAN]
        row = {"": name, "n": str(scores["Dice"]["n"])}
        for metric, title, digits in (("Dice", "Dice", 4), ("HD95", "HD95 (mm)", 2)):
            row[title] = f"{scores[metric]['mean']:.{digits}f} ± {scores[metric]['std']:.{digits}f}"
        row[MISSED] = str(sum(method["one_empty"].values()) or "")
        rows.append(row)
    if not any(row[MISSED] for row in rows):
        rows = [{title: cell for title, cell in row.items() if title != MISSED} for row in rows]
    return format_table(rows)

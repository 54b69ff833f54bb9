"""`validation/summary.json` of teacher and keeper, without which nnUNetv2_export_model_to_zip exports no model."""

from __future__ import annotations

import json
from pathlib import Path

from rehrseg_nnunet.nnunet.safe_files import write_atomically

SUMMARY = Path("validation", "summary.json")  # nnU-Net's


def write_summary(report: Path) -> None:
    """Repeat a report's mean scores where nnU-Net has a segmentation's Dice.

    Keys are others than nnU-Net's (`foreground_mean`, `mean`, `metric_per_case`), so that nothing takes a PSNR for a
    Dice: nnU-Net's readers end in a KeyError.

    Args:
        report: `teacher_report.json` or `synthesis_report.json`, in the fold's folder.
    """
    means = json.loads(report.read_text(encoding="utf-8"))["mean"]
    file = report.parent / SUMMARY
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps({"image_scores": means, "report": report.name}, indent=4))

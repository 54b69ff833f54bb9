"""What stage 1 left in its folder, as rows and pictures."""

import json

import pytest
from report_cases import log_text

from rehrseg_nnunet.report.stage_1 import Stage1

REPORT = {
    "cases": {"true HR": 3},
    "comparisons": {
        "true HR": {
            "B-spline + nearest": {"psnr": 27.625, "ssim": 0.6437, "dice": 0.8156},
            "self-SR": {"psnr": 28.468, "ssim": 0.6769, "dice": 0.885, "spearman": 0.1086},
        }
    },
}
UNCERTAINTY = {"cases": {"true HR": 3}, "comparisons": {"true HR": {"U": {"spearman": 0.13, "auroc": 0.73, "edge": 1}}}}


def write(folder, content):
    (folder / "self_sr_report.json").write_text(json.dumps(content))


def test_rows_and_pictures(tmp_path):
    write(tmp_path, {**REPORT, "uncertainty": UNCERTAINTY})
    for name in ("pseudo_hr_b.png", "pseudo_hr_a_1.png", "progress.png"):
        (tmp_path / name).touch()
    found = Stage1.read(tmp_path)
    assert found.rows == [
        {"compared with": "true HR (3)", "method": "B-spline + nearest", "PSNR (dB)": "27.62", "SSIM": "0.644",
         "Dice": "0.816", "Spearman": ""},
        {"compared with": "true HR (3)", "method": "self-SR", "PSNR (dB)": "28.47", "SSIM": "0.677", "Dice": "0.885",
         "Spearman": "0.109"},
    ]  # fmt: skip
    assert found.uncertainty_rows == [
        {"compared with": "true HR (3)", "method": "U", "Spearman": "0.130", "AUROC": "0.730"}
    ]
    assert found.answer == "true HR (3): PSNR (dB) 28.47, interpolated 27.62; Dice 0.885, interpolated 0.816."
    assert list(found.pictures) == ["a_1", "b"]
    assert found.disagreeing == []


def test_cases_that_disagree_are_those_of_the_log(tmp_path):
    write(tmp_path, REPORT)
    text = log_text() + "2026-01-02 04:00:00.1: WARNING: case_2 has slices of 5 mm, the plans 4 mm \n"
    (tmp_path / "training_log_1.txt").write_text(text)
    (said,) = Stage1.read(tmp_path).disagreeing
    assert said.startswith("case_1: its pseudo-HR labels")


def test_reports_of_0_1_0_say_nothing_of_u(tmp_path):
    write(tmp_path, REPORT)
    assert Stage1.read(tmp_path).uncertainty_rows == []


def test_no_report_and_a_damaged_one(tmp_path):
    assert Stage1.read(tmp_path) is None
    write(tmp_path, {"comparisons": []})
    with pytest.raises(ValueError, match=r"self_sr_report\.json must be stage 1's report"):
        Stage1.read(tmp_path)

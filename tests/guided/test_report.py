"""What the report compares with, and where it scores."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.guided.report import (
    SOURCE,
    SYNTHESISED,
    PairedCase,
    ValidationReport,
    best_line,
    left_out,
    mean_rows,
    scored_voxels,
)

SHAPE = (3, 8, 9)


def test_the_best_line_of_a_line_is_the_truth():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(2, *SHAPE))
    truth = np.stack([3 * source[0] - source[1] + 7, 0 * source[0] + 2])
    inside = rng.random(SHAPE) > 0.5
    np.testing.assert_allclose(best_line(source, truth, inside), truth, atol=1e-5)


def test_no_other_line_is_nearer():
    rng = np.random.default_rng(0)
    source, truth = rng.normal(size=(1, *SHAPE)), rng.normal(size=(1, *SHAPE))
    inside = rng.random(SHAPE) > 0.5
    line = best_line(source, truth, inside)
    a, b = np.polyfit(source[0][inside], truth[0][inside], 1)
    np.testing.assert_allclose(line, a * source + b, rtol=1e-5, atol=1e-6)


def test_the_line_does_not_see_what_lies_outside():
    rng = np.random.default_rng(0)
    source, truth = rng.normal(size=(1, *SHAPE)), rng.normal(size=(1, *SHAPE))
    inside = np.zeros(SHAPE, bool)
    inside[:2] = True
    before = best_line(source, truth, inside)[:, :2]
    truth[:, 2] = np.nan
    np.testing.assert_array_equal(best_line(source, truth, inside)[:, :2], before)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"background": 0, "foreground": 1}, "head"),
        ({"background": 0, "tumour": 1}, "seen"),
        ({"background": 0, "a": 1, "b": 2}, "seen"),
    ],
)
def test_images_are_scored_in_the_head(names, expected):
    labels = np.zeros((1, 4, 6), np.int16)
    labels[0, :, :2] = -1  # nnU-Net's mask
    labels[0, 1, 3:] = 1
    privileged = np.zeros((1, 1, 4, 6))
    privileged[..., 1:5] = 1  # skull-stripped: its least value outside
    found = scored_voxels(labels, privileged, LabelManager(names, None))
    seen = np.zeros((4, 6), bool)
    seen[:, 2:5] = True
    np.testing.assert_array_equal(found[0], {"head": labels[0] > 0, "seen": seen}[expected])


def test_a_case_without_a_head_is_scored_as_far_as_it_is_seen():
    labels, privileged = np.zeros((1, 4, 6), np.int16), np.arange(24.0).reshape(1, 1, 4, 6)
    found = scored_voxels(labels, privileged, LabelManager({"background": 0, "foreground": 1}, None))
    assert found.sum() == 23


def test_means_leave_nan_out():
    cases = {"x": {"a": {"psnr": 1.0, "nmse": np.nan}}, "y": {"a": {"psnr": 3.0, "nmse": 2.0}}}
    assert mean_rows(cases) == {"a": {"psnr": 2.0, "nmse": 2.0}}
    assert np.isnan(mean_rows({"x": cases["x"]})["a"]["nmse"])
    assert mean_rows({}) == {}


def test_means_of_all_methods_are_of_the_same_cases():
    cases = {"x": {"a": {"psnr": np.inf}, "b": {"psnr": 1.0}}, "y": {"a": {"psnr": 3.0}, "b": {"psnr": 2.0}}}
    assert mean_rows(cases) == {"a": {"psnr": 3.0}, "b": {"psnr": 2.0}}


def test_what_means_leave_out_is_named():
    rows = {
        "constant": {"source": {"psnr": 50.0, "nmse": np.nan}, "synthesised": {"psnr": np.nan, "nmse": np.nan}},
        "usual": {"source": {"psnr": 20.0, "nmse": 0.2}, "synthesised": {"psnr": 21.0, "nmse": 0.1}},
    }
    assert left_out(rows) == {"constant": ["nmse", "psnr"]}
    assert left_out({"equal": {"source": {"psnr": np.inf, "nmse": 0.0}}}) == {"equal": ["psnr"]}


def test_the_report_of_an_empty_better_scan_has_means_and_is_json(tmp_path):
    said = []
    report = object.__new__(ValidationReport)
    report.image_range = [4.0]
    report.trainer = SimpleNamespace(
        is_ddp=False, local_rank=0, output_folder=tmp_path, print_to_log_file=lambda text, **options: said.append(text)
    )
    rows = {}
    for number, (name, size) in enumerate({"empty": 0, "usual": 1}.items()):
        rng = np.random.default_rng(number)
        source, privileged = rng.normal(size=(1, *SHAPE)), size * rng.normal(size=(1, *SHAPE))
        case = PairedCase(torch.from_numpy(source), torch.from_numpy(privileged), np.ones(SHAPE, bool), {})
        line = best_line(source, privileged, case.inside)
        rows[name] = report.scores(case, {SOURCE: line, SYNTHESISED: source})
    report.save(rows, "report.json")
    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["mean"] == content["cases"]["usual"] == rows["usual"]
    assert content["left_out"] == {"empty": ["nmse", "psnr", "ssim"]}
    assert content["cases"]["empty"][SOURCE] == {"psnr": None, "ssim": None, "nmse": None}
    assert said[0].startswith("WARNING: 1 of 2 validation cases are left out of means")

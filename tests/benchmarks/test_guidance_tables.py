"""Numbers of the tables by hand, and that page and csv hold the same ones."""

import csv
import io
import json
import re
from types import MappingProxyType

import numpy as np
import pytest

from benchmarks.guidance.benchmark import CONFIGURATION
from benchmarks.guidance.image_table import image_table, paired_difference
from benchmarks.guidance.page import new_page
from benchmarks.guidance.rows import ROWS
from benchmarks.guidance.segmentation_table import segmentation_table
from benchmarks.guidance.tables import COLUMNS, Cell, Table, as_csv, into_page
from rehrseg_nnunet.config.guidance import BLOCK
from rehrseg_nnunet.guided.networks import CHANNELS_KEY
from rehrseg_nnunet.guided.report import RECONSTRUCTED, SOURCE, SYNTHESISED

CASES = ("a", "b", "c")
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w.])")


def write(run, content):
    run.scores.parent.mkdir(parents=True, exist_ok=True)
    run.scores.write_text(json.dumps(content))
    return run


def image(psnr, features):
    return {"psnr": psnr, "ssim": 0.5, "nmse": 0.25, "feature_error": features, "guide_error": features / 2}


def write_plans(run, block):
    channels = {"source": [0], "privileged": [1]}
    configuration = {"spacing": [1, 1, 1], "batch_size": 2, "architecture": {}, BLOCK: block, CHANNELS_KEY: channels}
    run.model.mkdir(parents=True, exist_ok=True)
    (run.model / "plans.json").write_text(json.dumps({"configurations": {CONFIGURATION: configuration}}))


def write_images(run, names, start, block=MappingProxyType({})):
    write_plans(run, dict(block))
    cases = {
        case: {name: image(start + number**2 + place, 1 / start) for place, name in enumerate(names)}
        for number, case in enumerate(CASES)
    }
    return write(run, {"epochs_seconds": 7.4, "cases": cases})


@pytest.fixture
def image_runs(make_guided_run):
    return [
        write_images(make_guided_run("teacher"), (SOURCE, RECONSTRUCTED), 10),
        write_images(make_guided_run("keeper"), (SYNTHESISED,), 20, {"schedule": "one_cycle"}),
        write_images(make_guided_run("l1_unet", keeper_epochs=9), (SYNTHESISED,), 16),
        make_guided_run("keeper_width16"),  # not finished
    ]


def test_paired_differences():
    values, others = {"a": 3.0, "b": 5.0, "c": np.nan, "d": 1.0}, {"a": 1.0, "b": 2.0, "c": 0.0}
    mean, error = paired_difference(values, others)
    assert mean == pytest.approx(2.5)
    assert error == pytest.approx(np.std([2, 3], ddof=1) / np.sqrt(2))
    assert np.isnan(paired_difference({"a": 1.0}, {"a": 2.0})[1])


def test_images(image_runs):
    table = image_table(image_runs)
    assert table.n == 3
    assert list(table.rows) == [
        "source, best line",
        "reconstruction by the teacher, width 8, 100 epochs (bound)",
        "keeper, width 8, kernel 3, distillation 1, not residual, one cycle, 100 epochs",
        "plain U-Net, L1, 9 epochs",
    ]
    keeper = {
        metric: cell.markdown
        for metric, cell in table.rows[
            "keeper, width 8, kernel 3, distillation 1, not residual, one cycle, 100 epochs"
        ].items()
    }
    assert keeper["psnr"] == "21.67"
    assert keeper["psnr_minus_source"] == "+10.00 ± 0.00"
    assert keeper["psnr_minus_l1_unet"] == "+4.00 ± 0.00"
    assert keeper["feature_error_minus_l1_unet"] == "-0.012 ± 0.000"
    assert keeper["wall_s"] == "7"
    assert "psnr_minus_source" not in table.rows["source, best line"]


def segmented(run, shift):
    cases = [
        {"case": case, "metrics": {"1": {"Dice": 0.5 + shift + 0.1 * number, "HD95": 2.0, "n_ref": 1, "n_pred": 1}}}
        for number, case in enumerate(CASES)
    ]
    return write(run, {"labels": {"1": "a"}, "cases": cases})


def test_segmentations(make_guided_run):
    shifts = {"continued": (0.0, 0.02), "guided": (0.05, 0.09), "guided_randomKeeper": (0.01, 0.01)}
    runs = [segmented(make_guided_run(key, seed=s), v[s]) for key, v in shifts.items() for s in (0, 1)]
    runs.append(segmented(make_guided_run("baseline"), -0.1))
    runs += [segmented(make_guided_run("better", seed=seed), 0.21) for seed in (0, 1)]
    runs += [segmented(make_guided_run("true_guides", seed=seed), 0.012) for seed in (0, 1)]  # hardly above the rival
    table = segmentation_table(runs)
    guided = table.rows["guided, 5+3 epochs"]
    assert guided["dice"].value == pytest.approx(0.67)
    assert guided["dice_minus_rival"].value == pytest.approx(0.06)
    assert guided["dice_minus_rival"].error == pytest.approx(np.std([0.05, 0.07], ddof=1) / np.sqrt(2))
    assert guided["dice_minus_random"].value == pytest.approx(0.06)
    assert guided["share_of_better"].value == pytest.approx(0.06 / 0.2)
    assert "share_of_true_guides" not in guided
    baseline = table.rows["nnU-Net on the scan (baseline), 5 epochs"]
    assert baseline["dice_minus_rival"].value == pytest.approx(-0.11)  # of both seeds that started from it
    assert baseline["seeds"].main == "1"


def test_from_scratch_the_rival_and_the_control_are_from_scratch_too(make_guided_run):
    """Others differ by their start and by how fusion begins."""
    key = "guided_scratch_paperFusion"
    shifts = {"continued": 0.3, "guided_randomKeeper": 0.3, "in_one_go": 0.01, f"{key}_randomKeeper": 0.03, key: 0.07}
    table = segmentation_table([segmented(make_guided_run(name), shift) for name, shift in shifts.items()])
    row = table.rows["guided from scratch, fusion as in the paper, 8 epochs"]
    assert row["dice_minus_rival"].value == pytest.approx(0.06)
    assert row["dice_minus_random"].value == pytest.approx(0.04)


def test_every_row_that_a_taught_keeper_guides_has_its_control_under_the_same_plans():
    for row in ROWS.values():
        if row.trainer == "GuidedTrainer":
            control = ROWS[row.control]
            assert control.trainer == "GuidedTrainer_randomKeeper"
            assert (control.plans, control.epochs, control.start) == (row.plans, row.epochs, row.start)
            assert ROWS[row.rival].data == row.data == "source"


def test_page_and_csv_hold_the_same_numbers(image_runs, make_guidance):
    """As tests/test_results.py demands of pages that are kept."""
    table = image_table(image_runs)
    page = into_page(new_page(make_guidance(), "page"), [table])
    lines = [line for line in page.splitlines() if line.startswith("| ") and "±" in line][1:]
    printed = NUMBER.findall(" ".join(line.split("|", 2)[2] for line in lines))
    entries = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert entries
    assert {tuple(entry) for entry in entries} == {COLUMNS}
    in_csv = [e["value"].lstrip("+-") for e in entries if e["row"] in " ".join(lines)]
    assert sorted(in_csv) == sorted(printed)


def test_new_numbers_leave_the_text_of_a_page():
    def table(value):
        return Table("Synthesised images", {"psnr": "PSNR"}, "validation", 3, {"keeper": {"psnr": Cell(value, 1)}})

    other = Table("Other", {"psnr": "PSNR"}, "test", 3, {"keeper": {"psnr": Cell(9, 1)}})
    page = into_page("# Page\n\n| | |\n|---|---|\n| data | x |\n", [table(1.0), other])
    page = page.replace("## Other\n", "What it means.\n\n## Other\n\nMore.\n")
    changed = into_page(page, [table(2.0), other])
    assert changed == page.replace("| keeper | 1.0 |", "| keeper | 2.0 |")
    assert changed.count("| keeper |") == 2
    assert "| data | x |" in changed

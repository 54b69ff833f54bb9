"""Tables of whatever is finished: averages, tests, names, files."""

import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality.__main__ import main
from benchmarks.quality.rows import ROWS
from benchmarks.quality.runs import seconds_file
from benchmarks.quality.scores import scores_file
from benchmarks.quality.tables import cost_table, restoration_table, write_tables

SEEDS, FOLDS = (0, 1), (0, 1)
CASES = 8  # half of them in each fold
LABELS = {"1": "left", "2": "right"}
WAYS = ["nearest", "linear probabilities", "signed distance", "cubic logits"]
DICE, HD95 = "Dice, mean ± std over cases", "HD95 (mm), mean ± std over cases"


class Study:
    """Scores of rows, written as `score` does, and the same numbers as arrays (seed, case, label)."""

    def __init__(self, make_run, write_json):
        self.make_run, self.write_json = make_run, write_json
        self.rng = np.random.default_rng(0)
        self.values = {}
        self.runs = []

    def add(self, key, *, mean, sets=("validation",)):
        """A finished row; `mean` Dice of about so much at LR, less at HR. HD95 falls as Dice rises."""
        for dataset in sets:
            for resolution, ways in (("lr", [""]), ("hr", WAYS if ROWS[key].hr == "upsampled" else [""])):
                for way in ways:
                    noise = self.rng.uniform(-0.05, 0.05, size=(len(SEEDS), CASES, len(LABELS)))
                    self.values[key, dataset, resolution, way] = mean - 0.1 * (resolution == "hr") + noise
        for seed in SEEDS:
            for fold in FOLDS:
                run = self.make_run(key, seed=seed, fold=fold)
                self.runs.append(run)
                self.write_json(scores_file(run), self._content(key, sets, seed, fold))
        return self

    def _content(self, key, sets, seed, fold):
        content = {dataset: {"lr": {}, "hr": {}} for dataset in sets}
        for (row, dataset, resolution, way), values in self.values.items():
            if row == key:
                cases = [self._case(values[seed, case], case) for case in range(CASES) if case % len(FOLDS) == fold]
                content[dataset][resolution][way] = {"labels": LABELS, "cases": cases}
        return content

    def _case(self, values, case):
        counts = {"n_ref": 10, "n_pred": 10}
        metrics = {str(n + 1): {"Dice": dice, "HD95": 10 * (1 - dice), **counts} for n, dice in enumerate(values)}
        return {"case": f"case_{case}", "metrics": metrics}

    def dice(self, key, resolution, way="", dataset="validation"):
        return self.values[key, dataset, resolution, way]


@pytest.fixture
def study(make_run, write_json):
    made = Study(make_run, write_json)
    return made.add("baseline", mean=0.7).add("rehrseg", mean=0.74).add("continued", mean=0.8)


def cells(markdown, title):
    """A markdown table as dictionaries by the name of the row."""
    (part,) = [part for part in markdown.split("### ")[1:] if part.splitlines()[0] == title]
    lines = [line.strip()[1:-1].split("|") for line in part.splitlines() if line.startswith("|")]
    header, _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}


TITLE = "Table 3: segmentation, {} slices ({}), {} cases"
LR_TITLE, HR_TITLE = TITLE.format("thick", "LR", "validation"), TITLE.format("thin", "HR", "validation")
COMPONENTS = "Table 4: components, thick slices (LR), validation cases"


def test_means_and_deviations(study, tmp_path):
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)
    assert list(table) == ["REHRSeg", "nnU-Net", "nnU-Net continued"]  # in the table's order, not the runs'
    for key, title in (("rehrseg", "REHRSeg"), ("baseline", "nnU-Net"), ("continued", "nnU-Net continued")):
        row, values = table[title], study.dice(key, "lr")
        over_cases = values.mean(axis=(0, 2))  # every case once, with its mean over seeds
        assert row[DICE] == f"{over_cases.mean():.3f} ± {over_cases.std(ddof=1):.3f}"
        distances = 10 * (1 - over_cases)
        assert row[HD95] == f"{distances.mean():.2f} ± {distances.std(ddof=1):.2f}"
        by_run = [values[seed, fold :: len(FOLDS)].mean() for seed in SEEDS for fold in FOLDS]
        assert row["± over runs (Dice)"] == f"{np.std(by_run, ddof=1):.3f}"
        assert row["± over runs (HD95)"] == f"{10 * np.std(by_run, ddof=1):.2f}"
        assert (row["runs"], row["cases"]) == ("4", "8")
    epochs = {title: row["epochs"] for title, row in table.items()}
    assert epochs == {"REHRSeg": "10+10", "nnU-Net": "10", "nnU-Net continued": "10+10"}


def test_rows_are_tested_against_the_first(study, tmp_path):
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)
    content = json.loads((tmp_path / "tables" / "tables.json").read_text())[LR_TITLE]
    first = study.dice("rehrseg", "lr").mean(axis=(0, 2))
    for key, title, better in (("baseline", "nnU-Net", False), ("continued", "nnU-Net continued", True)):
        gain = study.dice(key, "lr").mean(axis=(0, 2)) - first
        assert (gain.mean() > 0) == better
        p = stats.wilcoxon(gain).pvalue
        # the columns: what the first row has more than this one
        assert table[title]["first minus this (Dice)"] == f"{-gain.mean():+.3f}"
        assert table[title]["first minus this (HD95)"] == f"{10 * gain.mean():+.2f}"
        assert table[title]["p (Dice)"] == f"{p:.4f}"
        assert table[title]["p (HD95)"] == f"{stats.wilcoxon(-10 * gain).pvalue:.4f}"
        # the file: this row minus the first
        test = content[title]["against_first"]["Dice"]
        assert (test["n"], test["mean_difference"]) == (CASES, pytest.approx(gain.mean()))
        assert test["p"] == pytest.approx(p)
    tested = [f"{column} ({metric})" for column in ("p", "first minus this") for metric in ("Dice", "HD95")]
    assert [table["REHRSeg"][column] for column in tested] == [""] * 4
    assert set(table["nnU-Net"]) == {
        *("", "epochs", "runs", "cases", DICE, HD95, "± over runs (Dice)", "± over runs (HD95)"),
        *tested,
    }


def test_equal_scores_are_a_difference_of_zero(study, tmp_path):
    for run in study.runs:
        if run.row.key == "continued":
            other = study.make_run("rehrseg", seed=run.seed, fold=run.fold)
            scores_file(run).write_text(scores_file(other).read_text())
    row = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)["nnU-Net continued"]
    assert abs(float(row["first minus this (Dice)"])) == 0
    assert float(row["p (Dice)"]) == 1


def test_every_way_to_hr_is_a_row(study, tmp_path):
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), HR_TITLE)
    ways = [f"{title}, {way}" for title in ("nnU-Net", "nnU-Net continued") for way in WAYS]
    assert list(table) == ["REHRSeg", *ways]
    for way in WAYS:
        values = study.dice("baseline", "hr", way).mean(axis=(0, 2))
        assert table[f"nnU-Net, {way}"][DICE] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
        p = stats.wilcoxon(study.dice("rehrseg", "hr").mean(axis=(0, 2)) - values).pvalue
        assert table[f"nnU-Net, {way}"]["p (Dice)"] == f"{p:.4f}"


def test_unfinished_runs_are_left_out(study, tmp_path):
    unfinished = [study.make_run(key) for key in ("true_hr", "pseudo_data", "smore", "self_sr")]
    more = [study.make_run("baseline", seed=2)]
    numbers = ["2", "3", "4"]
    markdown = write_tables(numbers, [*unfinished, *study.runs, *more], tmp_path / "tables")
    assert markdown == write_tables(numbers, study.runs, tmp_path / "other")
    titles = [line.removeprefix("### ") for line in markdown.splitlines() if line.startswith("### ")]
    assert LR_TITLE in titles
    assert not [title for title in titles if "test cases" in title or title.startswith(("Table 2", "Time"))]
    assert list(cells(markdown, COMPONENTS)) == ["REHRSeg", "nnU-Net continued"]


def test_without_the_first_row_nothing_is_tested(make_run, write_json, tmp_path):
    study = Study(make_run, write_json).add("baseline", mean=0.7).add("continued", mean=0.8)
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)
    assert list(table) == ["nnU-Net", "nnU-Net continued"]
    of_the_rows_alone = {"", "epochs", "runs", "cases", DICE, HD95, "± over runs (Dice)", "± over runs (HD95)"}
    assert all(set(row) == of_the_rows_alone for row in table.values())  # no column that is empty everywhere


def test_test_cases_have_tables_of_their_own(study, tmp_path):
    study.add("true_hr", mean=0.9, sets=("validation", "test"))
    markdown = write_tables(["3"], study.runs, tmp_path / "tables")
    for resolution, slices in (("lr", "thick"), ("hr", "thin")):
        table = cells(markdown, TITLE.format(slices, resolution.upper(), "test"))
        assert list(table) == [ROWS["true_hr"].title]
        values = study.dice("true_hr", resolution, dataset="test").mean(axis=(0, 2))
        assert table[ROWS["true_hr"].title][DICE] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
        assert table[ROWS["true_hr"].title]["epochs"] == "20"


def test_a_missed_structure_is_counted(study, tmp_path):
    file = scores_file(study.make_run("rehrseg"))
    content = json.loads(file.read_text())
    case = content["validation"]["lr"][""]["cases"][0]
    case["metrics"]["2"] = {"Dice": 0.0, "HD95": math.nan, "n_ref": 10, "n_pred": 0}
    file.write_text(json.dumps(content))
    write_tables(["3"], study.runs, tmp_path / "tables")
    row = json.loads((tmp_path / "tables" / "tables.json").read_text())[LR_TITLE]["REHRSeg"]
    assert row["hd95_one_empty"] == {"1": 0, "2": 1}
    assert row["over_cases"]["2"]["HD95"]["n"] == CASES  # the other seed has a distance
    assert cells((tmp_path / "tables" / "tables.md").read_text(), LR_TITLE)["REHRSeg"]["without HD95 (empty)"] == "1"


def test_the_files(study, tmp_path):
    folder = tmp_path / "tables"
    markdown = write_tables(["3"], study.runs, folder)
    assert (folder / "tables.md").read_text() == markdown
    content = json.loads((folder / "tables.json").read_text())
    assert list(content) == [line.removeprefix("### ") for line in markdown.splitlines() if line.startswith("### ")]
    row = content[LR_TITLE]["REHRSeg"]
    assert set(row) == {"epochs", "runs", "over_cases", "over_folds", "hd95_one_empty", "against_first"}
    assert row["runs"] == [f"seed {seed} fold {fold}" for seed in SEEDS for fold in FOLDS]
    assert row["epochs"] == "10+10"
    assert row["against_first"] == {}
    assert set(row["over_cases"]) == {"mean", *LABELS}
    left = study.dice("rehrseg", "lr")[:, :, 0].mean(axis=0)
    assert row["over_cases"]["1"]["Dice"]["mean"] == pytest.approx(left.mean())


def test_every_value_is_in_the_csv(study, tmp_path):
    write_tables(["3"], study.runs, tmp_path / "tables")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "scores.csv").read_text())))
    columns = ["row", "epochs", "seed", "fold", "set", "resolution", "upsampling", "case", "label", "metric", "value"]
    assert list(lines[0]) == columns
    per_way = len(SEEDS) * CASES * len(LABELS) * 2
    assert len(lines) == per_way * (2 * (1 + len(WAYS)) + 2)  # two upsampled rows, one with a head
    assert len({tuple(line.values())[:-1] for line in lines}) == len(lines)
    expected = ("continued", "10+10", "1", "1", "validation", "hr", "linear probabilities", "case_5", "right", "Dice")
    (value,) = [line["value"] for line in lines if tuple(line.values())[:-1] == expected]
    assert float(value) == study.dice("continued", "hr", "linear probabilities")[1, 5, 1]


PSNR, SSIM, RESTORED_DICE, SPEARMAN = (
    f"{metric}, mean ± std over runs" for metric in ("PSNR (dB)", "SSIM", "Dice", "Spearman of U")
)
B_SPLINE = {"psnr": 25.0, "ssim": 0.7, "dice": 0.75}


def write_report(run, write_json, method, **scores):
    """As of a restoring network, with plain interpolation beside it."""
    shift = run.fold  # every fold has cases of its own
    plain = {metric: value + shift for metric, value in B_SPLINE.items()}
    comparisons = {"B-spline + nearest": plain, "B-spline + signed distance": {**plain, "dice": 0.8}, method: scores}
    (run.folder / "checkpoint_final.pth").parent.mkdir(parents=True, exist_ok=True)
    (run.folder / "checkpoint_final.pth").touch()
    write_json(run.report, {"comparisons": {"true HR": comparisons, "simulated along y": {method: {"psnr": 99.0}}}})
    return run


def test_restoring_networks(make_run, write_json, tmp_path):
    runs = [make_run("self_sr")]  # unfinished
    for fold in FOLDS:
        smore, self_sr = make_run("smore", fold=fold), make_run("self_sr_smore", fold=fold)
        runs.append(write_report(smore, write_json, "SMORE", psnr=27.0 + fold, ssim=0.8, dice=0.85))
        runs.append(write_report(self_sr, write_json, "self-SR", psnr=29.0 - fold, ssim=0.9, dice=0.9, spearman=0.25))
    table = restoration_table("Table 2", runs)
    assert table.title == "Table 2, validation cases"
    rows = {row[""]: row for row in table.rows}
    plain = ["B-spline + nearest", "B-spline + signed distance"]
    assert list(rows) == [*plain, "SMORE", "self-SR on SMORE's cases"]
    assert rows["SMORE"][PSNR] == f"27.50 ± {np.std([27, 28], ddof=1):.2f}"
    assert rows["SMORE"][SPEARMAN] == ""
    own = rows["self-SR on SMORE's cases"]
    assert (own[PSNR], own[SSIM]) == (f"28.50 ± {np.std([28, 29], ddof=1):.2f}", "0.900 ± 0.000")
    assert own[SPEARMAN] == "0.25 ± 0.00"
    # plain interpolation stands in the reports of both rows but counts once for each run
    assert rows[plain[0]][PSNR] == f"25.50 ± {np.std([25, 26], ddof=1):.2f}"
    assert rows[plain[1]][RESTORED_DICE] == "0.800 ± 0.000"
    assert table.data[plain[0]]["psnr"]["n"] == len(FOLDS)
    markdown = write_tables(["2"], runs, tmp_path / "tables")
    shown = cells(markdown, "Table 2: super-resolution, validation cases")
    assert {name: row[PSNR] for name, row in shown.items()} == {name: row[PSNR] for name, row in rows.items()}


def test_reports_without_truth_are_no_rows(make_run, write_json):
    run = make_run("smore")
    (run.folder / "checkpoint_final.pth").parent.mkdir(parents=True, exist_ok=True)
    (run.folder / "checkpoint_final.pth").touch()
    write_json(run.report, {"comparisons": {}, "cases": {}})
    assert restoration_table("Table 2", [run]).rows == []


SECONDS = {  # wall and cpu of seed 0; those of seed 1 are twice or three times as many
    "baseline": (100, 150),
    "continued": (50, 60),
    "self_sr": (40, 60),
    "rehrseg": (110, 240),
    "smore": (20, 30),
    "self_sr_smore": (70, 90),
    "rehrseg_smore": (110, 240),
}


@pytest.fixture
def timed_runs(make_run, write_json, finish):
    runs = []
    for seed in SEEDS:
        for key, (wall, cpu) in SECONDS.items():
            run = make_run(key, seed=seed)
            finish(run)
            factor = 3 if seed and key == "baseline" else 1 + seed
            predict = {"wall": 1e6, "cpu": 1e6}  # does not count
            write_json(
                seconds_file(run), {"train": {"wall": wall * factor, "cpu": cpu * factor}, "predict_lr": predict}
            )
            runs.append(run)
    return runs


def test_cost(timed_runs):
    table = cost_table(timed_runs)
    pipeline = "SMORETrainer + SelfSRTrainer + REHRSegTrainer, over nnU-Net"
    alone, both = table.data[pipeline], table.data[f"{pipeline} + nnU-Net continued"]
    ratios = {"wall": [200 / 100, 400 / 300], "cpu": [360 / 150, 720 / 450]}
    for clock, expected in ratios.items():
        assert alone[clock]["mean"] == pytest.approx(np.mean(expected))
        assert alone[clock]["std"] == pytest.approx(np.std(expected, ddof=1))
    assert both["wall"]["mean"] == pytest.approx((200 / 150 + 400 / 400) / 2)
    assert [row["wall"] for row in table.rows] == ["1.25 ± 0.35", "0.88 ± 0.18", "1.67 ± 0.47", "1.17 ± 0.24"]
    assert table.rows[0]["training, export and validation"] == "SelfSRTrainer + REHRSegTrainer, over nnU-Net"


def test_cost_is_of_runs_whose_trainings_are_all_finished(timed_runs):
    for run in timed_runs:
        if (run.row.key, run.seed) == ("self_sr", 1):
            run.report.unlink()
        if run.row.key == "continued":
            seconds_file(run).unlink()
    table = cost_table(timed_runs)
    assert [row["wall"] for row in table.rows] == ["1.50", "1.67 ± 0.47"]
    assert cost_table(timed_runs[:3]).rows == []


def test_a_training_of_which_an_attempt_was_killed_has_no_cost(timed_runs, write_json):
    for run in timed_runs:
        if (run.row.key, run.seed) == ("smore", 1):
            seconds = json.loads(seconds_file(run).read_text())
            write_json(seconds_file(run), {**seconds, "train": {**seconds["train"], "incomplete": True}})
    assert [row["wall"] for row in cost_table(timed_runs).rows] == ["1.25 ± 0.35", "0.88 ± 0.18", "2.00", "1.33"]


def test_the_report_of_a_work_folder(study, make_benchmark, write_source, capsys):
    benchmark = make_benchmark()
    write_source(benchmark.source)
    options = ["--source", str(benchmark.source), "--work", str(benchmark.work), "--report"]
    options += ["--cases", "5", "--test-cases", "2", "--folds", "0", "1", "--seeds", "0", "1", "--tables", "3"]
    with pytest.raises(SystemExit, match=r"^error: --work \S+ holds no benchmark, so there is nothing to report$"):
        main(options)
    assert not (benchmark.work / "benchmark.json").exists()
    benchmark.remember()
    main(options)
    printed = capsys.readouterr().out
    markdown = (benchmark.work / "tables" / "tables.md").read_text()
    assert markdown in printed
    assert list(cells(markdown, LR_TITLE)) == ["REHRSeg", "nnU-Net", "nnU-Net continued"]
    assert "r = 4 along z, preset cpu, " in printed
    with pytest.raises(SystemExit, match=r"^error: --work \S+ was made with factor 4, got 2; take another$"):
        main([*options, "--factor", "2"])


def test_only_runs_that_both_have_are_compared(make_run, write_json, tmp_path):
    study = Study(make_run, write_json).add("baseline", mean=0.7).add("rehrseg", mean=0.74)
    alone = study.make_run("baseline", seed=SEEDS[-1], fold=FOLDS[-1])
    scores_file(alone).unlink()
    row = json.loads(write_and_read(study.runs, tmp_path))[LR_TITLE]["nnU-Net"]
    common = row["runs"]
    assert f"seed {SEEDS[-1]} fold {FOLDS[-1]}" not in common
    assert row["against_first"]["Dice"]["runs"] == common
    # cases of the run that is missing have only the other seeds' scores, for both
    kept = np.array([[seed != SEEDS[-1] or case % len(FOLDS) != FOLDS[-1] for case in range(CASES)] for seed in SEEDS])
    scores = (study.dice(key, "lr").mean(axis=2) for key in ("baseline", "rehrseg"))
    baseline, rehrseg = (np.nanmean(np.where(kept, values, np.nan), axis=0) for values in scores)
    assert row["against_first"]["Dice"]["mean_difference"] == pytest.approx((baseline - rehrseg).mean())


def write_and_read(runs, folder):
    write_tables(["3"], runs, folder)
    return (folder / "tables.json").read_text()

"""Tables of whatever is finished: averages, tests, names, files."""

import csv
import io
import json

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality.__main__ import main
from benchmarks.quality.rows import ROWS
from benchmarks.quality.runs import seconds_file
from benchmarks.quality.scores import scores_file
from benchmarks.quality.tables import COMPARED, restoration_table, write_tables
from rehrseg_nnunet.evaluation.summary import SEGMENTATION_METRICS, mean_interval

SEEDS, FOLDS = (0, 1), (0, 1)
CASES = 8  # half of them in each fold
LABELS = {"1": "left", "2": "right"}
WAYS = ["nearest", "linear probabilities", "signed distance", "cubic logits"]
DICE, HD95 = "Dice", "HD95 (mm)"
ALONE = {"", "epochs", "runs", "cases", DICE, HD95}
OVER_RUNS = {metric: f"minus first, {title} ± SE over runs" for metric, title in (("Dice", DICE), ("HD95", HD95))}
OVER_CASES = {metric: f"95 % over cases ({metric})" for metric in COMPARED}
P = {metric: f"p, Holm ({metric})" for metric in COMPARED}


class Study:
    """Scores of rows, written as `score` does, and the same numbers as arrays (seed, case, label)."""

    def __init__(self, make_run, write_json):
        self.make_run, self.write_json = make_run, write_json
        self.rng = np.random.default_rng(0)
        self.values = {}
        self.runs = []

    def add(self, key, *, mean, sets=("validation",), epochs=10):
        """A finished row; `mean` Dice of about so much at LR, less at HR. HD95 falls as Dice rises."""
        for dataset in sets:
            for resolution, ways in (("lr", [""]), ("hr", WAYS if ROWS[key].hr == "upsampled" else [""])):
                for way in ways:
                    noise = self.rng.uniform(-0.05, 0.05, size=(len(SEEDS), CASES, len(LABELS)))
                    self.values[key, dataset, resolution, way] = mean - 0.1 * (resolution == "hr") + noise
        for seed in SEEDS:
            for fold in FOLDS:
                run = self.make_run(key, seed=seed, fold=fold, epochs=epochs)
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
        assert (row["runs"], row["cases"]) == ("4", "8")
    epochs = {title: row["epochs"] for title, row in table.items()}
    assert epochs == {"REHRSeg": "10+10", "nnU-Net": "10", "nnU-Net continued": "10+10"}


def by_run(values):
    """Mean of each run, over its cases and labels."""
    return np.array([values[seed, fold :: len(FOLDS)].mean() for seed in SEEDS for fold in FOLDS])


def test_rows_are_compared_with_the_first_over_runs_and_over_cases(study, tmp_path):
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)
    content = json.loads((tmp_path / "tables" / "tables.json").read_text())[LR_TITLE]
    gains = {key: study.dice(key, "lr") - study.dice("rehrseg", "lr") for key in ("baseline", "continued")}
    p_values = {key: stats.wilcoxon(gain.mean(axis=(0, 2))).pvalue for key, gain in gains.items()}
    lower, higher = sorted(p_values, key=p_values.__getitem__)
    corrected = {lower: min(1, 2 * p_values[lower])}
    corrected[higher] = max(p_values[higher], corrected[lower])
    for key, title in (("baseline", "nnU-Net"), ("continued", "nnU-Net continued")):
        runs, cases = by_run(gains[key]), gains[key].mean(axis=(0, 2))
        error = runs.std(ddof=1) / np.sqrt(4)
        assert table[title][OVER_RUNS["Dice"]] == f"{runs.mean():+.3f} ± {error:.3f}"
        assert table[title][OVER_RUNS["HD95"]] == f"{-10 * runs.mean():+.2f} ± {10 * error:.2f}"
        low, high = mean_interval(cases)
        assert low < cases.mean() < high
        assert table[title][OVER_CASES["Dice"]] == f"{low:+.3f} to {high:+.3f}"
        assert table[title][P["Dice"]] == f"{corrected[key]:.4f}"
        difference = content[f"{title}, {table[title]['epochs']}"]["minus_first"]["Dice"]
        assert difference["over_runs"] == {
            "n": 4,
            "mean": pytest.approx(runs.mean()),
            "standard_error": pytest.approx(error),
        }
        assert difference["over_cases"]["p"] == pytest.approx(p_values[key])
        assert difference["over_cases"]["n"] == CASES
    assert not any(table["REHRSeg"][column] for columns in (OVER_RUNS, OVER_CASES, P) for column in columns.values())
    assert set(table["nnU-Net"]) == {*ALONE, *OVER_RUNS.values(), *OVER_CASES.values(), *P.values()}


def test_methods_are_compared_with_the_first_of_their_length(make_run, write_json, tmp_path):
    study = Study(make_run, write_json)
    study.add("baseline", mean=0.6)
    for epochs, means in ((5, (0.7, 0.72)), (20, (0.8, 0.79))):
        for key, mean in zip(("rehrseg", "continued"), means, strict=True):
            study.add(key, mean=mean, epochs=epochs)
    write_tables(["3"], study.runs, tmp_path)
    content = json.loads((tmp_path / "tables.json").read_text())[LR_TITLE]
    assert list(content) == [
        "REHRSeg, 10+5",
        "REHRSeg, 10+20",
        "nnU-Net, 10",
        "nnU-Net continued, 10+5",
        "nnU-Net continued, 10+20",
    ]
    means = {name: row["over_cases"]["mean"]["Dice"]["mean"] for name, row in content.items()}
    for name, first in (("nnU-Net continued, 10+5", "10+5"), ("nnU-Net continued, 10+20", "10+20")):
        gain = content[name]["minus_first"]["Dice"]["over_runs"]["mean"]
        assert gain == pytest.approx(means[name] - means[f"REHRSeg, {first}"])


def test_equal_scores_are_a_difference_of_zero(study, tmp_path):
    for run in study.runs:
        if run.row.key == "continued":
            other = study.make_run("rehrseg", seed=run.seed, fold=run.fold)
            scores_file(run).write_text(scores_file(other).read_text())
    row = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)["nnU-Net continued"]
    assert row[OVER_RUNS["Dice"]] == "+0.000 ± 0.000"
    assert row[OVER_CASES["Dice"]] == "+0.000 to +0.000"
    assert float(row[P["Dice"]]) == 1


def test_every_way_to_hr_is_a_row(study, tmp_path):
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), HR_TITLE)
    ways = [f"{title}, {way}" for title in ("nnU-Net", "nnU-Net continued") for way in WAYS]
    assert list(table) == ["REHRSeg", *ways]
    for way in WAYS:
        values = study.dice("baseline", "hr", way).mean(axis=(0, 2))
        assert table[f"nnU-Net, {way}"][DICE] == f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"
        gain = by_run(study.dice("baseline", "hr", way) - study.dice("rehrseg", "hr")).mean()
        assert table[f"nnU-Net, {way}"][OVER_RUNS["Dice"]].startswith(f"{gain:+.3f} ± ")


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


def test_without_the_first_row_nothing_is_compared(make_run, write_json, tmp_path):
    study = Study(make_run, write_json).add("baseline", mean=0.7).add("continued", mean=0.8)
    table = cells(write_tables(["3"], study.runs, tmp_path / "tables"), LR_TITLE)
    assert list(table) == ["nnU-Net", "nnU-Net continued"]
    assert all(set(row) == ALONE for row in table.values())  # no column that is empty everywhere


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
    case["metrics"]["2"] = {"Dice": 0.0, "HD95": 70.0, "n_ref": 10, "n_pred": 0}
    file.write_text(json.dumps(content))
    write_tables(["3"], study.runs, tmp_path / "tables")
    row = json.loads((tmp_path / "tables" / "tables.json").read_text())[LR_TITLE]["REHRSeg, 10+10"]
    assert row["one_empty"] == {"1": 0, "2": 1}
    assert row["over_cases"]["2"]["HD95"]["n"] == CASES
    assert row["over_cases"]["2"]["HD95"]["mean"] > 70 / len(SEEDS) / CASES
    assert cells((tmp_path / "tables" / "tables.md").read_text(), LR_TITLE)["REHRSeg"]["missed or made up"] == "1"


def test_the_files(study, tmp_path):
    folder = tmp_path / "tables"
    markdown = write_tables(["3"], study.runs, folder)
    assert (folder / "tables.md").read_text() == markdown
    content = json.loads((folder / "tables.json").read_text())
    assert list(content) == [line.removeprefix("### ") for line in markdown.splitlines() if line.startswith("### ")]
    row = content[LR_TITLE]["REHRSeg, 10+10"]
    assert set(row) == {"epochs", "runs", "over_cases", "over_folds", "one_empty", "minus_first", "cpu_seconds"}
    assert row["runs"] == [f"seed {seed} fold {fold}" for seed in SEEDS for fold in FOLDS]
    assert row["epochs"] == "10+10"
    assert row["minus_first"] == {}
    assert set(row["over_cases"]) == {"mean", *LABELS}
    left = study.dice("rehrseg", "lr")[:, :, 0].mean(axis=0)
    assert row["over_cases"]["1"]["Dice"]["mean"] == pytest.approx(left.mean())


def test_every_value_is_in_the_csv(study, tmp_path):
    write_tables(["3"], study.runs, tmp_path / "tables")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "tables" / "scores.csv").read_text())))
    columns = ["row", "epochs", "seed", "fold", "set", "resolution", "upsampling", "case", "label", "metric", "value"]
    assert list(lines[0]) == columns
    per_way = len(SEEDS) * CASES * len(LABELS) * len(SEGMENTATION_METRICS)
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


SECONDS = {"baseline": 100.0, "self_sr": 60.0, "rehrseg": 40.0, "continued": 30.0}  # of 5 epochs, or a stage's own


@pytest.fixture
def timed(make_run, write_json, finish):
    """REHRSeg after 5 epochs, its rival after 5 to 40, and what their trainings took; seed 1 takes twice as long."""
    study = Study(make_run, write_json)
    study.add("baseline", mean=0.6).add("rehrseg", mean=0.8, epochs=5)
    for epochs in (5, 20, 40):
        study.add("continued", mean=0.7 + epochs / 1000, epochs=epochs)
    runs = [*study.runs, *(make_run("self_sr", seed=seed, fold=fold) for seed in SEEDS for fold in FOLDS)]
    for run in runs:
        finish(run)
        cpu = SECONDS[run.row.key] * (run.epochs / 5 if run.row.key == "continued" else 1) * (1 + run.seed)
        write_json(seconds_file(run), {"train": {"wall": 1.0, "cpu": cpu}, "predict_lr": {"wall": 1e6, "cpu": 1e6}})
    study.runs = runs
    return study


def test_all_that_a_row_builds_on_counts_as_its_time(timed, tmp_path):
    table = cells(write_tables(["3"], timed.runs, tmp_path), LR_TITLE)
    time = "CPU time of all training (s)"
    deviation = np.std([1, 1, 2, 2], ddof=1)
    assert table["nnU-Net"][time] == f"150 ± {100 * deviation:.0f}"
    assert table["REHRSeg"][time] == f"300 ± {200 * deviation:.0f}"


def test_a_time_that_was_not_measured_is_left_open(timed, tmp_path):
    for run in timed.runs:
        if run.row.key == "self_sr":
            seconds_file(run).unlink()
    table = cells(write_tables(["3"], timed.runs, tmp_path), LR_TITLE)
    assert table["REHRSeg"]["CPU time of all training (s)"] == ""
    assert table["nnU-Net"]["CPU time of all training (s)"] != ""


def test_at_equal_time_a_rival_has_its_shortest_length_that_took_as_long(timed, tmp_path):
    """REHRSeg took 200 s, its rival 130, 220 and 340 s: the second."""
    title = f"{LR_TITLE}, at equal CPU time"
    table = cells(write_tables(["3"], timed.runs, tmp_path), title)
    (row,) = table.values()
    assert (row[""], row["against"], row["runs"]) == ("REHRSeg, 10+5", "nnU-Net continued, 10+20", "4")
    assert row["CPU time (s)"] == "300 / 330"
    content = json.loads((tmp_path / "tables.json").read_text())
    means = {name: method["over_cases"]["mean"]["Dice"]["mean"] for name, method in content[LR_TITLE].items()}
    (pair,) = content[title].values()
    gain = means["REHRSeg, 10+5"] - means["nnU-Net continued, 10+20"]
    assert pair["differences"]["Dice"]["mean"] == pytest.approx(gain)
    assert row["Dice, first minus this ± SE over runs"].startswith(f"{gain:+.3f} ± ")


def test_times_of_single_trainings(timed, tmp_path):
    title = "Time of single trainings"
    write_tables(["3"], timed.runs, tmp_path)
    content = json.loads((tmp_path / "tables.json").read_text())[title]
    assert content["nnU-Net continued, 10+20"]["cpu"]["mean"] == pytest.approx(30 * 4 * 1.5)
    assert content["self-SR, "]["cpu"]["n"] == 4
    unfinished = [run for run in timed.runs if run.row.key == "baseline"]
    for run in unfinished:
        run.report.unlink()
    write_tables(["3"], timed.runs, tmp_path)
    assert "nnU-Net, 10" not in json.loads((tmp_path / "tables.json").read_text())[title]


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
    row = json.loads(write_and_read(study.runs, tmp_path))[LR_TITLE]["nnU-Net, 10"]
    common = row["runs"]
    assert f"seed {SEEDS[-1]} fold {FOLDS[-1]}" not in common
    assert row["minus_first"]["Dice"]["over_cases"]["runs"] == common
    # cases of the run that is missing have only the other seeds' scores, for both
    kept = np.array([[seed != SEEDS[-1] or case % len(FOLDS) != FOLDS[-1] for case in range(CASES)] for seed in SEEDS])
    scores = (study.dice(key, "lr").mean(axis=2) for key in ("baseline", "rehrseg"))
    baseline, rehrseg = (np.nanmean(np.where(kept, values, np.nan), axis=0) for values in scores)
    assert row["minus_first"]["Dice"]["over_cases"]["mean_difference"] == pytest.approx((baseline - rehrseg).mean())


def write_and_read(runs, folder):
    write_tables(["3"], runs, folder)
    return (folder / "tables.json").read_text()

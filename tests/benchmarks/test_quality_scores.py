"""Scores of a run's validation and test cases at LR and HR, computed once."""

import json
import shutil
from itertools import combinations

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from benchmarks.quality import scores
from benchmarks.quality.runs import scores_file
from benchmarks.quality.scores import ALL_PHASES, FILLED, UNBIASED, read_scores, score
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels

FACTOR = 4
LR, HR = (6, 10, 10), (24, 10, 10)
CASES = {"validation": ["case_0", "case_1"], "test": ["case_8"]}
SHIFTS = {"case_0": 0.0, "case_1": 0.5, "case_2": 0.0, "case_8": -0.5}
WAYS = ["nearest", "linear probabilities", "signed distance", "cubic logits"]


def halves(shape, shift=0.0, width=12):
    """A ball around the same physical point on either grid, cut into two labels."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    z = (z + 0.5) * 12 / shape[0]
    ball = (z - 6) ** 2 + (y - 4.5 - shift) ** 2 + (x - 4.5) ** 2 <= width
    return np.where(ball, np.where(x > 4, 2, 1), 0).astype(np.uint8)


def dice(truth, prediction, label):
    one, other = truth == label, prediction == label
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.fixture
def make(make_run, write_volume, write_json):
    """A run with reference labels of three training cases, two of them of this fold, and a test case."""

    def write(file, labels):
        spacing = 12 / labels.shape[0]
        write_volume(file, labels, spacing=(1.0, 1.0, spacing), origin=(3.0, -1.0, spacing / 2))

    def make(key):
        run = make_run(key, factor=FACTOR)
        raw = run.benchmark.folder("raw", run.benchmark.dataset("thick"))
        for case, shift in SHIFTS.items():
            part = "Ts" if case in CASES["test"] else "Tr"
            write(raw / f"labels{part}" / f"{case}.nii.gz", halves(LR, shift))
            write(raw / f"labels{part}HR" / f"{case}.nii.gz", halves(HR, shift))
        labels = {"background": 0, "left": 1, "right": 2}
        write_json(raw / "dataset.json", {"labels": labels, "channel_names": {"0": "MRI"}, "file_ending": ".nii.gz"})
        plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}
        write_json(run.folder.parent / "plans.json", plans)
        return run, write

    return make


def folders_of(run):
    return {
        "validation": {"lr": run.folder / "validation", "hr": run.folder / "validation_hr"},
        "test": {"lr": run.predictions / "lr", "hr": run.predictions / "hr"},
    }


def by_case(scored):
    return {case["case"]: case["metrics"] for case in scored["cases"]}


def check(scored, name, predictions, shape):
    """Every case's Dice and voxel counts, label by label."""
    assert scored["labels"] == {"1": "left", "2": "right"}
    assert list(by_case(scored)) == CASES[name]
    for case, metrics in by_case(scored).items():
        truth = halves(shape, SHIFTS[case])
        for label in (1, 2):
            found = metrics[str(label)]
            assert found["Dice"] == pytest.approx(dice(truth, predictions[case], label))
            assert (found["n_ref"], found["n_pred"]) == ((truth == label).sum(), (predictions[case] == label).sum())
            assert (found["HD95"] > 0) == (found["Dice"] < 1)


@pytest.fixture
def head_run(make):
    run, write = make("rehrseg")
    for name, folders in folders_of(run).items():
        for case in CASES[name]:
            write(folders["lr"] / f"{case}.nii.gz", halves(LR, 1))
            write(folders["hr"] / f"{case}.nii.gz", halves(HR, 1.5))
    return run


def test_a_row_with_an_hr_head(head_run):
    score(head_run)
    result = read_scores(head_run)
    assert list(result) == ["validation", "test"]
    for name, resolutions in result.items():
        assert list(resolutions) == ["lr", "hr"]
        assert list(resolutions["lr"]) == list(resolutions["hr"]) == [""]
        check(resolutions["lr"][""], name, dict.fromkeys(CASES[name], halves(LR, 1)), LR)
        check(resolutions["hr"][""], name, dict.fromkeys(CASES[name], halves(HR, 1.5)), HR)


def test_scores_are_computed_once(head_run):
    assert read_scores(head_run) is None
    score(head_run)
    before = scores_file(head_run).read_bytes()
    shutil.rmtree(head_run.folder)
    shutil.rmtree(head_run.predictions)
    score(head_run)
    assert scores_file(head_run).read_bytes() == before
    assert read_scores(head_run) == json.loads(before)


def test_without_a_test_set_there_is_no_score_of_one(head_run):
    shutil.rmtree(head_run.predictions)
    score(head_run)
    assert list(read_scores(head_run)) == ["validation"]


def naive_linear(probabilities):
    """Class probabilities (classes, D, H, W) on a straight line between slice centres, and on beyond the outer two."""
    classes, depth, *plane = probabilities.shape
    result = np.zeros((classes, depth * FACTOR, *plane))
    for slice_ in range(depth * FACTOR):
        position = (slice_ + 0.5) / FACTOR - 0.5
        low = min(max(int(np.floor(position)), 0), depth - 2)
        share = position - low
        result[:, slice_] = (1 - share) * probabilities[:, low] + share * probabilities[:, low + 1]
    return result.argmax(axis=0)


def naive_cubic_logits(probabilities):
    """Of the natural cubic spline through the slices' log-probabilities, constant beyond these, the largest."""
    depth = probabilities.shape[1]
    spline = CubicSpline(np.arange(depth), np.log(np.maximum(probabilities, 1e-5)), axis=1, bc_type="natural")
    position = (np.arange(depth * FACTOR) + 0.5) / FACTOR - 0.5
    return spline(position.clip(0, depth - 1)).argmax(axis=0)


def repeat_slices(cases, factor, axis):
    """Stands for Fill between slices, which not every machine has."""
    return {case: labels.repeat(factor, axis=axis).astype(np.int16) for case, labels in cases.items()}


@pytest.fixture
def upsampled_run(make, monkeypatch):
    """The baseline, its predictions' probabilities by case, and its thin-slice predictions; nearest for filling."""
    run, write = make("baseline")

    monkeypatch.setattr(scores, "fill_cases", repeat_slices)
    rng = np.random.default_rng(3)
    probabilities = {}
    for name, folders in folders_of(run).items():
        for case in CASES[name]:
            one_hot = np.stack([halves(LR, 1) == label for label in range(3)])
            soft = (one_hot + rng.uniform(0, 1.2, size=one_hot.shape)).astype(np.float32)
            probabilities[case] = soft / soft.sum(axis=0)
            write(folders["lr"] / f"{case}.nii.gz", probabilities[case].argmax(axis=0).astype(np.uint8))
            np.savez_compressed(folders["lr"] / f"{case}.npz", probabilities=probabilities[case])
    for name, folder in (("validation", "validation_hr"), ("test", "hr")):
        for case in CASES[name]:
            write(run.predictions / folder / f"{case}.nii.gz", halves(HR, 1))
    return run, probabilities


def test_a_row_whose_labels_are_upsampled(upsampled_run):
    run, probabilities = upsampled_run
    score(run)
    labels = {case: values.argmax(axis=0).astype(np.int16) for case, values in probabilities.items()}
    spacing = (2.0, 1.0, 1.0)
    expected = {
        "nearest": {case: values.repeat(FACTOR, axis=0) for case, values in labels.items()},
        "linear probabilities": {case: naive_linear(values) for case, values in probabilities.items()},
        "signed distance": {
            case: interpolate_labels(values, FACTOR, 0, spacing_mm=spacing) for case, values in labels.items()
        },
        "cubic logits": {case: naive_cubic_logits(values) for case, values in probabilities.items()},
    }
    for name, resolutions in read_scores(run).items():
        check(resolutions["lr"][""], name, labels, LR)
        assert list(resolutions["hr"]) == [*WAYS, FILLED, ALL_PHASES]
        check(resolutions["hr"][FILLED], name, expected["nearest"], HR)
        for way in WAYS:
            check(resolutions["hr"][way], name, expected[way], HR)
        ways = [by_case(resolutions["hr"][way]) for way in WAYS]
        assert all(one != other for one, other in combinations(ways, 2))
    check(read_scores(run)["test"]["hr"][ALL_PHASES], "test", dict.fromkeys(CASES["test"], halves(HR, 1)), HR)


@pytest.mark.parametrize("way", ["cubic logits", FILLED, ALL_PHASES])
def test_a_way_that_an_earlier_version_did_not_know_is_scored_later(upsampled_run, write_json, way):
    run, _ = upsampled_run
    score(run)
    complete = read_scores(run)
    fewer = read_scores(run)
    del fewer["test"]["hr"][way]
    write_json(scores_file(run), fewer)
    score(run)
    assert read_scores(run) == complete


def test_a_metric_that_an_earlier_version_did_not_know_is_scored_later(upsampled_run, write_json):
    run, _ = upsampled_run
    score(run)
    complete, fewer = read_scores(run), read_scores(run)
    for case in fewer["validation"]["hr"]["nearest"]["cases"]:
        for metrics in case["metrics"].values():
            del metrics["NSD"]
    write_json(scores_file(run), fewer)
    score(run)
    assert read_scores(run) == complete


@pytest.mark.parametrize(("key", "best"), [("baseline", ALL_PHASES), ("rehrseg", ""), ("true_hr", "")])
def test_offsets_are_chosen_on_validation_cases_and_hold_for_the_test_set(make, monkeypatch, key, best):
    """Probabilities that say too little by one factor everywhere: the offsets give the validation cases' volumes."""
    run, write = make(key)
    monkeypatch.setattr(scores, "fill_cases", repeat_slices)
    rng = np.random.default_rng(1)
    validation = run.folder / "validation" if key == "true_hr" else run.predictions / "validation_hr"
    for name, folder in (("validation", validation), ("test", run.predictions / "hr")):
        for case in CASES[name]:
            one_hot = np.stack([halves(HR, SHIFTS[case]) == label for label in range(3)])
            logits = 3 * one_hot + rng.normal(size=one_hot.shape) + np.array([2.0, 0, 0]).reshape(3, 1, 1, 1)
            probabilities = np.exp(logits) / np.exp(logits).sum(axis=0)
            write(folder / f"{case}.nii.gz", probabilities.argmax(axis=0).astype(np.uint8))
            np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities.astype(np.float32))
            if key != "true_hr":
                thick = folders_of(run)[name]["lr"]
                write(thick / f"{case}.nii.gz", halves(LR, 0))
                np.savez_compressed(thick / f"{case}.npz", probabilities=np.full((3, *LR), 1 / 3, np.float32))
            if key == "rehrseg" and name == "validation":
                write(run.folder / "validation_hr" / f"{case}.nii.gz", halves(HR, 0))
    score(run)
    way = ", ".join(filter(None, [best, UNBIASED]))
    result = read_scores(run)
    predicted = {name: by_case(result[name]["hr"][way]) for name in CASES}
    for label in ("1", "2"):
        thick = sum((halves(LR, SHIFTS[case]) == int(label)).sum() for case in CASES["validation"])
        found = sum(metrics[label]["n_pred"] for metrics in predicted["validation"].values())
        assert found == pytest.approx(FACTOR * thick, abs=2)
        before, after = (by_case(result["test"]["hr"][w])["case_8"][label]["Dice"] for w in (best, way))
        assert after > before + 0.05


def test_without_probabilities_the_remedy_is_named_and_nothing_is_written(upsampled_run):
    run, _ = upsampled_run
    (run.folder / "validation" / "case_1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case_1\.npz is missing: predict with probabilities"):
        score(run)
    assert read_scores(run) is None


@pytest.fixture
def thin_run(make):
    """A row that is trained on thin slices, so that its validation is at HR; its probabilities by case."""
    run, write = make("true_hr")
    rng, probabilities = np.random.default_rng(2), {}
    for name, folder in {"validation": run.folder / "validation", "test": run.predictions / "hr"}.items():
        for case in CASES[name]:
            soft = np.stack([halves(HR, 1) == label for label in range(3)]) + rng.uniform(0, 1.2, size=(3, *HR))
            probabilities[case] = (soft / soft.sum(axis=0)).astype(np.float32)
            write(folder / f"{case}.nii.gz", probabilities[case].argmax(axis=0).astype(np.uint8))
            np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities[case])
    return run, probabilities


def at_slice_centres(probabilities):
    """Of four thin slices what the inner two say together."""
    return (probabilities[:, 1::FACTOR] + probabilities[:, 2::FACTOR]).argmax(axis=0)


def test_a_row_on_thin_slices(thin_run):
    run, probabilities = thin_run
    score(run)
    for name, resolutions in read_scores(run).items():
        check(resolutions["hr"][""], name, {case: probabilities[case].argmax(axis=0) for case in CASES[name]}, HR)
        check(resolutions["lr"][""], name, {case: at_slice_centres(probabilities[case]) for case in CASES[name]}, LR)


def test_interrupted_scoring_is_repeated_on_all_cases(thin_run, monkeypatch):
    (thin_run, _), decide = thin_run, scores.decide_at_centres

    def fail(source, target, **options):
        decide(source, target, **options)
        (target / "case_1.nii.gz").unlink()
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(scores, "decide_at_centres", fail)
        with pytest.raises(OSError, match="disk full"):
            score(thin_run)
    score(thin_run)
    assert list(by_case(read_scores(thin_run)["validation"]["lr"][""])) == CASES["validation"]

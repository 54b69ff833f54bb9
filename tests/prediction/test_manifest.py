import csv
import json
from pathlib import Path

import pytest
import torch

from rehrseg_nnunet.prediction.inputs import Failure
from rehrseg_nnunet.prediction.manifest import RunRecord, device_name, model_hash, without_folders

ABOUT = {"model": {"sha256": "x"}, "device": "cpu"}


def record(folder, *, part=(0, 1), keep=False, names=(), unnamed=()):
    made = RunRecord(folder, part=part, about=ABOUT, keep=keep, unnamed=unnamed)
    made.names = list(names)
    return made


def saved(folder, name="prediction.json"):
    return json.loads((folder / name).read_text())


@pytest.fixture
def results(tmp_path):
    for name in ("a.nii.gz", "a.npz", "a_b.nii.gz", "dataset.json", "a_hr_left.stl", "other.nii.gz"):
        (tmp_path / name).touch()
    return tmp_path


def test_files_belong_to_the_case_with_the_longest_name(results):
    run = record(results, names=["a", "a_b", "c"])
    run.took("a", 1.23456)
    run.save(finished=True)
    cases = saved(results)["cases"]
    assert cases == {
        "a": {"files": ["a.nii.gz", "a.npz", "a_hr_left.stl"], "seconds": 1.235},
        "a_b": {"files": ["a_b.nii.gz"], "seconds": None},
    }


def test_says_what_the_results_were_made_with(results):
    record(results).save(finished=False)
    content = saved(results)
    assert content["model"] == {"sha256": "x"}
    assert content["versions"]["torch"] == torch.__version__.split("+")[0] or content["versions"]["torch"]
    assert {"rehrseg-nnunet", "nnunetv2", "Python"} <= set(content["versions"])
    assert (content["finished"], content["part"]) == (False, {"id": 0, "of": 1})


def test_failures_have_no_folders(results, tmp_path):
    scan = tmp_path / "my scans" / "c_0000.nii.gz"
    run = record(results, names=["a", "c"])
    run.fail(Failure("c", (scan,), f"{scan} must be\na whole file, see /home/ada/note.txt"))
    run.save(finished=True)
    reason = "c_0000.nii.gz must be a whole file, see note.txt"
    with (results / "failures.csv").open(newline="") as stream:
        assert list(csv.reader(stream)) == [["case", "file", "reason"], ["c", "c_0000.nii.gz", reason]]
    assert saved(results)["failures"] == {"c": reason}
    assert "ada" not in (results / "prediction.json").read_text()
    assert str(tmp_path) not in (results / "prediction.json").read_text()


def test_failures_do_not_name_folders_of_grids(results, tmp_path, monkeypatch):
    """Neither as the user named them, with spaces or relative, nor in full."""
    monkeypatch.chdir(tmp_path)
    grids = Path("ada lovelace", "my grids")
    run = record(results, names=["a"], unnamed=[grids])
    run.fail(Failure("a", (), f"{grids}/a.nii.gz must be whole: {tmp_path}/{grids}/a.nii.gz is not"))
    run.save(finished=True)
    assert saved(results)["failures"] == {"a": "a.nii.gz must be whole: a.nii.gz is not"}


def test_a_later_run_keeps_times_and_forgets_failures(results):
    run = record(results, names=["a", "a_b"])
    run.took("a", 5.0)
    run.fail(Failure("a_b", (), "x"))
    run.save(finished=True)
    again = record(results, keep=True, names=["a", "a_b"])
    again.took("a_b", 2.0)
    again.save(finished=True)
    assert {name: case["seconds"] for name, case in saved(results)["cases"].items()} == {"a": 5.0, "a_b": 2.0}
    assert not (results / "failures.csv").exists()
    record(results, names=["a"]).save(finished=True)
    assert saved(results)["cases"]["a"]["seconds"] is None


@pytest.mark.parametrize("content", ["", "[]", '{"cases": 3}', '{"cases": {"a": {}}}'])
def test_another_files_content_is_no_earlier_run(results, content):
    (results / "prediction.json").write_text(content)
    record(results, keep=True, names=["a"]).save(finished=True)
    assert saved(results)["cases"]["a"]["seconds"] is None


def test_parts_have_files_of_their_own(results):
    for part, name in enumerate(("a", "a_b")):
        run = record(results, part=(part, 2), names=[name])
        run.fail(Failure(name, (), "x"))
        run.save(finished=True)
    files = {path.name for path in results.iterdir()}
    assert {
        f"{kind}_part{part}of2.{end}" for part in (0, 1) for kind, end in (("prediction", "json"), ("failures", "csv"))
    } <= files
    assert saved(results, "prediction_part1of2.json")["failures"] == {"a_b": "x"}


def test_the_hash_knows_every_weight_and_the_order_of_the_folds():
    first, second = {"a": torch.zeros(2)}, {"a": torch.ones(2)}
    hashes = {model_hash(folds) for folds in ([first], [second], [first, second], [second, first])}
    assert len(hashes) == 4
    assert model_hash([first]) == model_hash([{"a": torch.zeros(2)}])


def test_the_device_is_named():
    assert device_name(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("C:\\Users\\ada\\a.nii.gz must be", "a.nii.gz must be"),
        ("got '/data/x/y.mha'", "got 'y.mha'"),
        ("spacing 4 x 1/2 mm and/or in", "spacing 4 x 1/2 mm and/or in"),
        ("in/a.nii.gz", "in/a.nii.gz"),
    ],
)
def test_absolute_paths_become_names(text, expected):
    assert without_folders(text) == expected

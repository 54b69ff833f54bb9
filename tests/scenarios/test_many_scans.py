"""Many scans by several calls into one folder: bad scans, kills, and what the records say afterwards."""

import csv
import json
import os
import re
import signal
import time

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from commands import REHRSEG, Command
from random_model import scan, write_random_model

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.nnunet.staging_folders import STAGING_PREFIX

pytestmark = pytest.mark.slow

CASES = [f"case{number}" for number in range(8)]


@pytest.fixture(scope="module")
def model(nnunet):
    """A model, eight scans and what one call makes of them."""
    nnunet.model = write_random_model(nnunet.results)
    nnunet.scans, nnunet.expected = nnunet.base / "scans", nnunet.base / "expected"
    nnunet.scans.mkdir()
    for number, name in enumerate(CASES):
        sitk.WriteImage(scan(number), str(nnunet.scans / f"{name}_0000.nii.gz"))
    assert predict(nnunet, nnunet.scans, nnunet.expected) == 0
    return nnunet


def arguments(model, source, target, *options, workers=0):
    here = ["-device", "cpu", "--disable_progress_bar", "-npp", workers, "-nps", workers]
    return list(map(str, ["predict", "-m", model.model, "-i", source, "-o", target, *here, *options]))


def predict(model, source, target, *options, workers=0):
    return main(arguments(model, source, target, *options, workers=workers))


def start(model, source, target, *options, workers=0):
    return Command(REHRSEG, *arguments(model, source, target, *options, workers=workers))


def part(number):
    return "-num_parts", "2", "-part_id", str(number)


def volumes(folder):
    return {file.name: np.asanyarray(nibabel.load(file).dataobj) for file in sorted(folder.glob("*.nii.gz"))}


def assert_equal(folder, expected):
    found, wanted = volumes(folder), volumes(expected)
    assert found.keys() == wanted.keys()
    for name, values in found.items():
        np.testing.assert_array_equal(values, wanted[name])


def hidden(folder):
    return [path.name for path in folder.glob(f"{STAGING_PREFIX}*")]


def record(folder, name="prediction.json"):
    return json.loads((folder / name).read_text())


def held_folders(folder):
    """Hidden folders whose lock has been taken: one that is killed earlier is left for a day."""
    machines = folder.glob(f"{STAGING_PREFIX}*/machine")
    return {file.parent.name for file in machines if file.read_text()}


def started(model, out, number):
    """A part that has begun to write, and the name of its hidden folder."""
    before = held_folders(out)
    process = start(model, model.scans, out, *part(number))
    while held_folders(out) <= before:
        assert process.poll() is None
        time.sleep(0.01)
    (new,) = held_folders(out) - before
    return process, new


def test_parts_of_which_one_is_killed_make_the_whole(model, tmp_path):
    """What the killed part left goes with its next run; what a part that is still going has does not."""
    out = tmp_path / "out"
    out.mkdir()
    killed, left = started(model, out, 0)
    killed.kill()
    killed.wait()
    (out / left / "case0").mkdir(exist_ok=True)
    (out / left / "case0" / "case0.nii.gz").write_bytes(b"half")
    other, held = started(model, out, 1)
    try:
        os.kill(other.pid, signal.SIGSTOP)
        assert predict(model, model.scans, out, *part(0), "--continue_prediction") == 0
        assert hidden(out) == [held]
        os.kill(other.pid, signal.SIGCONT)
        assert other.wait() == 0
    finally:
        other.kill()
        other.wait()
    assert_equal(out, model.expected)
    assert hidden(out) == []
    records = [record(out, f"prediction_part{number}of2.json") for number in (0, 1)]
    assert [set(each["cases"]) for each in records] == [set(CASES[::2]), set(CASES[1::2])]
    assert all(each["finished"] for each in records)


@pytest.fixture
def scans(model, tmp_path):
    """Four scans, one of them damaged."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in CASES[:4]:
        (folder / f"{name}_0000.nii.gz").write_bytes((model.scans / f"{name}_0000.nii.gz").read_bytes())
    (folder / "case1_0000.nii.gz").write_bytes(b"no image")
    return folder


def assert_case1_failed(out, errors):
    """One line, the other cases, and records of both."""
    (line,) = [line for line in errors.splitlines() if "error: " in line]
    assert re.search(r"1 of 4 cases failed \(case1\); the reasons are in .*failures\.csv; mend the scans", line), line
    assert volumes(out).keys() == {"case0.nii.gz", "case2.nii.gz", "case3.nii.gz"}
    with (out / "failures.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["case"], row["file"]) == ("case1", "case1_0000.nii.gz")
    assert row["reason"].startswith("case1_0000.nii.gz must be a whole file")
    content = record(out)
    assert (set(content["cases"]), set(content["failures"])) == ({"case0", "case2", "case3"}, {"case1"})
    assert all(case["seconds"] > 0 for case in content["cases"].values())
    assert str(out.parent) not in (out / "prediction.json").read_text() + (out / "failures.csv").read_text()


def test_a_bad_scan_costs_its_case_alone(model, scans, tmp_path, capfd):
    out = tmp_path / "out"
    capfd.readouterr()
    assert predict(model, scans, out, "--keep_going") == 1
    assert_case1_failed(out, capfd.readouterr().err)
    content, before = record(out), (out / "case0.nii.gz").stat().st_mtime_ns
    (scans / "case1_0000.nii.gz").write_bytes((model.scans / "case1_0000.nii.gz").read_bytes())
    assert predict(model, scans, out, "--keep_going", "--continue_prediction") == 0
    assert (out / "case0.nii.gz").stat().st_mtime_ns == before
    assert not (out / "failures.csv").exists()
    again = record(out)
    assert set(again["cases"]) == set(CASES[:4])
    assert again["failures"] == {}
    assert again["cases"]["case0"] == content["cases"]["case0"]


def test_a_bad_scan_costs_its_case_alone_with_workers_too(model, scans, tmp_path):
    process = start(model, scans, tmp_path / "out", "--keep_going", workers=1)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert_case1_failed(tmp_path / "out", errors)


def test_without_it_the_bad_scan_ends_the_run(model, scans, tmp_path):
    assert predict(model, scans, tmp_path / "out") == 1
    assert volumes(tmp_path / "out").keys() == {"case0.nii.gz"}
    assert not record(tmp_path / "out")["finished"]


def test_files_that_a_csv_file_names_in_vain(model, scans, tmp_path, capfd):
    cases = tmp_path / "cases.csv"
    cases.write_text("case,file0\nfirst,in/case0_0000.nii.gz\nsecond,in/none.nii.gz\n")
    capfd.readouterr()
    assert predict(model, cases, tmp_path / "out") == 1
    assert "line 3: " in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert predict(model, cases, tmp_path / "out", "--keep_going") == 1
    assert volumes(tmp_path / "out").keys() == {"first.nii.gz"}
    assert record(tmp_path / "out")["failures"] == {"second": "none.nii.gz does not exist"}


@pytest.fixture
def same_names(model, tmp_path):
    """A csv file whose scans are all called t1.nii.gz, and grids called like the cases, of 3 and 4 slices."""
    rows, grids = ["case,file0"], tmp_path / "grids"
    grids.mkdir()
    for number, name in enumerate(("ada", "bob")):
        (tmp_path / name).mkdir()
        sitk.WriteImage(scan(number), str(tmp_path / name / "t1.nii.gz"))
        sitk.WriteImage(scan(number, size=(18, 20, 3 + number)), str(grids / f"{name}.mha"))
        rows.append(f"{name},{name}/t1.nii.gz")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    return tmp_path / "cases.csv"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_of_grids_is_matched_by_the_cases_names(model, same_names, tmp_path, workers):
    """Not by the files', which may all be called alike."""
    out = tmp_path / "out"
    process = start(model, same_names, out, "--grid", tmp_path / "grids", workers=workers)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert {name: values.shape[2] for name, values in volumes(out).items()} == {"ada.nii.gz": 3, "bob.nii.gz": 4}


def test_a_missing_grid_is_said_before_anything_is_predicted(model, same_names, tmp_path, capfd):
    (tmp_path / "grids" / "bob.mha").unlink()
    out = tmp_path / "out"
    capfd.readouterr()
    assert predict(model, same_names, out, "--grid", tmp_path / "grids") == 1
    assert "the folder of --grid must have a file for every case, such as bob.nii.gz, got none for bob" in (
        capfd.readouterr().err
    )
    assert not out.exists()
    assert predict(model, same_names, out, "--grid", tmp_path / "grids", "--keep_going") == 1
    assert volumes(out).keys() == {"ada.nii.gz"}
    assert set(record(out)["failures"]) == {"bob"}


def test_a_mended_scan_stays_in_its_part(model, scans, tmp_path):
    cases = tmp_path / "cases.csv"
    rows = [f"{name},in/{name}_0000.nii.gz" for name in CASES[:4]]
    cases.write_text("\n".join(["case,file0", *rows]))
    mended = scans / "case1_0000.nii.gz"
    mended.unlink()
    options = ("--keep_going", "--continue_prediction")
    assert [predict(model, cases, tmp_path / "out", *part(number), *options) for number in (0, 1)] == [0, 1]
    mended.write_bytes((model.scans / mended.name).read_bytes())
    assert predict(model, cases, tmp_path / "out", *part(1), *options) == 0
    assert volumes(tmp_path / "out").keys() == {f"{name}.nii.gz" for name in CASES[:4]}

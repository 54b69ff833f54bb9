"""One scan in, one file out, without variables of nnU-Net's: as voxel for voxel as the long command."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from random_model import scan, write_random_model

from rehrseg_nnunet.cli.main import main

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "how-to" / "predict-from-python.md"
LONG = ["-d", "1", "-tr", "nnUNetTrainer", "-c", "3d_fullres", "-f", "0", "1"]
HERE = ["-device", "cpu", "--disable_progress_bar", "-npp", "0", "-nps", "0"]


@pytest.fixture(scope="module")
def model(nnunet):
    """A model of two folds, its zip file, two scans and what the long command makes of them."""
    nnunet.model = write_random_model(nnunet.results, folds=(0, 1))
    nnunet.zip = nnunet.base / "model.zip"
    nnunet.command("nnUNetv2_export_model_to_zip", "-d", 1, "-o", nnunet.zip, "-c", "3d_fullres", "-f", "0", "1")
    nnunet.scans, nnunet.expected = nnunet.base / "scans", nnunet.base / "expected"
    nnunet.scans.mkdir()
    for number, name in enumerate(("a", "b")):
        sitk.WriteImage(scan(number), str(nnunet.scans / f"{name}_0000.nii.gz"))
    nnunet.rehrseg("predict", "-i", nnunet.scans, "-o", nnunet.expected, *LONG, *HERE)
    return nnunet


def predict(*arguments):
    return main(["predict", *map(str, arguments), *HERE])


def assert_same(file, expected):
    """Voxels and place; both may have another format."""
    stored, other = sitk.ReadImage(str(file)), sitk.ReadImage(str(expected))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(other))
    np.testing.assert_allclose(stored.GetOrigin(), other.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(stored.GetDirection(), other.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(stored.GetSpacing(), other.GetSpacing(), atol=1e-6)


def error_of(capfd, *arguments, status=1):
    capfd.readouterr()
    assert predict(*arguments) == status
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1, errors
    return errors


def test_a_zip_file_without_any_variable(model, tmp_path):
    shutil.copy(model.scans / "a_0000.nii.gz", tmp_path / "Knee, left 2024.nii.gz")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet")}
    command = [sys.executable, "-m", "rehrseg_nnunet.cli.main", "predict", "-m", model.zip]
    command += ["-i", "Knee, left 2024.nii.gz", "-o", "seg.nii.gz", "-device", "cpu"]
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    run = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env={**environment, "TMPDIR": str(scratch), "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "the segmentation is seg.nii.gz" in run.stdout
    assert "nnUNet_" not in run.stderr
    assert "nnUNet_raw" not in run.stdout
    assert_same(tmp_path / "seg.nii.gz", model.expected / "a.nii.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Knee, left 2024.nii.gz", "seg.nii.gz", "tmp"]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "dataset", "results", "zip"])
@pytest.mark.parametrize("output", ["seg.nii.gz", "new/seg.nrrd"])
def test_a_model_is_what_its_path_says(model, tmp_path, kind, output):
    path = {"folder": model.model, "dataset": model.model.parent, "results": model.results, "zip": model.zip}[kind]
    assert predict("-m", path, "-i", model.scans / "a_0000.nii.gz", "-o", tmp_path / output) == 0
    assert_same(tmp_path / output, model.expected / "a.nii.gz")


def test_the_long_form_takes_one_scan_and_other_formats_too(model, tmp_path):
    sitk.WriteImage(scan(0), str(tmp_path / "in.mha"))
    (tmp_path / "out").mkdir()
    assert predict(*LONG, "-i", tmp_path / "in.mha", "-o", tmp_path / "out") == 0
    assert_same(tmp_path / "out" / "in.mha", model.expected / "a.nii.gz")


def test_folders_of_any_names_and_csv_files(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        shutil.copy(model.scans / f"{name}_0000.nii.gz", tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "cases.csv").write_text("case,file0\nfirst,in/a.nii.gz\nsecond,in/b.nii.gz\n")
    assert predict("-m", model.zip, "-i", tmp_path / "in", "-o", tmp_path / "folder") == 0
    assert predict("-m", model.zip, "-i", tmp_path / "cases.csv", "-o", tmp_path / "csv") == 0
    for name, called in (("a", "first"), ("b", "second")):
        assert_same(tmp_path / "folder" / f"{name}.nii.gz", model.expected / f"{name}.nii.gz")
        assert_same(tmp_path / "csv" / f"{called}.nii.gz", model.expected / f"{name}.nii.gz")


def test_probabilities_lie_beside_the_file(model, tmp_path):
    options = ("--save_probabilities", "-i", model.scans / "a_0000.nii.gz", "-o", tmp_path / "seg.nii.gz")
    assert predict("-m", model.model, *options) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seg.nii.gz", "seg.npz", "seg.pkl"]
    labels = np.asanyarray(nibabel.load(tmp_path / "seg.nii.gz").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "seg.npz")["probabilities"].argmax(0), labels)


def test_several_grids_and_surfaces_have_the_files_name(model, tmp_path):
    pytest.importorskip("trimesh")
    options = ("--grid", "hr", "native", "--surfaces", "stl", "-i", model.scans / "a_0000.nii.gz")
    target = ("-o", tmp_path / "seg.nii.gz")
    assert predict("-m", model.model, *options, *target) == 0
    expected = [f"seg_{grid}{end}" for grid in ("hr", "native") for end in (".nii.gz", "_a.stl", "_b.stl")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    assert_same(tmp_path / "seg_hr.nii.gz", model.expected / "a.nii.gz")
    before = (tmp_path / "seg_hr.nii.gz").stat().st_mtime_ns
    assert predict("-m", model.model, "--continue_prediction", *options, *target) == 0
    assert (tmp_path / "seg_hr.nii.gz").stat().st_mtime_ns == before


def test_what_another_model_left_beside_a_segmentation_goes(model, tmp_path):
    """Or the old probabilities, surfaces and Slicer's copy would be taken for the new model's."""
    more = ("--save_probabilities", "--surfaces", "stl", "ply", "--seg_nrrd")
    for source, target in ((model.scans / "a_0000.nii.gz", tmp_path / "a.nii.gz"), (model.scans, tmp_path / "out")):
        folder = target if target.suffix == "" else tmp_path
        assert predict("-m", model.zip, "-i", source, "-o", target, *more, "-f", "0") == 0
        names = {file.name for file in folder.glob("a*")}
        assert names >= {"a.nii.gz", "a.npz", "a.pkl", "a.seg.nrrd", "a_a.stl", "a_b.ply"}
        assert predict("-m", model.zip, "-i", source, "-o", target, "--surfaces", "stl", "-f", "1") == 0
        assert {file.name for file in folder.glob("a*")} == {"a.nii.gz", "a_a.stl", "a_b.stl"}
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["cases"]["a"]["files"] == ["a.nii.gz", "a_a.stl", "a_b.stl"]


def test_what_is_there_is_kept(model, tmp_path, capfd):
    (tmp_path / "seg.nii.gz").write_text("mine")
    options = ("--continue_prediction", "-i", model.scans / "a_0000.nii.gz", "-o", tmp_path / "seg.nii.gz")
    assert predict("-m", model.model, *options) == 0
    assert (tmp_path / "seg.nii.gz").read_text() == "mine"
    assert "seg.nii.gz: there and kept" in capfd.readouterr().out


def faulty(model, tmp_path, kind):
    """Arguments with one mistake, and what is said of it."""
    one, seg = ("-i", model.scans / "a_0000.nii.gz"), ("-o", tmp_path / "seg.nii.gz")
    (tmp_path / "text.zip").write_text("no zip file")
    (tmp_path / "bad.nii.gz").write_bytes((model.scans / "a_0000.nii.gz").read_bytes()[:900])
    (tmp_path / "empty").mkdir()
    shutil.copytree(model.model, tmp_path / "untrained", ignore=shutil.ignore_patterns("*.pth"))
    m = ("-m", model.zip)
    return {
        "both -m and -d": ((*m, "-d", "1", "-c", "x", *one, *seg), "leave out one of -m .* and -d 1"),
        "neither": ((*one, *seg), "the model must be named, by -m FOLDER or -m ZIP, or by -d DATASET"),
        "-d without -c": (("-d", "1", *one, *seg), "-d needs -c"),
        "no zip file": (("-m", tmp_path / "text.zip", *one, *seg), r"text\.zip must be a zip file as nnUNetv2_export"),
        "no model": (("-m", tmp_path / "empty", *one, *seg), "empty must hold a trained nnU-Net model"),
        "no checkpoint": (("-m", tmp_path / "untrained", *one, *seg), r"fold 0 is not trained: .*trained folds: none"),
        "another fold": ((*m, "-f", "4", *one, *seg), r"fold 4 is not trained: .*model\.zip; trained folds: 0 1;"),
        "two channels": ((*m, *one, one[1], *seg), "one file for each of the model's 1 channels"),
        "a damaged scan": ((*m, "-i", tmp_path / "bad.nii.gz", *seg), r"bad\.nii\.gz must be a whole file"),
        "several to a folder": ((*m, *one, one[1], "-o", tmp_path / "empty"), "-o must be a file for the case whose"),
        "an unknown ending": ((*m, *one, "-o", tmp_path / "seg.txt"), r"-o must end like an image"),
        "an ending of no reader": ((*m, *one, "-o", tmp_path / "seg.png"), r"-o must end in one of \.nii\.gz"),
        "onto itself": ((*m, "-i", tmp_path / "bad.nii.gz", "-o", tmp_path), "which is an input; choose another"),
        "no scan": ((*m, "-i", tmp_path / "none.nii.gz", *seg), "-i must be an existing file or folder"),
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "both -m and -d",
        "neither",
        "-d without -c",
        "no zip file",
        "no model",
        "no checkpoint",
        "another fold",
        "two channels",
        "a damaged scan",
        "several to a folder",
        "an unknown ending",
        "an ending of no reader",
        "onto itself",
        "no scan",
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(model, tmp_path, capfd, kind):
    arguments, message = faulty(model, tmp_path, kind)
    before = sorted(tmp_path.rglob("*"))
    errors = error_of(capfd, *arguments)
    assert re.search(message, errors), errors
    assert sorted(tmp_path.rglob("*")) == before


def test_the_python_example_runs(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(model.zip, "model.zip")
    shutil.copy(model.scans / "a_0000.nii.gz", "scan.nii.gz")
    shutil.copytree(model.scans, "scans")
    example = re.search(r"^(?: {4}.*\n|\n)+", DOCUMENT.read_text().partition("\n")[2], re.MULTILINE)[0]
    lines = [line[4:] for line in example.splitlines()]
    assert len([line for line in lines if line]) <= 10
    names = {}
    exec("\n".join(lines), names)
    expected = nibabel.load(model.expected / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(names["thin"].dataobj), np.asanyarray(expected.dataobj))
    assert sorted(os.listdir("segmented")) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert nibabel.load("segmented/a_0000.nii.gz").shape == nibabel.load("scan.nii.gz").shape


def test_the_record_says_what_was_used(model):
    record = json.loads((model.expected / "prediction.json").read_text())
    assert record["model"]["trainer"] == "nnUNetTrainer"
    assert record["model"]["folds"] == [0, 1]
    assert record["finished"]
    assert {name: case["files"] for name, case in record["cases"].items()} == {"a": ["a.nii.gz"], "b": ["b.nii.gz"]}
    assert str(model.base) not in json.dumps(record)

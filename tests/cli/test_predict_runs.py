"""`rehrseg predict` with a small model in this process: what it says, what it writes, and what it leaves alone."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from random_model import scan, write_random_model

from rehrseg_nnunet.cli.main import main

HERE = ("--disable_tta", "-npp", "0", "-nps", "0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_random_model(tmp_path_factory.mktemp("results"))


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A folder with a scan, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    sitk.WriteImage(scan(), "scan.nii.gz")
    return tmp_path


def predict(model, *arguments):
    return main(["predict", "-m", str(model), *HERE, *map(str, arguments)])


def test_one_scan_without_a_word_of_nnunet(trained, place, capfd):
    assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 0
    said = capfd.readouterr()
    assert said.out.splitlines() == [
        "no CUDA GPU found: predicting on the CPU",
        "the segmentation is seg.nii.gz",
    ]
    bars = [part for part in said.err.split("\r") if "it/s" in part]
    assert all(bar.startswith("patches:") for bar in bars)


def test_cuda_without_a_gpu_stays_an_error_and_a_wrong_path_comes_first(trained, place, capfd):
    assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz", "-device", "cuda") == 1
    assert "-device must be available, got cuda" in capfd.readouterr().err
    assert predict("none.zip", "-i", "scan.nii.gz", "-o", "seg.nii.gz", "-device", "cuda") == 1
    assert "-m must be an existing folder or zip file, got none.zip" in capfd.readouterr().err


def test_many_cases_are_counted_once(trained, place, capfd):
    (place / "cases.csv").write_text("case,file0\n" + "".join(f"{name},scan.nii.gz\n" for name in "abc"))
    assert predict(trained, "-i", "cases.csv", "-o", "out", "-num_parts", 2, "-part_id", 0) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "no CUDA GPU found",
        "part 0 of 2",
        "a",
        "c",
        "the segmentations are in out",
    ]
    assert lines[1] == "part 0 of 2: 2 of 3 cases"


def test_a_scan_as_output_stays_and_a_segmentation_is_replaced(trained, place, capfd):
    assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 0
    assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 0
    before = (place / "scan.nii.gz").read_bytes()
    capfd.readouterr()
    assert predict(trained, "-i", "seg.nii.gz", "-o", "scan.nii.gz") == 1
    message = (
        "-o must not replace what is no segmentation of this model, but scan.nii.gz holds no labels; are input and"
    )
    assert message in capfd.readouterr().err
    assert (place / "scan.nii.gz").read_bytes() == before


@pytest.mark.parametrize("values", [np.int16, np.uint8])
def test_scans_of_integers_stay_too(trained, place, values):
    image = sitk.Cast(sitk.RescaleIntensity(scan(), 0, 200), sitk.sitkInt16 if values is np.int16 else sitk.sitkUInt8)
    sitk.WriteImage(image, "t1.nii.gz")
    before = (place / "t1.nii.gz").read_bytes()
    assert predict(trained, "-i", "scan.nii.gz", "-o", "t1.nii.gz") == 1
    assert predict(trained, "-i", "scan.nii.gz", "-o", "t1.nii.gz", "--grid", "t1.nii.gz") == 1
    assert (place / "t1.nii.gz").read_bytes() == before


def test_scans_of_a_folder_stay_on_every_grid(trained, place, capfd):
    (place / "in").mkdir()
    (place / "out").mkdir()
    shutil.copy("scan.nii.gz", "in/b.nii.gz")
    shutil.copy("scan.nii.gz", "out/b_native.nii.gz")
    before = (place / "out" / "b_native.nii.gz").read_bytes()
    assert predict(trained, "-i", "in", "-o", "out", "--grid", "hr", "native") == 1
    assert "out/b_native.nii.gz holds no labels" in capfd.readouterr().err
    assert [file.name for file in (place / "out").iterdir()] == ["b_native.nii.gz"]
    assert (place / "out" / "b_native.nii.gz").read_bytes() == before


def test_surfaces_of_one_scans_probabilities_have_the_labels_names(trained, place, capfd):
    pytest.importorskip("trimesh")
    options = ("--save_probabilities", "--surfaces", "stl")
    assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz", *options) == 0
    said = capfd.readouterr()
    assert "also written: seg.npz, seg.pkl, seg_a.stl, seg_b.stl" in said.out
    with open("seg.pkl", "rb") as stream:
        assert pickle.load(stream)["rehrseg_labels"] == {"labels": {"background": 0, "a": 1, "b": 2}}
    assert main(["surfaces", "-i", "seg.npz", "-o", "S"]) == 0
    assert sorted(file.name for file in (place / "S").iterdir()) == ["seg_a.stl", "seg_b.stl"]


def test_the_volumes_of_surfaces_are_said(trained, place, caplog):
    pytest.importorskip("trimesh")
    with caplog.at_level("INFO"):
        assert predict(trained, "-i", "scan.nii.gz", "-o", "seg.nii.gz", "--surfaces", "stl") == 0
    lines = [line.split(":")[0] for line in caplog.messages if "mm3" in line]
    assert lines == ["scan a", "scan b"]


def test_nothing_is_left_of_a_run_in_which_every_scan_failed(trained, place, capfd):
    (place / "bad.nii.gz").write_bytes(b"no image")
    assert predict(trained, "-i", "bad.nii.gz", "-o", "new/deep/seg.nii.gz") == 1
    assert not (place / "new").exists()
    (place / "cases.csv").write_text("case,file0\na,bad.nii.gz\n")
    capfd.readouterr()
    assert predict(trained, "-i", "cases.csv", "-o", "out", "--keep_going") == 1
    said = capfd.readouterr()
    assert "the segmentations are in" not in said.out
    assert "1 of 1 cases failed (a)" in said.err
    assert (place / "out" / "failures.csv").is_file()


def test_models_that_cannot_segment_are_passed_over(trained, place, capfd):
    results = place / "results"
    shutil.copytree(trained, results / trained.name)
    shutil.copytree(trained, results / "SelfSRTrainer_20epochs__nnUNetPlans__3d_fullres")
    assert predict(results, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 0
    shutil.rmtree(results / trained.name)
    capfd.readouterr()
    assert predict(results, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 1
    expected = "got only SelfSRTrainer_20epochs__nnUNetPlans__3d_fullres, which cannot segment"
    assert expected in capfd.readouterr().err


def test_a_missing_fold_is_named_in_the_models_own_folder(trained, place, capfd):
    assert predict(trained.parent, "-f", 1, "-i", "scan.nii.gz", "-o", "seg.nii.gz") == 1
    assert f"fold 1 is not trained: {trained}/fold_1/checkpoint_final.pth does not exist;" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "-m", "none", "-i", "a", "-o", "b"], "-m must be an existing folder or zip file, got none"),
        (["predict", "-m", ".", "-i", "a", "-o", "b"], "-i must be an existing file or folder, got a"),
        (["predict", "-m", "504", "-i", "a", "-o", "b"], "a dataset goes with -d 504 -c CONFIGURATION"),
        (["surfaces", "-i", "a", "-o", "b"], "-i must be an existing file or folder, got a"),
        (["viewers", "-i", "a"], "-i must be an existing file or folder, got a"),
    ],
)
def test_wrong_paths_are_said_before_pytorch_is_imported(tmp_path, command, message):
    code = (
        "import sys; from rehrseg_nnunet.cli.main import main; assert main(sys.argv[1:]) == 1; "
        "print({'torch', 'nnunetv2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True)
    assert message in done.stderr
    assert done.stdout.strip() == "set()"


def test_the_record_of_a_failed_part_is_that_parts(trained, place):
    (place / "cases.csv").write_text("case,file0\na,scan.nii.gz\nb,none.nii.gz\n")
    assert predict(trained, "-i", "cases.csv", "-o", "out", "--keep_going", "-num_parts", 2, "-part_id", 1) == 1
    assert json.loads((place / "out" / "prediction_part1of2.json").read_text())["failures"].keys() == {"b"}

"""`rehrseg report` on predictions and trained folds: what stands on the page, and what is said of bad input."""

import json
import shutil

import numpy as np
import pytest
from report_cases import CASES, CUT, DATASET, IN_PIECES, WORST, truth, write, write_fold, write_folders
from report_page import read_page

from rehrseg_nnunet.cli.main import main


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("cases")
    write_folders(base)
    return base


@pytest.fixture(scope="module")
def results(tmp_path_factory, folders):
    """nnU-Net's folders with two folds of REHRSegTrainer and of the baseline."""
    base = tmp_path_factory.mktemp("nnunet")
    for fold, cases in ((0, CASES[:4]), (1, CASES[4:])):
        write_fold(base, folders, fold=fold, cases=cases)
        write_fold(base, folders, trainer="nnUNetTrainer", fold=fold, cases=cases, thin=False)
    return base


@pytest.fixture
def nnunet(results, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.setenv(name, str(results / name))
    return results


def page_of(tmp_path, *options, pictures=0):
    file = tmp_path / "report.html"
    options = [*options, "--pictures", pictures, "-o", file]
    assert main(["report", *(str(option) for option in options)]) == 0
    return read_page(file)


def error_of(capsys, *options):
    assert main(["report", *(str(option) for option in options)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


def test_predictions_with_reference(folders, tmp_path):
    options = ["-pred", folders / "thin", "-acquired", folders / "thick", "-baseline", folders / "baseline"]
    page = page_of(tmp_path, *options, "-ref", folders / "thin_reference", "-i", folders / "scans", pictures=9)
    assert next(iter(page.cases)) == WORST
    assert sorted(page.cases) == CASES
    flags = {name: row["flags"].split() for name, row in page.cases.items()}
    assert set(flags[WORST]) == {"volume", "disagrees"}
    assert flags[CUT] == ["cut", "pieces"]
    assert flags[IN_PIECES] == ["pieces"]
    assert page.cases["case_0"]["Dice"] == "1.000"
    assert f"{WORST}, Dice" in page.text
    assert "ml missed" in page.text
    assert "Better than baseline: +" in page.text or "No clear difference to baseline" in page.text
    assert len(page.pictures("webp")) == len(CASES)
    assert len(page.pictures("svg+xml")) == 3
    assert "This page holds images and names of cases" in page.text
    assert str(folders) not in page.html


def test_predictions_without_reference(folders, tmp_path):
    page = page_of(tmp_path, "-pred", folders / "thin", "-i", folders / "scans", pictures=2)
    assert "Dice" not in page.columns
    assert set(list(page.cases)[:3]) == {WORST, CUT, IN_PIECES}
    assert "unsure" in page.columns
    assert "Not known: that takes a reference." in page.text
    assert "ml of it is sure" in page.text
    assert len(page.pictures("webp")) == 2


def test_scans_of_one_channel_may_be_called_like_the_cases(folders, tmp_path):
    """As `rehrseg predict` takes them."""
    for file in (folders / "scans").glob("*_0000.nii.gz"):
        (tmp_path / "scans").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "scans" / file.name.replace("_0000", ""))
    page = page_of(tmp_path, "-pred", folders / "thin", "-i", tmp_path / "scans", pictures=2)
    assert "cases have no scan" not in page.text
    assert len(page.pictures("webp")) == 2


def test_predictions_alone(folders, tmp_path):
    shutil.copytree(folders / "thin", tmp_path / "thin")
    for file in (tmp_path / "thin").glob("*.npz"):
        file.unlink()
    page = page_of(tmp_path, "-pred", tmp_path / "thin", pictures=1)
    assert "how sure is not known without probabilities" in page.text
    assert len(page.pictures("webp")) == 1


def test_a_reference_on_the_acquired_slices_judges_what_lies_there(folders, tmp_path):
    options = ["-pred", folders / "thin", "-acquired", folders / "thick", "-ref", folders / "thick_reference"]
    page = page_of(tmp_path, *options)
    assert {row["Dice"] for row in page.cases.values()} == {"1.000"}
    assert "disagrees" in page.cases[WORST]["flags"]


def test_cases_without_reference_or_scan_are_named(folders, tmp_path):
    for name in ("thin_reference", "scans"):
        shutil.copytree(folders / name, tmp_path / name)
    (tmp_path / "thin_reference" / "case_1.nii.gz").unlink()
    (tmp_path / "scans" / "case_2_0000.nii.gz").unlink()
    page = page_of(tmp_path, "-pred", folders / "thin", "-ref", tmp_path / "thin_reference", "-i", tmp_path / "scans")
    assert "1 cases have no reference: case_1" in page.text
    assert "1 cases have no scan: case_2" in page.text
    assert list(page.cases)[-1] == "case_1"
    assert page.cases["case_1"]["Dice"] == "-"


def test_what_rehrseg_predict_recorded(folders, tmp_path):
    shutil.copytree(folders / "thin", tmp_path / "thin")
    record = {
        "versions": {"nnunetv2": "2.8.1"},
        "model": {"dataset": "Dataset007_Shells", "trainer": "T", "plans": "P", "configuration": "3d", "folds": [0, 1]},
        "device": "cpu",
        "options": {"grid": ["hr"]},
        "started": "2026-01-02T03:04:05+00:00",
        "failures": {"case_9": "case_9.nii.gz must be whole"},
    }
    (tmp_path / "thin" / "prediction.json").write_text(json.dumps(record))
    page = page_of(tmp_path, "-pred", tmp_path / "thin")
    assert "case_9 has no prediction: case_9.nii.gz must be whole" in page.text
    for text in ("0, 1", "2026-01-02 on cpu", "nnunetv2 2.8.1", "Dataset007_Shells"):
        assert text in page.text
    assert page.pictures("webp") == []


def test_trained_folds(nnunet, tmp_path):
    page = page_of(tmp_path, "-d", 7, "-c", "3d_fullres")
    assert next(iter(page.cases)) == WORST
    assert {name: row["fold"] for name, row in page.cases.items()} == {
        name: "0" if name in CASES[:4] else "1" for name in CASES
    }
    assert page.columns[:7] == [
        "case", "fold", "Dice", "HD95 (mm)", "NSD", "Dice, acquired slices", "Dice, less baseline's",
    ]  # fmt: skip
    assert "nnUNetTrainer, signed distance" in page.text
    assert "REHRSegTrainer, fold 1: 2 epochs, 5 min, pseudo Dice 0.811 to 0.900 (best 0.900 in epoch 1)" in page.text
    assert "its pseudo-HR labels in pseudo_hr, made thick again" in page.text
    assert "r (thin slices for each thick one)\n4" in page.text.replace("4\n", "4\n")
    assert len(page.pictures("svg+xml")) == 3 + 4
    assert str(nnunet) not in page.html
    assert "/data/" not in page.html


def test_one_fold_without_baseline(nnunet, tmp_path):
    page = page_of(tmp_path, "-d", "Dataset007_Shells", "-c", "3d_fullres", "-f", 1, "-tr", "nnUNetTrainer")
    assert sorted(page.cases) == CASES[4:]
    assert "Dice, less baseline's" not in page.columns
    assert {row["Dice"] for row in page.cases.values()} == {"1.000"}


def test_a_baseline_by_name(nnunet, tmp_path):
    page = page_of(
        tmp_path, "-d", 7, "-c", "3d_fullres", "-f", 1, "-tr", "nnUNetTrainer", "-baseline", "REHRSegTrainer"
    )
    assert {row["Dice, less baseline's"] for row in page.cases.values()} == {"+0.000"}


def test_thin_slices_whose_truth_is_not_known(nnunet, tmp_path, monkeypatch):
    raw = tmp_path / "nnUNet_raw"
    shutil.copytree(nnunet / "nnUNet_raw", raw)
    shutil.rmtree(raw / "Dataset007_Shells" / "labelsTrHR")
    monkeypatch.setenv("nnUNet_raw", str(raw))
    page = page_of(tmp_path, "-d", 7, "-c", "3d_fullres", "-f", 0)
    assert "The true thin slices are not known" in page.text
    assert {row["Dice"] for row in page.cases.values()} == {"1.000"}
    assert "disagrees" in page.cases[WORST]["flags"]


REGIONS = {"labels": {"background": 0, "whole": [1, 2], "core": [1]}, "regions_class_order": [2, 1]}


def test_regions(folders, tmp_path):
    """Label 2 is written by the region of the whole, 1 by the core inside it."""
    shutil.copytree(folders / "thin", tmp_path / "thin")
    for file in (tmp_path / "thin").glob("*.npz"):
        values = np.load(file)["probabilities"]
        np.savez_compressed(file, probabilities=np.stack([values[1] + values[2], values[1]]))
    (tmp_path / "thin" / "dataset.json").write_text(json.dumps({**DATASET, **REGIONS}))
    options = ["-ref", folders / "thin_reference", "-i", folders / "scans"]
    page = page_of(tmp_path, "-pred", tmp_path / "thin", *options, pictures=1)
    row, plain = page.cases["case_0"], page_of(tmp_path, "-pred", folders / "thin", *options).cases["case_0"]
    assert row["core (ml)"] == plain["core (ml)"]
    assert float(row["whole (ml)"]) == pytest.approx(float(plain["core (ml)"]) + float(plain["shell (ml)"]), abs=0.02)
    assert row["Dice"] == "1.000"


def test_what_nobody_annotated_is_no_mistake(folders, tmp_path):
    labels = {**DATASET["labels"], "ignore": 3}
    (tmp_path / "dataset.json").write_text(json.dumps({**DATASET, "labels": labels}))
    true = truth(CASES.index(WORST))
    true[:11] = 3  # where the prediction misses the structure
    write(tmp_path / "reference" / f"{WORST}.nii.gz", true)
    options = ["-ref", tmp_path / "reference", "-djfile", tmp_path / "dataset.json"]
    page = page_of(tmp_path, "-pred", folders / "thin", *options)
    assert f"{WORST}, Dice 1.000: nothing is wrong." in page.text
    assert page.cases[WORST]["Dice"] == "1.000"


def test_a_page_replaces_another_only_when_it_is_whole(folders, tmp_path, capsys):
    file = tmp_path / "report.html"
    file.write_text("former")
    shutil.copytree(folders / "thin", tmp_path / "thin")
    write(tmp_path / "thin" / "case_1.nii.gz", np.full((24, 20, 18), 0.5, np.float32))
    assert "integer labels" in error_of(capsys, "-pred", tmp_path / "thin", "-o", file)
    assert file.read_text() == "former"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "thin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name either a trained fold, by -d DATASET -c CONFIGURATION, or predictions, by -pred FOLDER"),
        (["-d", "7", "-pred", "A"], "name either a trained fold"),
        (["-d", "7"], "-c must name the configuration"),
        (["-d", "7", "-c", "3d_fullres", "-ref", "A"], "-ref must be left out with -d"),
        (["-pred", "A", "-f", "0"], "-f must be left out with -pred"),
        (["-pred", "none"], "-pred must be an existing folder, got none"),
        (["-d", "8", "-c", "3d_fullres"], "dataset 8 was not found"),
        (
            ["-d", "7", "-c", "3d_fullres", "-f", "4"],
            "run: |train it with nnUNetv2_train Dataset007_Shells 3d_fullres 4",
        ),
        (
            ["-d", "7", "-c", "3d_fullres", "-tr", "Other"],
            "train it with nnUNetv2_train Dataset007_Shells 3d_fullres 0",
        ),
        (["-d", "7", "-c", "3d_fullres", "-baseline", "Other"], "or leave out -baseline"),
    ],
)
def test_wrong_options_in_one_line(nnunet, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    said = error_of(capsys, *options, "-o", "report.html")
    assert any(part in said for part in message.split("|"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("report.pdf", "must be a file that ends in .html"), ("none/report.html", "must lie in an existing folder")],
)
def test_a_page_that_cannot_be_written(folders, tmp_path, capsys, name, message):
    assert message in error_of(capsys, "-pred", folders / "thin", "-o", tmp_path / name)


def test_folders_that_do_not_fit_in_one_line(folders, tmp_path, capsys):
    output = ["-o", tmp_path / "report.html"]
    thin = ["-pred", folders / "thin"]
    said = error_of(capsys, *thin, "-ref", folders / "thick_reference", *output)
    assert "must have the voxels of" in said
    (tmp_path / "empty").mkdir()
    assert "must hold files that end in .nii.gz" in error_of(capsys, *thin, "-ref", tmp_path / "empty", *output)
    assert "must hold files that end in .nii.gz" in error_of(
        capsys, "-pred", tmp_path / "empty", *output, "-djfile", folders / "thin" / "dataset.json"
    )
    assert "name the dataset's with -djfile" in error_of(capsys, "-pred", folders / "baseline", *output)
    write(tmp_path / "scans" / "other_0000.nii.gz", np.zeros((24, 20, 18), np.float32))
    assert "no scan in" in error_of(capsys, *thin, "-i", tmp_path / "scans", *output)
    assert not (tmp_path / "report.html").exists()

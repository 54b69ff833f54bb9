"""SMORE, the learnt initialisation: its cases are the ones that stage 1 is trained on, if they are there and whole."""

import json

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from workspace import log_of

from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.smore.export import STORE_NAME

pytestmark = pytest.mark.slow

ISOTROPIC, THICK = 1, 2
FACTOR = 4


@pytest.fixture(scope="module")
def prepared(nnunet):
    """A thick-slice dataset whose truth is known."""
    nnunet.write_phantom(ISOTROPIC)
    nnunet.simulate(ISOTROPIC, THICK, factor=FACTOR)
    nnunet.prepare(THICK)
    return nnunet


@pytest.fixture(scope="module")
def smore(prepared):
    """Folder of the trained SMORE."""
    return prepared.train("SMORETrainer", THICK)


@pytest.fixture(scope="module")
def trained(prepared, smore):
    """All three trainings."""
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        prepared.train(trainer, THICK)
    return prepared


def preprocessed(workspace):
    return workspace.plans(THICK).parent / "nnUNetPlans_3d_fullres"


def test_training_and_validation_cases_are_interpolated(prepared, smore):
    lr = nnUNetDatasetBlosc2(str(preprocessed(prepared)))
    fine = nnUNetDatasetBlosc2(str(smore / STORE_NAME))
    assert fine.identifiers == lr.identifiers
    for identifier in lr.identifiers:
        image, labels, _, properties = fine.load_case(identifier)
        channels, slices, *plane = lr.load_case(identifier)[0].shape
        assert image.shape == (channels, FACTOR * slices, *plane)
        assert labels.shape == (1, FACTOR * slices, *plane)
        assert sorted(properties["class_locations"]) == [1, 2]
    assert json.loads((smore / f"{STORE_NAME}.json").read_text())["trainer"] == "SMORETrainer"
    assert f"6 cases interpolated by SMORE are in {smore / STORE_NAME}" in log_of(smore)


def test_training_is_logged_in_nnunets_way(smore):
    log = log_of(smore)
    assert "psnr" in log
    assert "Pseudo dice" in log
    assert (smore / "checkpoint_final.pth").is_file()


def test_the_report_compares_with_the_true_volumes(smore):
    report = json.loads((smore / "smore_report.json").read_text())
    (validation_cases,) = report["cases"].values()
    scores = report["comparisons"]["true HR"]
    assert validation_cases == 2
    assert list(scores) == ["B-spline + nearest", "B-spline + signed distance", "SMORE"]
    # after four steps it is still close to the interpolation that it starts as
    assert scores["SMORE"]["psnr"] == pytest.approx(scores["B-spline + nearest"]["psnr"], abs=2)
    assert scores["SMORE"]["dice"] > 0.5
    assert "true HR (n=2)" in log_of(smore)


def test_a_second_export_writes_nothing(prepared, smore):
    before = {file.name: file.stat().st_mtime_ns for file in (smore / STORE_NAME).iterdir()}
    prepared.train("SMORETrainer", THICK, "--val")
    assert {file.name: file.stat().st_mtime_ns for file in (smore / STORE_NAME).iterdir()} == before


def test_stage_1_is_trained_on_smores_cases(trained, smore):
    log = log_of(trained.fold("SelfSRTrainer", THICK))
    assert f"interpolated cases: {smore / STORE_NAME} (SMORE)" in log
    assert "B-spline" not in log.split("compared with")[0]
    assert not interpolated_folder(preprocessed(trained), FACTOR).exists()


def test_stage_2_follows(trained):
    stage_1, stage_2 = (trained.fold(trainer, THICK) for trainer in ("SelfSRTrainer", "REHRSegTrainer"))
    assert f"stage 1: {stage_1}" in log_of(stage_2)
    assert len(list((stage_2 / "validation_hr").glob("*.nii.gz"))) == 2


def test_smore_does_not_segment(prepared, smore, tmp_path):
    images = prepared.raw / prepared.dataset(THICK) / "imagesTr"
    with pytest.raises(NotImplementedError, match="predict with -tr REHRSegTrainer"):
        prepared.predict(images, tmp_path, THICK, trainer="SMORETrainer")


def test_training_goes_on_where_it_was(prepared, smore):
    """A finished training that is continued exports again with the same weights."""
    case = next((smore / STORE_NAME).glob("*.pkl"))
    before = case.stat().st_mtime_ns
    prepared.train("SMORETrainer", THICK, "--c")
    assert case.stat().st_mtime_ns == before


def test_lengths_belong_together(prepared, smore):
    """Of SMORE's two runs the one of the same length is taken, else the base class's."""
    short = prepared.train("SMORETrainer_1epoch", THICK)
    same = log_of(prepared.train("SelfSRTrainer_1epoch", THICK))
    other = log_of(prepared.train("SelfSRTrainer_5epochs", THICK))
    assert f"interpolated cases: {short / STORE_NAME} (SMORE)" in same
    assert f"interpolated cases: {smore / STORE_NAME} (SMORE)" in other


def test_incomplete_cases_are_not_used_and_the_log_says_how_to_mend_them(trained, smore):
    """Last: damages SMORE's cases."""
    case = sorted((smore / STORE_NAME).glob("*_seg.b2nd"))[0]
    case.unlink()
    fold = trained.train("SelfSRTrainer", THICK)
    log = log_of(fold)
    command = f"nnUNetv2_train {trained.dataset(THICK)} 3d_fullres 0 -tr SMORETrainer -p tiny --val"
    assert f"WARNING: SMORE's cases are not used: {case} is missing; run: {command}" in log
    folder = interpolated_folder(preprocessed(trained), FACTOR)
    assert f"interpolated cases: {folder} (B-spline, labels by signed distance)" in log
    assert len(nnUNetDatasetBlosc2(str(folder)).identifiers) == 6
    trained.train("SMORETrainer", THICK, "--val")
    assert case.is_file()


def test_regions_and_an_ignore_label(prepared):
    """Every case's first slice is not annotated."""
    import SimpleITK as sitk

    raw = prepared.copy_dataset(THICK, 3, "Regions", truth=True)
    for file in raw.glob("labelsTr/*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image[:, :, 0] = 3
        sitk.WriteImage(image, str(file))
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "both": [1, 2], "ellipsoid": [2], "ignore": 3}
    dataset["regions_class_order"] = [1, 2]
    (raw / "dataset.json").write_text(json.dumps(dataset))
    prepared.prepare(3)
    cases = nnUNetDatasetBlosc2(str(prepared.train("SMORETrainer", 3) / STORE_NAME))
    for identifier in cases.identifiers:
        labels = np.asarray(cases.load_case(identifier)[1][:])
        assert (labels[0, :FACTOR] == 3).all()
        assert not (labels[0, FACTOR:] == 3).any()
    assert "(SMORE)" in log_of(prepared.train("SelfSRTrainer", 3))


def load_cases(folder):
    """Data and labels of every case of a folder."""
    dataset = nnUNetDatasetBlosc2(str(folder))
    return {key: [np.array(array[:]) for array in dataset.load_case(key)[:2]] for key in dataset.identifiers}


def test_its_images_can_be_the_pseudo_hr_images(trained, smore):
    """Another source of the images makes the cases anew; labels and U stay the network's."""
    stage_1 = trained.train("SelfSRTrainer", THICK)
    before, fine = load_cases(stage_1 / "pseudo_hr"), load_cases(smore / STORE_NAME)
    with trained.changed_plans(THICK) as change:
        export = {"image": "smore", "back_projection_steps": 0}
        change.plans["configurations"]["3d_fullres"]["rehrseg"]["self_sr"]["export"] = export
        change.write()
        trained.train("SelfSRTrainer", THICK, "--val")
    after = load_cases(stage_1 / "pseudo_hr")
    for key, (data, labels) in before.items():
        np.testing.assert_array_equal(after[key][0][:-1], fine[key][0])
        np.testing.assert_array_equal(after[key][0][-1], data[-1])
        np.testing.assert_array_equal(after[key][1], labels)
        assert not np.array_equal(after[key][0][:-1], data[:-1])


def test_smores_images_need_smore(trained, smore):
    """Refused before training and by the export, which keeps the cases; never other images than the manifest says."""
    cases = trained.fold("SelfSRTrainer", THICK) / "pseudo_hr"
    before = {file.name: file.stat().st_mtime_ns for file in cases.iterdir()}
    hidden = smore.parent.with_name("hidden")
    with trained.changed_plans(THICK) as change:
        change.plans["configurations"]["3d_fullres"]["rehrseg"]["self_sr"]["export"] = {"image": "smore"}
        change.write()
        smore.parent.rename(hidden)
        try:
            for option in ("--val", "--c"):
                with pytest.raises(FileNotFoundError, match="SMORE of this fold is not finished; run: nnUNetv2_train "):
                    trained.train("SelfSRTrainer", THICK, option)
        finally:
            hidden.rename(smore.parent)
    assert {file.name: file.stat().st_mtime_ns for file in cases.iterdir()} == before

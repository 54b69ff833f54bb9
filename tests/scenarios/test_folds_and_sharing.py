"""Five folds of nnU-Net's dataset with regions: best configuration, ensembles, postprocessing, zip files."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import integration_datasets
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from workspace import assert_same_field_of_view

pytestmark = pytest.mark.slow

NUMBER, FACTOR, FOLDS = 997, 4, tuple("01234")
TRAINERS = ("nnUNetTrainer", "REHRSegTrainer")
ALL_FOLDS = "crossval_results_folds_0_1_2_3_4"


@pytest.fixture(scope="module")
def trained(nnunet, source):
    """Baseline, stage 1 and stage 2 of five folds, with the validation's probabilities."""
    integration_datasets.write_thick_hippocampus(nnunet, source, phantoms=5)
    integration_datasets.build(NUMBER)
    nnunet.prepare(NUMBER)
    for fold in FOLDS:
        for trainer in ("nnUNetTrainer", "SelfSRTrainer", "REHRSegTrainer"):
            nnunet.train(trainer, NUMBER, "--npz", fold=fold)
    return nnunet


@pytest.fixture(scope="module")
def best(trained):
    """What nnUNetv2_find_best_configuration writes about the baseline, REHRSeg and their ensemble."""
    flags = ("-p", "tiny", "-c", "3d_fullres", "-tr", *TRAINERS, "-np", 1)
    trained.command("nnUNetv2_find_best_configuration", NUMBER, *flags)
    return json.loads((trained.results / trained.dataset(NUMBER) / "inference_information.json").read_text())


@pytest.fixture(scope="module")
def images(trained, tmp_path_factory):
    """Two images to predict."""
    folder = tmp_path_factory.mktemp("images")
    for file in sorted((trained.raw / trained.dataset(NUMBER) / "imagesTr").iterdir())[:2]:
        shutil.copy(file, folder)
    return folder


@pytest.fixture(scope="module")
def predicted(trained, images, tmp_path_factory):
    """Predictions of folds 0 and 3 with probabilities: `baseline`, `lr` and `hr` of both, `hr_0` and `hr_3` of each."""
    base = tmp_path_factory.mktemp("predicted")
    option = "--save_probabilities"
    trained.predict(images, base / "baseline", NUMBER, option, trainer="nnUNetTrainer", folds="03")
    trained.predict(images, base / "lr", NUMBER, option, folds="03")
    trained.predict_hr(images, base / "hr", NUMBER, option, folds="03")
    for fold in "03":
        trained.predict_hr(images, base / f"hr_{fold}", NUMBER, option, folds=fold)
    return base


def read(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def segmentations(folder):
    files = sorted(folder.glob("*.nii.gz"))
    assert files
    return files


def same_grid(one, other):
    np.testing.assert_allclose(one.GetOrigin(), other.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(one.GetSpacing(), other.GetSpacing(), atol=1e-5)
    np.testing.assert_allclose(one.GetDirection(), other.GetDirection(), atol=1e-6)
    assert one.GetSize() == other.GetSize()


def test_every_fold_starts_from_its_own_baseline_and_stage_1(trained):
    for fold in FOLDS:
        folder = trained.fold("REHRSegTrainer", NUMBER, fold=fold)
        log = "\n".join(file.read_text() for file in folder.glob("training_log_*.txt"))
        assert f"training starts from {trained.fold('nnUNetTrainer', NUMBER, fold=fold)}" in log
        assert f"stage 1: {trained.fold('SelfSRTrainer', NUMBER, fold=fold)}" in log


def test_best_configuration_compares_and_ensembles_all_cases(trained, best):
    dataset = trained.results / trained.dataset(NUMBER)
    models = [f"{trainer}__tiny__3d_fullres" for trainer in TRAINERS]
    ensemble = "___".join(["ensemble", *models, "0_1_2_3_4"])
    assert set(best["all_results"]) == {*models, ensemble}
    cases = {file.name for file in (trained.raw / trained.dataset(NUMBER) / "labelsTr").iterdir()}
    for folder, name in (
        *((dataset / model / ALL_FOLDS, model) for model in models),
        (dataset / "ensembles" / ensemble, ensemble),
    ):
        summary = json.loads((folder / "summary.json").read_text())
        assert {Path(case["prediction_file"]).name for case in summary["metric_per_case"]} == cases
        assert set(summary["mean"]) == {"(1, 2)", "1"}
        assert summary["foreground_mean"]["Dice"] == best["all_results"][name]
    chosen = best["best_model_or_ensemble"]
    assert chosen["result_on_crossval_pre_pp"] == max(best["all_results"].values())
    assert Path(chosen["postprocessing_file"]).is_file()
    commands = (dataset / "inference_instructions.txt").read_text()
    for model in chosen["selected_model_or_models"]:
        assert f"-tr {model['trainer']} -c 3d_fullres -p tiny" in commands


def test_probabilities_of_the_validation_are_those_of_the_thick_slices(trained):
    """One npz per case, on the grid of the segmentation beside it: what ensembling needs."""
    for fold in FOLDS:
        validation = trained.fold("REHRSegTrainer", NUMBER, fold=fold) / "validation"
        for file in segmentations(validation):
            stem = file.name.removesuffix(".nii.gz")
            with np.load(validation / f"{stem}.npz") as probabilities:
                assert probabilities["probabilities"].shape == (2, *read(file).shape)


@pytest.mark.parametrize("folders", [("baseline", "lr"), ("hr_0", "hr_3")])
def test_ensemble_is_the_mean_of_the_probabilities_on_the_same_grid(trained, predicted, tmp_path, folders):
    inputs = [predicted / folder for folder in folders]
    trained.command("nnUNetv2_ensemble", "-i", *inputs, "-o", tmp_path / "out", "-np", 1)
    files = segmentations(tmp_path / "out")
    assert [f.name for f in files] == [f.name for f in segmentations(inputs[0])]
    for file in files:
        stem = file.name.removesuffix(".nii.gz")
        probabilities = [np.load(folder / f"{stem}.npz")["probabilities"] for folder in inputs]
        mean = np.mean(probabilities, axis=0, dtype=np.float32)
        expected = np.where(mean[0] > 0.5, 2, 0)  # regions_class_order of the dataset: 2, 1
        expected[mean[1] > 0.5] = 1
        np.testing.assert_array_equal(read(file), expected)
        for folder in inputs:
            same_grid(sitk.ReadImage(str(file)), sitk.ReadImage(str(folder / file.name)))


def test_determined_postprocessing_is_applied_to_thick_and_thin_slices(trained, best, predicted, tmp_path):
    flags = ("-p", "tiny", "-c", "3d_fullres", "-tr", "REHRSegTrainer", "-np", 1, "--disable_ensembling")
    trained.command("nnUNetv2_find_best_configuration", NUMBER, *flags)
    crossval = trained.fold("REHRSegTrainer", NUMBER).parent / ALL_FOLDS
    functions, options = pickle.loads((crossval / "postprocessing.pkl").read_bytes())
    for grid in ("lr", "hr"):
        arguments = ("-i", predicted / grid, "-o", tmp_path / grid, "-np", 1)
        trained.command("nnUNetv2_apply_postprocessing", *arguments, "-pp_pkl_file", crossval / "postprocessing.pkl")
        for file in segmentations(predicted / grid):
            expected = read(file)
            for function, kwargs in zip(functions, options, strict=True):
                expected = function(expected, **kwargs)
            np.testing.assert_array_equal(read(tmp_path / grid / file.name), expected)
            same_grid(sitk.ReadImage(str(tmp_path / grid / file.name)), sitk.ReadImage(str(file)))


def test_postprocessing_removes_a_speck_from_an_hr_prediction_and_keeps_its_grid(trained, predicted, images, tmp_path):
    shutil.copytree(predicted / "hr", tmp_path / "specked")
    for file in segmentations(tmp_path / "specked"):
        image = sitk.ReadImage(str(file))
        labels = np.zeros_like(sitk.GetArrayFromImage(image))
        labels[2:9, 4:9, 4:9], labels[-1, -1, -1] = 1, 2
        specked = sitk.GetImageFromArray(labels)
        specked.CopyInformation(image)
        sitk.WriteImage(specked, str(file))
    steps = ([remove_all_but_largest_component_from_segmentation], [{"labels_or_regions": (1, 2)}])
    (tmp_path / "steps.pkl").write_bytes(pickle.dumps(steps))
    arguments = ("-i", tmp_path / "specked", "-o", tmp_path / "out", "-pp_pkl_file", tmp_path / "steps.pkl", "-np", 1)
    trained.command("nnUNetv2_apply_postprocessing", *arguments)
    for file in segmentations(tmp_path / "out"):
        assert np.count_nonzero(read(file)) == 7 * 5 * 5
        image = sitk.ReadImage(str(images / file.name.replace(".nii.gz", "_0000.nii.gz")))
        assert_same_field_of_view(image, sitk.ReadImage(str(file)), factor=FACTOR)


@pytest.fixture(scope="module")
def zip_file(trained, tmp_path_factory):
    """The folds 0 and 3 of stage 2, exported."""
    file = tmp_path_factory.mktemp("zip") / "model.zip"
    flags = ("-c", "3d_fullres", "-tr", "REHRSegTrainer", "-p", "tiny", "-f", 0, 3)
    trained.command("nnUNetv2_export_model_to_zip", "-d", NUMBER, "-o", file, *flags)
    return file


def test_a_shared_model_is_stage_2_alone(zip_file):
    names = zipfile.ZipFile(zip_file).namelist()
    assert not [name for name in names if "SelfSRTrainer" in name or "nnUNetTrainer" in name]
    assert len([name for name in names if name.endswith("checkpoint_final.pth")]) == 2


@pytest.mark.parametrize("others", ["empty", "unset"])
def test_a_shared_model_predicts_the_same(trained, predicted, images, zip_file, tmp_path, monkeypatch, others):
    """In a results folder of its own, without raw and preprocessed data."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    if others == "unset":
        monkeypatch.delenv("nnUNet_raw")
        monkeypatch.delenv("nnUNet_preprocessed")
    trained.command("nnUNetv2_install_pretrained_model_from_zip", zip_file)
    lr = trained.predict(images, tmp_path / "lr", NUMBER, folds="03")
    hr = trained.predict_hr(images, tmp_path / "hr", NUMBER, folds="03")
    for folder, before in ((lr, predicted / "lr"), (hr, predicted / "hr")):
        files = segmentations(folder)
        assert [file.name for file in files] == [file.name for file in segmentations(before)]
        for file in files:
            np.testing.assert_array_equal(read(file), read(before / file.name))
            same_grid(sitk.ReadImage(str(file)), sitk.ReadImage(str(before / file.name)))
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        assert not list((tmp_path / name).iterdir())

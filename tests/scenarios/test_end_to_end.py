"""The main path through nnU-Net's own commands on a tiny phantom, trainings and predictions with spawned workers."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from report_page import read_page
from short_runs import PROGRESS
from workspace import assert_same_field_of_view, environment, log_of, threads, workspace

from rehrseg_nnunet.cli.trainers import trainers_folder
from rehrseg_nnunet.config.rehrseg import change_segmentation, load_config
from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.evaluation.upsampling import upsample_folder

pytestmark = pytest.mark.slow

FACTOR = 4
CASES = 6
ISOTROPIC, THICK, REGIONS = 1, 2, 3


@pytest.fixture(scope="module")
def nnunet(tmp_path_factory):
    """A thick-slice phantom dataset, planned and preprocessed, and the plans of the isotropic one it comes from."""
    with workspace(tmp_path_factory.mktemp("nnunet"), threads=False) as folders:
        folders.write_phantom(ISOTROPIC, cases=CASES)
        folders.simulate(ISOTROPIC, THICK, factor=FACTOR)
        with threads():  # all of it is nnU-Net's
            folders.plan(ISOTROPIC)
            folders.prepare(THICK)
        yield folders


@pytest.fixture
def in_threads():
    """No spawned workers: others of these tests have them."""
    with threads():
        yield


@pytest.fixture(scope="module")
def trained(nnunet):
    """Baseline, stage 1 and stage 2 of fold 0, each of the stages with its page."""
    with environment(**{"REHRSEG_REPORT": "1", PROGRESS: "1"}):
        with threads():
            nnunet.train("nnUNetTrainer", THICK)
        for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
            nnunet.train(trainer, THICK)
    return nnunet


def test_stage_2_before_stage_1_names_the_command(nnunet):
    if nnunet.fold("SelfSRTrainer", THICK).exists():
        pytest.fail("this test must run before stage 1 is trained")
    command = f"nnUNetv2_train {nnunet.dataset(THICK)} 3d_fullres 0 -tr SelfSRTrainer -p tiny"
    with pytest.raises(FileNotFoundError, match=command):
        nnunet.train("REHRSegTrainer", THICK)


def test_stage_1_writes_one_whole_pseudo_hr_case_per_training_case(trained):
    stage_1 = trained.fold("SelfSRTrainer", THICK)
    training = json.loads((trained.plans(THICK).parent / "splits_final.json").read_text())[0]["train"]
    assert sorted(file.stem for file in (stage_1 / "pseudo_hr").glob("*.pkl")) == sorted(training)
    manifest = json.loads((stage_1 / "pseudo_hr.json").read_text())
    assert (manifest["made_with"]["factor"], manifest["fold"], manifest["plans_name"]) == (FACTOR, 0, "tiny")
    report = json.loads((stage_1 / "self_sr_report.json").read_text())
    assert set(report["comparisons"]) == {"simulated along y", "simulated along x", "true HR"}
    assert list(stage_1.glob("pseudo_hr_*.png"))


def test_stage_2_starts_from_the_baseline_at_the_lower_rate(trained):
    log = log_of(trained.fold("REHRSegTrainer", THICK))
    assert f"training starts from {trained.fold('nnUNetTrainer', THICK) / 'checkpoint_final.pth'}" in log
    assert "initial learning rate 0.005" in log  # the demo preset's


def test_the_model_folder_says_how_to_build_its_hr_head(trained):
    """The plans that nnU-Net keeps with a model have every setting: defaults of another version do not matter."""
    planned, kept = (
        PlansManager(str(file)).get_configuration("3d_fullres").configuration
        for file in (trained.plans(THICK), trained.fold("REHRSegTrainer", THICK).parent / "plans.json")
    )
    config = change_segmentation(load_config(planned), {"lr_weight": 1})  # what null means
    assert kept["rehrseg"] == config.model_dump(mode="json")
    assert kept["rehrseg"]["segmentation"]["hr_head"].keys() == HRHeadConfig.model_fields.keys()
    assert planned["rehrseg"] != kept["rehrseg"]
    assert load_config(kept) == config


def test_validation_is_nnunets_own_and_the_hr_files_cover_the_same_field_of_view(trained):
    folders = [trained.fold(trainer, THICK) for trainer in ("REHRSegTrainer", "nnUNetTrainer")]
    summaries = [json.loads((folder / "validation" / "summary.json").read_text()) for folder in folders]
    names = [[Path(case["prediction_file"]).name for case in s["metric_per_case"]] for s in summaries]
    assert names[0] == names[1]
    for file in (folders[0] / "validation").glob("*.nii.gz"):
        hr = sitk.ReadImage(str(folders[0] / "validation_hr" / file.name))
        assert_same_field_of_view(sitk.ReadImage(str(file)), hr, factor=FACTOR)


def test_trainings_end_with_a_page_on_request(trained):
    stage_1, stage_2 = (trained.fold(trainer, THICK) for trainer in ("SelfSRTrainer", "REHRSegTrainer"))
    assert all((fold / "progress.png").stat().st_size for fold in (stage_1, stage_2))
    validation = sorted(file.name.removesuffix(".nii.gz") for file in (stage_2 / "validation_hr").glob("*.nii.gz"))
    page = read_page(stage_2 / "report.html")
    assert sorted(page.cases) == validation
    assert page.columns[:5] == ["case", "fold", "Dice", "HD95 (mm)", "NSD"]
    assert "nnUNetTrainer, signed distance" in page.text  # the baseline was trained without --npz
    assert {"Stage 1: SelfSRTrainer, fold 0", "Training"} <= set(page.headings)
    assert len(page.pictures("webp")) == len(validation)
    assert "Stage 1: SelfSRTrainer, fold 0" in read_page(stage_1 / "report.html").headings
    assert not read_page(stage_1 / "report.html").cases
    for file in (stage_1 / "report.html", stage_2 / "report.html"):
        assert str(trained.base.resolve()) not in file.read_text()
        assert f"to look at: {file}" in log_of(file.parent)


def test_both_predict_commands(trained, tmp_path):
    images = trained.raw / trained.dataset(THICK) / "imagesTr"
    lr, hr = trained.predict(images, tmp_path / "lr", THICK), trained.predict_hr(images, tmp_path / "hr", THICK)
    files = sorted(lr.glob("*.nii.gz"))
    assert len(files) == CASES
    for file in files:
        assert_same_field_of_view(sitk.ReadImage(str(file)), sitk.ReadImage(str(hr / file.name)), factor=FACTOR)


@pytest.mark.usefixtures("in_threads")
def test_training_goes_on_where_it_was(trained):
    folder = trained.fold("REHRSegTrainer", THICK)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["logging"]["lrs"][0] == pytest.approx(0.005)
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_final.kept")
    torch.save(
        {**checkpoint, "current_epoch": 1, "logging": {k: v[:1] for k, v in checkpoint["logging"].items()}},
        folder / "checkpoint_latest.pth",
    )
    trained.train("REHRSegTrainer", THICK, "--c")
    resumed = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert resumed["logging"]["lrs"] == pytest.approx(checkpoint["logging"]["lrs"])
    assert not (folder / "checkpoint_latest.pth").exists()
    (folder / "checkpoint_final.kept").unlink()


def test_stage_1_export_is_not_done_twice(trained):
    case = next((trained.fold("SelfSRTrainer", THICK) / "pseudo_hr").glob("*.pkl"))
    before = case.stat().st_mtime_ns
    trained.train("SelfSRTrainer", THICK, "--val")
    assert case.stat().st_mtime_ns == before


def test_self_sr_does_not_segment(trained, tmp_path):
    images = trained.raw / trained.dataset(THICK) / "imagesTr"
    with pytest.raises(NotImplementedError, match="predict with -tr REHRSegTrainer"):
        trained.predict(images, tmp_path, THICK, trainer="SelfSRTrainer")


def test_hr_prediction_of_a_stock_model_is_what_its_probabilities_give(trained, tmp_path, caplog):
    images = trained.raw / trained.dataset(THICK) / "imagesTr"
    one_phase, model = "--disable_tta", {"trainer": "nnUNetTrainer"}
    with caplog.at_level("INFO"):
        hr = trained.predict_hr(images, tmp_path / "hr", THICK, one_phase, **model)
    assert "nnUNetTrainer has no HR head" in caplog.text
    lr = trained.predict(images, tmp_path / "lr", THICK, one_phase, "--save_probabilities", **model)
    plans = PlansManager(str(trained.plans(THICK)))
    dataset_json = json.loads((trained.raw / trained.dataset(THICK) / "dataset.json").read_text())
    upsample_folder(
        lr,
        tmp_path / "upsampled",
        method="logits",
        factor=FACTOR,
        axis=0,
        reader=plans.image_reader_writer_class(),
        label_manager=plans.get_label_manager(dataset_json),
        dataset_json=dataset_json,
    )
    files = sorted(hr.glob("*.nii.gz"))
    assert len(files) == CASES
    for file in files:
        predicted, upsampled, thick = (sitk.ReadImage(str(f / file.name)) for f in (hr, tmp_path / "upsampled", lr))
        assert_same_field_of_view(thick, predicted, factor=FACTOR)
        labels, expected = (sitk.GetArrayFromImage(image) for image in (predicted, upsampled))
        assert (labels != expected).mean() < 1e-3  # logits travel in float16
        assert (labels != np.repeat(sitk.GetArrayFromImage(thick), FACTOR, axis=0)).mean() > 1e-3


def test_stage_1_of_another_factor_is_refused(trained):
    with trained.changed_plans(THICK) as change:
        change.plans["configurations"]["3d_fullres"]["rehrseg"]["factor"] = 2
        change.write()
        with pytest.raises(ValueError, match=r"must fit the plans \(factor 2"):
            trained.train("REHRSegTrainer", THICK)


@pytest.mark.parametrize("trainer", ["SelfSRTrainer", "REHRSegTrainer"])
def test_unsupported_configurations_are_refused_before_anything_is_written(nnunet, trainer):
    before = sorted(nnunet.results.rglob("*"))
    with pytest.raises(NotImplementedError, match="2d"):
        nnunet.train(trainer, THICK, plans="nnUNetPlans", configuration="2d")
    with pytest.raises(ValueError, match="overwrite_target_spacing"):
        nnunet.train(trainer, ISOTROPIC, plans="nnUNetPlans")
    assert sorted(nnunet.results.rglob("*")) == before


@pytest.mark.usefixtures("in_threads")
def test_regions_and_ignore_label(nnunet):
    """Overlapping regions, and every case's first slice not annotated."""
    raw = nnunet.copy_dataset(THICK, REGIONS, "Regions")
    for file in raw.glob("labelsTr/*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image[:, :, 0] = 3
        sitk.WriteImage(image, str(file))
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "both": [1, 2], "ellipsoid": [2], "ignore": 3}
    dataset["regions_class_order"] = [1, 2]
    (raw / "dataset.json").write_text(json.dumps(dataset))
    nnunet.prepare(REGIONS)
    with nnunet.changed_plans(REGIONS) as save:
        save.plans["configurations"]["3d_fullres"]["rehrseg"]["segmentation"]["exact_pair_probability"] = 0.5
        save.write()
        stage_1, stage_2 = (nnunet.train(trainer, REGIONS) for trainer in ("SelfSRTrainer", "REHRSegTrainer"))
    case = next((stage_1 / "pseudo_hr").glob("*.pkl")).stem
    labels = nnUNetDatasetBlosc2(str(stage_1 / "pseudo_hr"), [case]).load_case(case)[1][:]
    assert (labels[0, :FACTOR] == 3).all()
    assert not (labels[0, FACTOR:] == 3).any()
    summary = json.loads((stage_2 / "validation" / "summary.json").read_text())
    assert len(summary["mean"]) == 2
    assert list((stage_2 / "validation_hr").glob("*.nii.gz"))


def test_trainer_modules_have_names_of_their_own():
    """They become top-level modules when nnU-Net imports them, so no other package may have their names."""
    names = [file.stem for file in trainers_folder().glob("*.py") if file.stem != "__init__"]
    assert names
    assert all(name.startswith("rehrseg_") for name in names)

"""nnU-Net's four integration datasets: plain labels, ignore label, regions, regions and ignore label.

    pytest tests/scenarios/test_integration_datasets.py --source nnUNet_raw/Dataset004_Hippocampus

runs them on real data. The sparse annotation of dataset 996 keeps one plane per axis of each volume, 998 ignores the
whole second label.
"""

import json
import shutil
from types import SimpleNamespace

import integration_datasets
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from workspace import assert_same_field_of_view, log_of

pytestmark = pytest.mark.slow

FACTOR = 4
# what summary.json lists, the labels of a segmentation, the ignore label
EXPECTED = {
    996: SimpleNamespace(scored={"(1, 2)", "1"}, labels={0, 1, 2}, ignore=3),
    997: SimpleNamespace(scored={"(1, 2)", "1"}, labels={0, 1, 2}, ignore=None),
    998: SimpleNamespace(scored={"1"}, labels={0, 1}, ignore=2),
    999: SimpleNamespace(scored={"1", "2"}, labels={0, 1, 2}, ignore=None),
}


@pytest.fixture(scope="module")
def thick(nnunet, source):
    """Dataset 4 with thick slices."""
    integration_datasets.write_thick_hippocampus(nnunet, source, phantoms=5)
    return nnunet


@pytest.fixture(scope="module", params=sorted(EXPECTED))
def number(request, thick):
    """One of the four datasets, planned, preprocessed and trained in both stages."""
    integration_datasets.build(request.param)
    verify_dataset_integrity(str(thick.raw / thick.dataset(request.param)), num_processes=1)
    thick.prepare(request.param)
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        thick.train(trainer, request.param)
    return request.param


@pytest.fixture(scope="module")
def images(thick, tmp_path_factory):
    """Two images to predict."""
    folder = tmp_path_factory.mktemp("images")
    for file in sorted((thick.raw / thick.dataset(4) / "imagesTr").iterdir())[:2]:
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("trainer", ["SelfSRTrainer", "REHRSegTrainer"])
def test_every_logged_loss_is_finite(thick, number, trainer):
    fold = thick.fold(trainer, number)
    logging = torch.load(fold / "checkpoint_final.pth", weights_only=False)["logging"]
    for key in ("train_losses", "val_losses", "ema_fg_dice", *(("psnr", "ssim") if "psnr" in logging else ())):
        assert len(logging[key]) == 2
        assert np.isfinite(logging[key]).all(), f"{key}: {logging[key]}"
    terms = [line for line in log_of(fold).splitlines() if "loss terms" in line]
    assert len(terms) == (2 if trainer == "REHRSegTrainer" else 0)
    assert not any("nan" in line for line in terms)


def test_pseudo_labels_are_ignored_where_nothing_was_annotated_and_nowhere_else(thick, number):
    expected, stage_1 = EXPECTED[number], thick.fold("SelfSRTrainer", number)
    cases = sorted(file.stem for file in (stage_1 / "pseudo_hr").glob("*.pkl"))
    assert len(cases) == len(json.loads((thick.plans(number).parent / "splits_final.json").read_text())[0]["train"])
    plans = json.loads(thick.plans(number).read_text())
    preprocessed = thick.plans(number).parent / plans["configurations"]["3d_fullres"]["data_identifier"]
    for case in cases:
        own = nnUNetDatasetBlosc2(str(preprocessed), [case]).load_case(case)[1][:]
        pseudo = nnUNetDatasetBlosc2(str(stage_1 / "pseudo_hr"), [case]).load_case(case)[1][:]
        nearest = np.repeat(own, FACTOR, axis=1)
        special = [-1] if expected.ignore is None else [-1, expected.ignore]
        for value in special:
            np.testing.assert_array_equal(pseudo == value, nearest == value)
        assert set(np.unique(pseudo)) <= expected.labels | set(special)
        if number == 996:  # three planes of the volume
            assert 0 < (pseudo != 3).mean() < 0.5


def test_summary_lists_what_dataset_json_lists(thick, number):
    fold = thick.fold("REHRSegTrainer", number)
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == EXPECTED[number].scored
    validated = json.loads((thick.plans(number).parent / "splits_final.json").read_text())[0]["val"]
    for folder in ("validation", "validation_hr"):
        assert sorted(f.name.split(".")[0] for f in (fold / folder).glob("*.nii.gz")) == sorted(validated)


def test_both_predict_commands(thick, number, images, tmp_path):
    lr = thick.predict(images, tmp_path / "lr", number)
    hr = thick.predict_hr(images, tmp_path / "hr", number)
    files = sorted(lr.glob("*.nii.gz"))
    assert len(files) == 2
    for file in files:
        image = sitk.ReadImage(str(images / file.name.replace(".nii.gz", "_0000.nii.gz")))
        thick_labels, thin_labels = sitk.ReadImage(str(file)), sitk.ReadImage(str(hr / file.name))
        assert thick_labels.GetSize() == image.GetSize()
        assert_same_field_of_view(image, thin_labels, factor=FACTOR)
        for labels in (thick_labels, thin_labels):
            assert set(np.unique(sitk.GetArrayFromImage(labels))) <= EXPECTED[number].labels


def test_the_stage_1_report_counts_annotated_voxels_only(thick, number):
    """Nearest neighbour is a good guess where the thick slices are annotated; elsewhere it has no label at all."""
    report = json.loads((thick.fold("SelfSRTrainer", number) / "self_sr_report.json").read_text())
    assert set(report["comparisons"]) == {"simulated along y", "simulated along x", "true HR"}
    for methods in report["comparisons"].values():
        assert all(np.isfinite(value) for row in methods.values() for value in row.values())
        assert methods["B-spline + nearest"]["dice"] > 0.5

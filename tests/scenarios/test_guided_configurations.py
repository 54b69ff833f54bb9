"""A guided network in what nnU-Net has besides: 3d_lowres, ResEnc, regions, an ignore label, -f all and --val."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from paired_phantom import write_usual_dataset
from workspace import log_of

from rehrseg_nnunet.guided.guided_network import is_guided
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT

pytestmark = pytest.mark.slow

SCANS, LOWRES, CONTROL = 1, "3d_lowres", "GuidedTrainer_randomKeeper"
IGNORE = 3
CASES = 5


@pytest.fixture(scope="module")
def planned(nnunet):
    """Labels 1 and 2 as regions, of which the outer rows are not annotated; residual encoders, half the resolution."""
    folder = nnunet.raw / f"Dataset{SCANS:03d}_Scans"
    write_usual_dataset(folder, cases=CASES)
    for file in (folder / "labelsTr").iterdir():
        image = sitk.ReadImage(str(file))
        labels = sitk.GetArrayFromImage(image)
        labels[:, :2] = IGNORE
        changed = sitk.GetImageFromArray(labels)
        changed.CopyInformation(image)
        sitk.WriteImage(changed, str(file))
    dataset = json.loads((folder / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "whole": [1, 2], "core": [2], "ignore": IGNORE}
    dataset["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(dataset))
    name = nnunet.plan(SCANS, planner="nnUNetPlannerResEncM")
    file = nnunet.plans(SCANS, name)
    plans = json.loads(file.read_text())
    fullres = plans["configurations"]["3d_fullres"]
    plans["configurations"][LOWRES] = {
        "data_identifier": f"{name}_{LOWRES}",
        "inherits_from": "3d_fullres",
        "spacing": [fullres["spacing"][0], *(2 * spacing for spacing in fullres["spacing"][1:])],
    }
    file.write_text(json.dumps(plans))
    nnunet.preprocess(SCANS, plans=name, configurations=(LOWRES,))
    nnunet.rehrseg("plan", "-d", SCANS, "-p", name, "--method", "guidance", "--preset", "demo", "-o", "tiny")
    return nnunet


@pytest.fixture(scope="module")
def trained(planned):
    """With all cases."""
    return planned.train(CONTROL, SCANS, configuration=LOWRES, fold="all")


def regions_of(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def test_it_trains_and_validates_on_every_case(planned, trained):
    assert "built by this dataset's plans" in log_of(trained)
    assert np.isfinite(json.loads((trained / "validation" / "summary.json").read_text())["foreground_mean"]["Dice"])
    predicted = sorted(trained.glob("validation/*.nii.gz"))
    assert len(predicted) == CASES
    assert not any((regions_of(file) == IGNORE).any() for file in predicted)
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(str(trained.parent), ("all",), FINAL_CHECKPOINT)
    assert is_guided(predictor.network)
    assert isinstance(predictor.network, ResidualEncoderUNet)


def test_val_repeats_the_validation(planned, trained):
    files = {file.name: file.read_bytes() for file in trained.glob("validation/*.nii.gz")}
    shutil.rmtree(trained / "validation")
    planned.train(CONTROL, SCANS, "--val", configuration=LOWRES, fold="all")
    assert {file.name: file.read_bytes() for file in trained.glob("validation/*.nii.gz")} == files


def test_both_commands_predict(planned, trained, tmp_path):
    """nnU-Net's what the validation has; ours the regions on the scan's own grid, at all slice phases."""
    source, first = tmp_path / "scans", min(trained.glob("validation/*.nii.gz"))
    source.mkdir()
    for file in (planned.raw / planned.dataset(SCANS) / "imagesTr").glob(f"{first.name.removesuffix('.nii.gz')}_*"):
        shutil.copy(file, source)
    model = {"trainer": CONTROL, "configuration": LOWRES, "folds": ("all",)}
    stock = planned.predict(source, tmp_path / "stock", SCANS, **model)
    assert (regions_of(stock / first.name) == regions_of(first)).mean() > 0.999  # probabilities near 0.5 may round
    ours = planned.predict_hr(source, tmp_path / "ours", SCANS, "--grid", "native", **model)
    assert regions_of(ours / first.name).shape == regions_of(first).shape
    assert set(np.unique(regions_of(ours / first.name))) <= {0, 1, 2}

"""Configurations beside 3d_fullres: a thick-slice 3d_lowres works, an isotropic one, a cascade and 2d are refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from workspace import assert_same_field_of_view

from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.self_sr.export import STORE_NAME

pytestmark = pytest.mark.slow

ISOTROPIC, THICK = 1, 2
LOWRES = "3d_lowres"
CASCADE = "3d_cascade_fullres"
TRAINERS = ("SelfSRTrainer", "REHRSegTrainer")


def add_lowres_and_cascade(file: Path, *, spacing_mm, patch_size) -> None:
    """As add_lowres_and_cascade.py of nnU-Net's integration tests does it."""
    plans = json.loads(file.read_text())
    architecture = copy.deepcopy(plans["configurations"]["3d_fullres"]["architecture"])
    architecture["arch_kwargs"] |= {
        "n_stages": 3,
        "features_per_stage": [16, 32, 48],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "strides": [[1, 1, 1], [1, 2, 2], [1, 2, 2]],
        "kernel_sizes": [[1, 3, 3], [1, 3, 3], [3, 3, 3]],
    }
    plans["configurations"][LOWRES] = {
        "data_identifier": f"{plans['plans_name']}_{LOWRES}",
        "inherits_from": "3d_fullres",
        "patch_size": list(patch_size),
        "median_image_size_in_voxels": [float(size) for size in patch_size],
        "spacing": list(spacing_mm),
        "architecture": architecture,
        "next_stage": CASCADE,
    }
    plans["configurations"][CASCADE] = {"inherits_from": "3d_fullres", "previous_stage": LOWRES}
    file.write_text(json.dumps(plans))


@pytest.fixture(scope="module")
def planned(nnunet):
    """Thick slices (4, 1, 1) with a 3d_lowres of (4, 2, 2), an isotropic dataset with one of (2, 2, 2)."""
    nnunet.write_phantom(ISOTROPIC)
    nnunet.simulate(ISOTROPIC, THICK)
    for number, spacing, patch_size in ((ISOTROPIC, (2, 2, 2), (8, 12, 12)), (THICK, (4, 2, 2), (4, 12, 12))):
        name = nnunet.plan(number)
        add_lowres_and_cascade(nnunet.plans(number, name), spacing_mm=spacing, patch_size=patch_size)
    nnunet.preprocess(THICK, configurations=("3d_fullres", LOWRES))
    nnunet.rehrseg("plan", "-d", THICK, "--preset", "demo", "-o", "tiny")
    return nnunet


@pytest.fixture(scope="module")
def trained(planned):
    """Both stages of fold 0 in 3d_lowres."""
    for trainer in TRAINERS:
        planned.train(trainer, THICK, configuration=LOWRES)
    return planned


def test_a_compiled_network_and_loss(trained, monkeypatch):
    """As nnU-Net compiles on a GPU, but for the backend."""
    compiled, compile_it = [], torch.compile

    def compile_eagerly(module, **options):
        compiled.append(type(module).__name__)
        return compile_it(module, **options, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr(nnUNetTrainer, "_do_i_compile", lambda self: True)
    fold = trained.train("REHRSegTrainer_1epoch", THICK, configuration=LOWRES)
    assert compiled[0].startswith("HR")  # the network
    assert len(compiled) == 3
    assert compiled[1] == compiled[2]  # nnU-Net's Dice, for validation and for stage 2's losses
    validated = {file.name for file in (fold / "validation").glob("*.nii.gz")}
    assert validated
    assert {file.name for file in (fold / "validation_hr").glob("*.nii.gz")} == validated


def lowres_configuration(nnunet):
    return json.loads(nnunet.plans(THICK).read_text())["configurations"][LOWRES]


def test_the_preset_reaches_a_3d_lowres_with_its_own_network(planned):
    assert lowres_configuration(planned)["architecture"]["arch_kwargs"]["features_per_stage"] == [4, 8, 12]
    assert "rehrseg" not in lowres_configuration(planned)  # inherited


def test_stage_1_makes_thin_slices_of_low_resolution_cases(trained):
    run = trained.fold("SelfSRTrainer", THICK, configuration=LOWRES)
    manifest = json.loads((run / "pseudo_hr.json").read_text())
    assert (manifest["made_with"]["factor"], manifest["configuration"]) == (2, LOWRES)
    store = CaseStore(run, STORE_NAME)
    entries = [json.loads(file.read_text()) for file in store.entries_folder.glob("*.json")]
    assert len(entries) == 4
    assert {tuple(entry["shape"]) for entry in entries} == {(2, 8, 12, 12)}  # image and U, 2 * 4 slices
    assert not trained.fold("SelfSRTrainer", THICK).exists()


def test_stage_2_writes_predictions_for_the_next_stage(trained):
    run = trained.fold("REHRSegTrainer", THICK, configuration=LOWRES)
    cases = {file.name for file in (run / "validation").glob("*.nii.gz")}
    assert len(cases) == 2
    assert {file.name for file in (run / "validation_hr").glob("*.nii.gz")} == cases
    next_stage = run.parent / "predicted_next_stage" / CASCADE
    # nnU-Net's own thick-slice predictions on the grid of 3d_fullres
    stems = {name.removesuffix(".nii.gz") for name in cases}
    assert {file.name for file in next_stage.iterdir()} == {f"{stem}.b2nd" for stem in stems}


def test_training_is_the_same_without_a_next_stage(trained):
    """`next_stage` is about what is written after training; without it the validation is the same."""
    run = trained.fold("REHRSegTrainer", THICK, configuration=LOWRES)
    before = {file: file.read_bytes() for file in (run / "validation_hr").glob("*.nii.gz")}
    with trained.changed_plans(THICK) as change:
        del change.plans["configurations"][LOWRES]["next_stage"]
        change.write()
        for trainer in TRAINERS:
            trained.train(trainer, THICK, "--val", configuration=LOWRES)
    assert {file: file.read_bytes() for file in (run / "validation_hr").glob("*.nii.gz")} == before


def test_both_predict_commands(trained, tmp_path):
    images = trained.raw / trained.dataset(THICK) / "imagesTr"
    lr = trained.predict(images, tmp_path / "lr", THICK, configuration=LOWRES)
    hr = trained.predict_hr(images, tmp_path / "hr", THICK, configuration=LOWRES)
    files = sorted(lr.glob("*.nii.gz"))
    assert len(files) == 6
    for file in files:
        scan = sitk.ReadImage(str(images / file.name.replace(".nii.gz", "_0000.nii.gz")))
        for folder, factor in ((lr, 1), (hr, 2)):  # (4, 2, 2) has r = 2, in plane the scan's own pixels come back
            segmentation = sitk.ReadImage(str(folder / file.name))
            assert_same_field_of_view(scan, segmentation, factor=factor)
            assert set(np.unique(sitk.GetArrayFromImage(segmentation))) <= {0, 1, 2}


def test_stage_2_trains_the_low_resolution_network(trained):
    run = trained.fold("REHRSegTrainer", THICK, configuration=LOWRES)
    checkpoint = torch.load(run / "checkpoint_final.pth", weights_only=False)
    for key in ("train_losses", "val_losses"):
        assert np.isfinite(checkpoint["logging"][key]).all()
    weights = checkpoint["network_weights"]
    assert weights["encoder.stages.1.0.convs.0.conv.weight"].shape[:2] == (8, 4)
    assert weights["decoder.seg_layers.1.hr_head.first.weight"].shape[1] == 4


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    ("number", "configuration", "error", "reason"),
    [
        (ISOTROPIC, LOWRES, ValueError, r"2 x 2 x 2 mm.*-overwrite_target_spacing"),
        (ISOTROPIC, CASCADE, NotImplementedError, "does not support cascades"),
        (THICK, CASCADE, NotImplementedError, "does not support cascades.*train 3d_fullres"),
        (THICK, "2d", NotImplementedError, "2d configurations are not supported"),
    ],
)
def test_the_others_are_refused_before_anything_is_written(planned, trainer, number, configuration, error, reason):
    before = sorted([*planned.results.rglob("*"), *planned.preprocessed.rglob("*")])
    with pytest.raises(error, match=reason):
        planned.train(trainer, number, plans="nnUNetPlans", configuration=configuration)
    assert sorted([*planned.results.rglob("*"), *planned.preprocessed.rglob("*")]) == before


def one_line_error(capsys, *command) -> str:
    capsys.readouterr()
    assert main([str(part) for part in command]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_plan_refuses_an_isotropic_dataset_with_every_configurations_reason(planned, capsys):
    error = one_line_error(capsys, "plan", "-d", ISOTROPIC, "-o", "mine")
    for configuration in ("2d", "3d_fullres", LOWRES, CASCADE):
        assert f" {configuration}: " in error
    assert not planned.plans(ISOTROPIC, "mine").exists()


@pytest.mark.parametrize("configuration", ["2d", CASCADE])
def test_hr_prediction_says_that_there_is_no_such_model(planned, capsys, tmp_path, configuration):
    command = [
        "predict",
        "-i",
        tmp_path,
        "-o",
        tmp_path / "out",
        "-d",
        THICK,
        "-p",
        "tiny",
        "-c",
        configuration,
        "-device",
        "cpu",
    ]
    assert f"no training REHRSegTrainer__tiny__{configuration} in " in one_line_error(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_preprocessed_data_of_older_versions_of_nnunet(planned):
    """They are npz files, the interpolated and the pseudo-HR cases blosc2 ones."""
    plans = json.loads(planned.plans(THICK).read_text())
    fullres = plans["configurations"]["3d_fullres"]
    source = planned.plans(THICK).parent / fullres["data_identifier"]
    target = source.with_name("older")
    target.mkdir()
    stored = nnUNetDatasetBlosc2(str(source))
    for identifier in stored.identifiers:
        image, labels, _, properties = stored.load_case(identifier)
        nnUNetDatasetNumpy.save_case(image[:], labels[:], properties, str(target / identifier))
    plans["plans_name"] = fullres["data_identifier"] = "older"
    planned.plans(THICK, "older").write_text(json.dumps(plans))
    for trainer in TRAINERS:
        run = planned.train(trainer, THICK, plans="older")
        assert (run / "checkpoint_final.pth").is_file()
    assert {file.suffix for file in interpolated_folder(target, 4).iterdir()} == {".b2nd", ".pkl"}

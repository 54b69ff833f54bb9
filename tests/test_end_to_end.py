"""Everything through nnU-Net's own commands, in one process, on a tiny phantom."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.cli.trainers import ensure_trainer_path, trainers_folder
from rehrseg_nnunet.phantom import write_phantom_dataset

pytestmark = pytest.mark.slow

FACTOR = 4
THICK = "Dataset002_Phantom_r4z"
REGIONS = "Dataset003_Regions"
CASES = 6
SLICES, EDGE = 16, 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """nnU-Net folders with a thick-slice phantom dataset, planned and preprocessed, and plans "tiny" of the preset."""
    patch = pytest.MonkeyPatch()
    base = tmp_path_factory.mktemp("nnunet")
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (base / name).mkdir()
        patch.setenv(name, str(base / name))
    patch.setenv("nnUNet_extTrainer", os.environ.get("nnUNet_extTrainer", ""))
    ensure_trainer_path()
    patch.setenv("nnUNet_n_proc_DA", "1")
    torch_threads = torch.get_num_threads()
    write_phantom_dataset(base / "nnUNet_raw" / "Dataset001_Phantom", cases=CASES, shape=(SLICES, EDGE, EDGE), seed=1)
    assert main(["simulate", "-d", "1", "-o", "2", "--factor", str(FACTOR)]) == 0
    extract_fingerprints([1, 2], num_processes=1, check_dataset_integrity=True)
    plan_experiments([1, 2])
    preprocess([2], configurations=["3d_fullres"], num_processes=[1])
    assert main(["plan", "-d", "2", "--preset", "demo", "-o", "tiny"]) == 0
    patch.setenv("nnUNet_n_proc_DA", "0")
    _shorten(patch)
    yield base
    patch.undo()
    torch.set_num_threads(torch_threads)


def _shorten(patch):
    """Two epochs of two steps, the rest as it is."""
    initialize = nnUNetTrainer.initialize

    def short(self):
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 2, 1
        initialize(self)

    patch.setattr(nnUNetTrainer, "initialize", short)


def train(monkeypatch, trainer, *options, plans="tiny", configuration="3d_fullres", dataset="2"):
    arguments = ["nnUNetv2_train", dataset, configuration, "0", "-tr", trainer, "-p", plans, "-device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", arguments)
    run_training_entry()


def fold(base, trainer, plans="tiny", dataset=THICK):
    return base / "nnUNet_results" / dataset / f"{trainer}__{plans}__3d_fullres" / "fold_0"


@pytest.fixture(scope="module")
def trained(tiny):
    """Baseline, stage 1 and stage 2 of fold 0."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for trainer in ("nnUNetTrainer", "SelfSRTrainer", "REHRSegTrainer"):
            train(monkeypatch, trainer)
    return tiny


def log_of(folder):
    return "\n".join(file.read_text() for file in sorted(folder.glob("training_log_*.txt")))


def test_stage_2_before_stage_1_names_the_command(tiny, monkeypatch):
    if fold(tiny, "SelfSRTrainer").exists():
        pytest.fail("this test must run before stage 1 is trained")
    with pytest.raises(FileNotFoundError, match=f"nnUNetv2_train {THICK} 3d_fullres 0 -tr SelfSRTrainer -p tiny"):
        train(monkeypatch, "REHRSegTrainer")


def test_stage_1_writes_one_whole_pseudo_hr_case_per_training_case(trained):
    stage_1 = fold(trained, "SelfSRTrainer")
    training = json.loads((trained / "nnUNet_preprocessed" / THICK / "splits_final.json").read_text())[0]["train"]
    assert sorted(file.stem for file in (stage_1 / "pseudo_hr").glob("*.pkl")) == sorted(training)
    manifest = json.loads((stage_1 / "pseudo_hr.json").read_text())
    assert (manifest["factor"], manifest["fold"], manifest["plans_name"]) == (FACTOR, 0, "tiny")
    report = json.loads((stage_1 / "self_sr_report.json").read_text())
    assert set(report["comparisons"]) == {"simulated along y", "simulated along x", "true HR"}
    assert list(stage_1.glob("pseudo_hr_*.png"))


def test_stage_2_starts_from_the_baseline_at_the_lower_rate(trained):
    log = log_of(fold(trained, "REHRSegTrainer"))
    assert f"training starts from {fold(trained, 'nnUNetTrainer') / 'checkpoint_final.pth'}" in log
    assert "initial learning rate 0.005" in log  # the demo preset's


def test_validation_is_nnunets_own_and_the_hr_files_cover_the_same_field_of_view(trained):
    validation = fold(trained, "REHRSegTrainer")
    summary = json.loads((validation / "validation" / "summary.json").read_text())
    stock = json.loads((fold(trained, "nnUNetTrainer") / "validation" / "summary.json").read_text())
    names = [[Path(case["prediction_file"]).name for case in s["metric_per_case"]] for s in (summary, stock)]
    assert names[0] == names[1]
    for file in (validation / "validation").glob("*.nii.gz"):
        hr = sitk.ReadImage(str(validation / "validation_hr" / file.name))
        assert_same_field_of_view(sitk.ReadImage(str(file)), hr)


def assert_same_field_of_view(lr, hr):
    assert hr.GetSize() == (lr.GetSize()[0], lr.GetSize()[1], FACTOR * lr.GetSize()[2])
    for edges in ([-0.5] * 3, [s - 0.5 for s in lr.GetSize()]):
        point = lr.TransformContinuousIndexToPhysicalPoint(edges)
        expected = [*edges[:2], -0.5 if edges[2] < 0 else hr.GetSize()[2] - 0.5]
        np.testing.assert_allclose(hr.TransformPhysicalPointToContinuousIndex(point), expected, atol=1e-3)


def test_both_predict_commands(trained, monkeypatch, tmp_path):
    images = trained / "nnUNet_raw" / THICK / "imagesTr"
    flags = ["-i", str(images), "-d", "2", "-c", "3d_fullres", "-f", "0", "-tr", "REHRSegTrainer", "-p", "tiny"]
    flags += ["-device", "cpu", "-npp", "0", "-nps", "0", "--disable_progress_bar"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *flags, "-o", str(tmp_path / "lr")])
    predict_entry_point()
    assert main(["predict", *flags, "-o", str(tmp_path / "hr")]) == 0
    files = sorted((tmp_path / "lr").glob("*.nii.gz"))
    assert len(files) == CASES
    for file in files:
        assert_same_field_of_view(sitk.ReadImage(str(file)), sitk.ReadImage(str(tmp_path / "hr" / file.name)))


def test_training_goes_on_where_it_was(trained, monkeypatch):
    folder = fold(trained, "REHRSegTrainer")
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert checkpoint["logging"]["lrs"][0] == pytest.approx(0.005)
    (folder / "checkpoint_final.pth").rename(folder / "checkpoint_final.kept")
    torch.save(
        {**checkpoint, "current_epoch": 1, "logging": {k: v[:1] for k, v in checkpoint["logging"].items()}},
        folder / "checkpoint_latest.pth",
    )
    train(monkeypatch, "REHRSegTrainer", "--c")
    resumed = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    assert resumed["logging"]["lrs"] == pytest.approx(checkpoint["logging"]["lrs"])
    assert not (folder / "checkpoint_latest.pth").exists()
    (folder / "checkpoint_final.kept").unlink()


def test_stage_1_export_is_not_done_twice(trained, monkeypatch):
    case = next((fold(trained, "SelfSRTrainer") / "pseudo_hr").glob("*.pkl"))
    before = case.stat().st_mtime_ns
    train(monkeypatch, "SelfSRTrainer", "--val")
    assert case.stat().st_mtime_ns == before


def test_self_sr_does_not_segment(trained, monkeypatch, tmp_path):
    images = trained / "nnUNet_raw" / THICK / "imagesTr"
    flags = ["-i", str(images), "-o", str(tmp_path), "-d", "2", "-c", "3d_fullres", "-f", "0", "-device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_predict", *flags, "-tr", "SelfSRTrainer", "-p", "tiny"])
    with pytest.raises(NotImplementedError, match="predict with -tr REHRSegTrainer"):
        predict_entry_point()


def test_hr_prediction_of_a_stock_model_is_refused(trained, capsys, tmp_path):
    images = trained / "nnUNet_raw" / THICK / "imagesTr"
    flags = ["-i", str(images), "-o", str(tmp_path / "out"), "-d", "2", "-c", "3d_fullres", "-f", "0", "-p", "tiny"]
    assert main(["predict", *flags, "-tr", "nnUNetTrainer", "-device", "cpu"]) == 1
    error = capsys.readouterr().err
    assert "not trained by REHRSegTrainer" in error
    assert error.count("\n") == 1


def test_stage_1_of_another_factor_is_refused(trained, monkeypatch):
    file = trained / "nnUNet_preprocessed" / THICK / "tiny.json"
    original = file.read_text()
    plans = json.loads(original)
    plans["configurations"]["3d_fullres"]["rehrseg"]["factor"] = 2
    file.write_text(json.dumps(plans))
    try:
        with pytest.raises(ValueError, match=r"must fit the plans \(factor 2"):
            train(monkeypatch, "REHRSegTrainer")
    finally:
        file.write_text(original)


@pytest.mark.parametrize("trainer", ["SelfSRTrainer", "REHRSegTrainer"])
def test_unsupported_configurations_are_refused_before_anything_is_written(tiny, monkeypatch, trainer):
    results = tiny / "nnUNet_results"
    before = sorted(results.rglob("*"))
    with pytest.raises(NotImplementedError, match="2d"):
        train(monkeypatch, trainer, plans="nnUNetPlans", configuration="2d")
    monkeypatch.setattr(sys, "argv", ["nnUNetv2_train", "1", "3d_fullres", "0", "-tr", trainer, "-device", "cpu"])
    with pytest.raises(ValueError, match="overwrite_target_spacing"):
        run_training_entry()
    assert sorted(results.rglob("*")) == before


@pytest.fixture(scope="module")
def regions_with_ignore(tiny):
    """The thick-slice phantom with overlapping regions, and every case's first slice not annotated."""
    raw = tiny / "nnUNet_raw" / REGIONS
    shutil.copytree(tiny / "nnUNet_raw" / THICK, raw)
    for file in raw.glob("labelsTr/*.nii.gz"):
        image = sitk.ReadImage(str(file))
        image[:, :, 0] = 3
        sitk.WriteImage(image, str(file))
    dataset = json.loads((raw / "dataset.json").read_text())
    dataset["labels"] = {"background": 0, "both": [1, 2], "ellipsoid": [2], "ignore": 3}
    dataset["regions_class_order"] = [1, 2]
    (raw / "dataset.json").write_text(json.dumps(dataset))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("nnUNet_n_proc_DA", "1")
        extract_fingerprints([3], num_processes=1)
        plan_experiments([3])
        preprocess([3], configurations=["3d_fullres"], num_processes=[1])
    assert main(["plan", "-d", "3", "--preset", "demo", "-o", "tiny"]) == 0
    return tiny


def test_regions_and_ignore_label(regions_with_ignore, monkeypatch):
    for trainer in ("SelfSRTrainer", "REHRSegTrainer"):
        train(monkeypatch, trainer, dataset="3")
    stage_1 = fold(regions_with_ignore, "SelfSRTrainer", dataset=REGIONS)
    stage_2 = fold(regions_with_ignore, "REHRSegTrainer", dataset=REGIONS)
    case = next((stage_1 / "pseudo_hr").glob("*.pkl")).stem
    labels = nnUNetDatasetBlosc2(str(stage_1 / "pseudo_hr"), [case]).load_case(case)[1][:]
    assert (labels[0, :FACTOR] == 3).all()
    assert not (labels[0, FACTOR:] == 3).any()
    summary = json.loads((stage_2 / "validation" / "summary.json").read_text())
    assert len(summary["mean"]) == 2
    assert list((stage_2 / "validation_hr").glob("*.nii.gz"))


def test_trainers_are_found_from_a_wheel(tmp_path):
    """Builds the wheel, installs it without dependencies and lets nnU-Net look the trainers up through it."""
    repository = Path(__file__).parents[1]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(repository)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True)
    code = (
        "from rehrseg_nnunet.cli.trainers import ensure_trainer_path, trainers_folder; ensure_trainer_path();"
        "from rehrseg_nnunet.presets import preset_names; print(trainers_folder(), preset_names());"
        "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find;"
        "names = 'SelfSRTrainer REHRSegTrainer ContinuedBaselineTrainer REHRSegTrainer_10epochs'.split();"
        "print([find(name).__name__ for name in names])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "nnUNet_extTrainer": ""}
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=tmp_path
    ).stdout
    assert str(site) in output
    assert "'cpu', 'demo', 'paper'" in output
    assert "['SelfSRTrainer', 'REHRSegTrainer', 'ContinuedBaselineTrainer', 'REHRSegTrainer_10epochs']" in output


def test_trainer_modules_have_names_of_their_own():
    """They become top-level modules when nnU-Net imports them, so no other package may have their names."""
    names = [file.stem for file in trainers_folder().glob("*.py") if file.stem != "__init__"]
    assert names
    assert all(name.startswith("rehrseg_") for name in names)

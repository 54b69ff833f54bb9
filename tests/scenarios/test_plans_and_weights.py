"""ResEnc plans, other plans names, pretrained weights, --npz, --val and --disable_checkpointing."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from workspace import assert_same_field_of_view, environment, log_of

from benchmarks import cost
from rehrseg_nnunet.config import removed_settings
from rehrseg_nnunet.config.rehrseg import upgraded_plans
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.prediction import fold_validation
from rehrseg_nnunet.prediction.predictor import HRPredictor

pytestmark = pytest.mark.slow

ISOTROPIC, THICK, FACTOR = 1, 2, 4
STAGES = ("nnUNetTrainer", "SelfSRTrainer", "REHRSegTrainer")
RATE = 0.005  # learning_rate_from_trained of the plans
FINAL = "checkpoint_final.pth"


@pytest.fixture(scope="module")
def planned(nnunet):
    """Plans `tiny`, and `resenc` with the residual encoder on the same preprocessed data."""
    nnunet.write_phantom(ISOTROPIC, cases=5)
    nnunet.simulate(ISOTROPIC, THICK, factor=FACTOR)
    nnunet.prepare(THICK)
    name = nnunet.plan(THICK, planner="nnUNetPlannerResEncM")
    nnunet.rehrseg("plan", "-d", THICK, "-p", name, "--preset", "demo", "-o", "resenc")
    return nnunet


@pytest.fixture(scope="module")
def trained(planned):
    """Baseline, stage 1 and stage 2 of fold 0 with plans `tiny`."""
    for trainer in STAGES:
        planned.train(trainer, THICK)
    return planned


@pytest.fixture(scope="module")
def residual(trained):
    """The same with plans `resenc`, after stage 2 alone was refused."""
    command = f"nnUNetv2_train {trained.dataset(THICK)} 3d_fullres 0 -tr SelfSRTrainer -p resenc"
    with pytest.raises(FileNotFoundError, match=command):  # stage 1 of other plans does not count
        trained.train("REHRSegTrainer", THICK, plans="resenc")
    for trainer in STAGES:
        trained.train(trainer, THICK, plans="resenc")
    return trained


@pytest.fixture(scope="module")
def pretrained(trained):
    """Fold 1 from weights of fold 0, though it has a baseline of its own (a copy of fold 0's)."""
    shutil.copytree(trained.fold("nnUNetTrainer", THICK), trained.fold("nnUNetTrainer", THICK, fold="1"))
    for trainer, source in (("SelfSRTrainer", "SelfSRTrainer"), ("REHRSegTrainer", "nnUNetTrainer")):
        weights = trained.fold(source, THICK) / FINAL
        trained.train(trainer, THICK, "-pretrained_weights", weights, fold="1")
    return trained


@pytest.fixture(scope="module")
def thin(trained):
    """Quality mode: plans `thin` with exact pairs, stage 2 from scratch on the stage 1 of plans `tiny`."""
    trained.rehrseg("plan", "-d", THICK, "--preset", "demo", "--input", "thin", "-o", "thin")
    file = trained.plans(THICK, "thin")
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["rehrseg"]["segmentation"]["exact_pair_probability"] = 0.5
    file.write_text(json.dumps(plans))
    with environment(REHRSEG_SELF_SR=str(trained.fold("SelfSRTrainer", THICK))):
        trained.train("REHRSegTrainer", THICK, plans="thin")
    return trained


def trainer_with(nnunet, trainer, weights):
    """An untrained trainer of fold 2 that got weights as nnUNetv2_train gives them."""
    made = get_trainer_from_args(str(THICK), "3d_fullres", 2, trainer, "tiny", device=torch.device("cpu"))
    maybe_load_checkpoint(made, False, False, str(weights))
    return made


def weights_of(fold):
    return torch.load(fold / FINAL, weights_only=False)["network_weights"]


def voxels(folder):
    files = {f.name: sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted(folder.glob("*.nii.gz"))}
    assert files
    return files


def state(folder):
    """Content of every file below a folder."""
    return {file.relative_to(folder): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def assert_same_voxels(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_residual_encoders_go_through_both_stages(residual):
    plans = json.loads(residual.plans(THICK, "resenc").read_text())["configurations"]["3d_fullres"]
    assert plans["architecture"]["network_class_name"].endswith("ResidualEncoderUNet")
    fold = residual.fold("REHRSegTrainer", THICK, plans="resenc")
    baseline = residual.fold("nnUNetTrainer", THICK, plans="resenc")
    assert f"training starts from {baseline / FINAL}" in log_of(fold)
    stock, with_head = (set(weights_of(f)) for f in (baseline, fold))
    assert stock < with_head
    assert all(".seg_layers." in key for key in with_head - stock)
    manifest = json.loads((residual.fold("SelfSRTrainer", THICK, plans="resenc") / "pseudo_hr.json").read_text())
    assert manifest["plans_name"] == "resenc"


def test_residual_encoders_predict_on_both_grids(residual, tmp_path):
    images = residual.raw / residual.dataset(THICK) / "imagesTr"
    lr = residual.predict(images, tmp_path / "lr", THICK, plans="resenc")
    hr = residual.predict_hr(images, tmp_path / "hr", THICK, plans="resenc")
    assert voxels(lr).keys() == voxels(hr).keys()
    for file in lr.glob("*.nii.gz"):
        thick, thin = (sitk.ReadImage(str(folder / file.name)) for folder in (lr, hr))
        assert_same_field_of_view(thick, thin, factor=FACTOR)


def test_pretrained_weights_win_over_the_folds_baseline(pretrained):
    fold = pretrained.fold("REHRSegTrainer", THICK, fold="1")
    log = log_of(fold)
    assert "training starts from -pretrained_weights" in log
    assert f"initial learning rate {RATE}" in log
    assert "nnUNetTrainer__" not in log
    rates = torch.load(fold / FINAL, weights_only=False)["logging"]["lrs"]
    assert rates[0] == pytest.approx(RATE)


def test_the_continued_baseline_starts_as_stage_2_does(trained):
    """A fair comparison: from the same file and, by the plans, at the same learning rate."""
    trained.train("ContinuedBaselineTrainer", THICK)
    start = re.compile(r"training starts from (\S+) .*initial learning rate (\S+)")
    logs = (log_of(trained.fold(trainer, THICK)) for trainer in ("REHRSegTrainer", "ContinuedBaselineTrainer"))
    stage_2, continued = (start.search(log).groups() for log in logs)
    assert stage_2 == continued
    assert continued[1] == str(RATE)


def test_a_plain_checkpoint_gives_all_but_the_segmentation_layers(pretrained):
    source = pretrained.fold("nnUNetTrainer", THICK)
    made = trainer_with(pretrained, "REHRSegTrainer", source / FINAL)
    plain, own = weights_of(source), made.network.state_dict()
    assert plain.keys() < own.keys()
    kept = [key for key in plain if ".seg_layers." not in key]
    assert kept
    assert hash_weights({k: own[k] for k in kept}) == hash_weights({k: plain[k] for k in kept})
    fresh = [key for key in plain if ".seg_layers." in key and key.endswith("weight")]  # nnU-Net's rule
    assert not any(torch.equal(plain[key], own[key]) for key in fresh)


def test_stage_1_takes_all_weights_of_another_stage_1(pretrained):
    source = pretrained.fold("SelfSRTrainer", THICK)
    made = trainer_with(pretrained, "SelfSRTrainer", source / FINAL)
    assert hash_weights(made.network.state_dict()) == hash_weights(weights_of(source))
    trained = pretrained.fold("SelfSRTrainer", THICK, fold="1")
    manifest = json.loads((trained / "pseudo_hr.json").read_text())
    assert manifest["weights_sha256"] == hash_weights(weights_of(trained)) != hash_weights(weights_of(source))


@pytest.mark.parametrize(
    ("trainer", "source", "plans"),
    [
        ("REHRSegTrainer", "nnUNetTrainer", "resenc"),  # of other plans
        ("REHRSegTrainer", "SelfSRTrainer", "tiny"),
        ("SelfSRTrainer", "nnUNetTrainer", "tiny"),
    ],
)
def test_weights_of_another_network_are_refused_before_training(residual, trainer, source, plans):
    weights = residual.fold(source, THICK, plans=plans) / FINAL
    with pytest.raises(AssertionError, match=r"^Key \S+ is missing.*compatible with your network\.$"):
        residual.train(trainer, THICK, "-pretrained_weights", weights, fold="3")
    assert not list(residual.fold(trainer, THICK, fold="3").glob("*.pth"))


def test_val_of_stage_2_repeats_the_validation_without_stage_1(trained):
    """With --npz now, so the probabilities appear beside the same segmentations."""
    fold, stage_1 = trained.fold("REHRSegTrainer", THICK), trained.fold("SelfSRTrainer", THICK)
    folders = [fold / "validation", fold / "validation_hr"]
    before = [voxels(folder) for folder in folders]
    checkpoint = (fold / FINAL).read_bytes()
    assert not list(folders[0].glob("*.npz"))
    for folder in folders:
        shutil.rmtree(folder)
    aside = stage_1.rename(stage_1.with_name("aside"))
    try:
        trained.train("REHRSegTrainer", THICK, "--val", "--npz")
    finally:
        aside.rename(stage_1)
    for folder, segmentations in zip(folders, before, strict=True):
        assert_same_voxels(voxels(folder), segmentations)
    for name, segmentation in before[0].items():
        with np.load(folders[0] / name.replace(".nii.gz", ".npz")) as file:
            np.testing.assert_array_equal(file["probabilities"].argmax(0), segmentation)
    assert len(json.loads((folders[0] / "summary.json").read_text())["metric_per_case"]) == len(before[0])
    assert (fold / FINAL).read_bytes() == checkpoint


def add_removed_settings(plans, *, changed):
    """What an earlier version's plans have, in the block of 3d_fullres."""
    block = plans["configurations"]["3d_fullres"]["rehrseg"]
    block.setdefault("self_sr", {})["label_profile"] = "majority" if changed else "centre"
    block["self_sr"].setdefault("export", {})["keep_volume"] = changed
    block.setdefault("segmentation", {})["affinity_per_slice"] = changed


def warned_of_removed(caplog):
    return [record for record in caplog.records if record.name == removed_settings.__name__]


def test_a_finished_model_of_an_earlier_version_predicts_the_same(trained, tmp_path, caplog):
    images = trained.raw / trained.dataset(THICK) / "imagesTr"
    file = trained.fold("REHRSegTrainer", THICK).parent / "plans.json"
    original = file.read_text()
    stored = json.loads(original)
    add_removed_settings(stored, changed=True)
    for predict in (trained.predict, trained.predict_hr):
        new = predict(images, tmp_path / f"{predict.__name__}_new", THICK)
        removed_settings._warn.cache_clear()
        caplog.clear()
        file.write_text(json.dumps(stored))
        try:
            old = predict(images, tmp_path / f"{predict.__name__}_old", THICK)
        finally:
            file.write_text(original)
        assert len(warned_of_removed(caplog)) == 1
        assert_same_voxels(voxels(old), voxels(new))


@pytest.mark.parametrize(("stored", "source"), [("lr", "lr"), ("head", "head"), (None, "mean")])
def test_val_takes_thin_slices_from_where_predictions_of_the_model_do(trained, monkeypatch, stored, source):
    """Without the key the model is one of before it, whatever today's default is."""
    asked = []

    class Noted(HRPredictor):
        def __init__(self, *args, **options):
            asked.append(options["hr_from"])
            super().__init__(*args, **options)

    monkeypatch.setattr(fold_validation, "HRPredictor", Noted)
    file = trained.fold("REHRSegTrainer", THICK).parent / "plans.json"
    original = file.read_text()
    plans = json.loads(original)
    segmentation = plans["configurations"]["3d_fullres"]["rehrseg"]["segmentation"]
    assert segmentation.pop("hr_from") == "lr"
    if stored is not None:
        segmentation["hr_from"] = stored
    file.write_text(json.dumps(plans))
    try:
        trained.train("REHRSegTrainer", THICK, "--val")
    finally:
        file.write_text(original)
    assert asked == [source]


@pytest.mark.parametrize("trainer", ["SMORETrainer", "SelfSRTrainer", "REHRSegTrainer", "ContinuedBaselineTrainer"])
def test_training_takes_plans_of_an_earlier_version_unless_they_ask_for_what_is_gone(trained, trainer, caplog):
    def make():
        return get_trainer_from_args(str(THICK), "3d_fullres", 2, trainer, "tiny", device=torch.device("cpu"))

    removed_settings._warn.cache_clear()
    with trained.changed_plans(THICK) as save:
        add_removed_settings(save.plans, changed=False)
        save.write()
        made = make()
        made.initialize()
        assert not warned_of_removed(caplog)
        for plans in (made.plans_manager.plans, made.my_init_kwargs["plans"]):  # nnU-Net keeps both with the model
            assert upgraded_plans(plans) == plans
        add_removed_settings(save.plans, changed=True)
        save.write()
        with pytest.raises(ValueError, match=r"label_profile 'majority' is no setting since 0\.2\.0.*keep_volume"):
            make()


def test_val_of_stage_1_writes_the_missing_case_and_the_report(trained):
    fold = trained.fold("SelfSRTrainer", THICK)
    folder = fold / "pseudo_hr"
    before = state(folder)
    lost = sorted(folder.glob("*_seg.b2nd"))[0]
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    lost.unlink()
    (fold / "self_sr_report.json").unlink()
    trained.train("SelfSRTrainer", THICK, "--val", "--npz")
    rewritten = {file.name for file in folder.iterdir() if file.stat().st_mtime_ns != times[file]}
    case = lost.name.removesuffix("_seg.b2nd")
    assert rewritten == {f"{case}.b2nd", lost.name, f"{case}.pkl"}
    assert set(state(folder)) == set(before)
    assert state(folder)[Path(lost.name)] == before[Path(lost.name)]
    assert (fold / "self_sr_report.json").is_file()


@pytest.mark.parametrize("trainer", ["SelfSRTrainer", "REHRSegTrainer"])
def test_val_before_training_is_refused(planned, trainer):
    with pytest.raises(RuntimeError, match="training is not finished yet"):
        planned.train(trainer, THICK, "--val", fold="4")
    assert not [f for f in planned.fold(trainer, THICK, fold="4").iterdir() if f.suffix not in (".txt", ".json")]


def test_stage_1_without_checkpoints_keeps_the_pseudo_hr_cases_of_its_last_checkpoint(pretrained):
    fold = pretrained.fold("SelfSRTrainer", THICK, fold="1")
    names = ("pseudo_hr", "pseudo_hr_cases")
    kept = [fold / FINAL, fold / "pseudo_hr.json"]
    before = [state(fold / name) for name in names], [file.read_bytes() for file in kept]
    pretrained.train("SelfSRTrainer", THICK, "--disable_checkpointing", fold="1")
    assert ([state(fold / name) for name in names], [file.read_bytes() for file in kept]) == before
    assert "no pseudo-HR cases are written" in log_of(fold)


def test_the_export_of_a_saved_network_does_not_depend_on_checkpointing(pretrained):
    fold = pretrained.fold("SelfSRTrainer", THICK, fold="1")
    lost = sorted((fold / "pseudo_hr").glob("*.pkl"))[0]
    lost.unlink()
    pretrained.train("SelfSRTrainer", THICK, "--val", "--disable_checkpointing", fold="1")
    assert lost.is_file()


def test_stage_2_without_checkpoints_trains_and_validates(pretrained):
    fold = pretrained.train("REHRSegTrainer_5epochs", THICK, "--disable_checkpointing", fold="1")
    assert not list(fold.glob("*.pth"))
    assert voxels(fold / "validation").keys() == voxels(fold / "validation_hr").keys()


def test_thin_input_is_planned_by_nnunets_planner_for_thin_slices(thin):
    """As nnU-Net plans the isotropic dataset that the thick one was made from, but for the preset's width."""
    plans = json.loads(thin.plans(THICK, "thin").read_text())["configurations"]["3d_fullres"]
    planned = plans["rehrseg"]["segmentation"]["thin"]
    stock = json.loads(thin.plans(ISOTROPIC, thin.plan(ISOTROPIC)).read_text())["configurations"]["3d_fullres"]
    assert planned["patch_size"] == [stock["patch_size"][0] // FACTOR, *stock["patch_size"][1:]]
    assert planned["batch_size"] == stock["batch_size"]
    ours, theirs = (p["architecture"]["arch_kwargs"] for p in (planned, stock))
    assert ours["strides"] == theirs["strides"]
    assert ours["features_per_stage"] == [max(4, f // 4) for f in theirs["features_per_stage"]]
    thick = json.loads(thin.plans(THICK, "tiny").read_text())["configurations"]["3d_fullres"]
    assert {key: plans[key] for key in thick if key != "rehrseg"} == {k: v for k, v in thick.items() if k != "rehrseg"}


def test_thin_input_starts_from_scratch_and_keeps_its_network_with_the_model(thin):
    fold = thin.fold("REHRSegTrainer", THICK, plans="thin")
    assert "no baseline fits thin slices" in log_of(fold)
    assert torch.load(fold / FINAL, weights_only=False)["logging"]["lrs"][0] == pytest.approx(0.01)
    kept = json.loads((fold.parent / "plans.json").read_text())["configurations"]["3d_fullres"]
    planned = kept["rehrseg"]["segmentation"]["thin"]
    assert planned == {key: kept[key] for key in ("patch_size", "batch_size", "architecture")}
    assert json.loads((fold / "validation" / "summary.json").read_text())["metric_per_case"]


def test_thin_input_predicts_thick_slices_by_the_stock_command_and_thin_ones(thin, tmp_path):
    images = thin.raw / thin.dataset(THICK) / "imagesTr"
    lr = thin.predict(images, tmp_path / "lr", THICK, plans="thin")
    hr = thin.predict_hr(images, tmp_path / "hr", THICK, plans="thin")
    files = sorted(lr.glob("*.nii.gz"))
    assert files
    for file in files:
        thick, fine = (sitk.ReadImage(str(folder / file.name)) for folder in (lr, hr))
        assert thick.GetSize() == sitk.ReadImage(str(images / file.name.replace(".nii", "_0000.nii"))).GetSize()
        assert_same_field_of_view(thick, fine, factor=FACTOR)
    one_phase = thin.predict_hr(images, tmp_path / "one", THICK, "--disable_tta", plans="thin")
    fold = thin.fold("REHRSegTrainer", THICK, plans="thin")
    assert voxels(one_phase).keys() == voxels(hr).keys()
    validated = voxels(fold / "validation_hr")
    assert_same_voxels(validated, {name: voxels(hr)[name] for name in validated})


def test_thin_input_goes_on_from_another_network_of_thin_slices(thin):
    weights = thin.fold("REHRSegTrainer", THICK, plans="thin") / FINAL
    with environment(REHRSEG_SELF_SR=str(thin.fold("SelfSRTrainer", THICK))):
        fold = thin.train("REHRSegTrainer_1epoch", THICK, "-pretrained_weights", weights, plans="thin")
    assert "training starts from -pretrained_weights" in log_of(fold)
    assert f"initial learning rate {RATE}" in log_of(fold)
    with pytest.raises(AssertionError, match="compatible with your network"):
        trainer_with(thin, "REHRSegTrainer", weights)  # of plans `tiny`


@pytest.mark.parametrize("plans", ["tiny", "thin"])
def test_the_cost_of_a_step_is_measured_on_batches_like_the_loaders(thin, plans):
    settings = SimpleNamespace(d=str(THICK), c="3d_fullres", f=0, p=plans, device="cpu")
    trainer = cost._trainer(settings, cost.OURS)
    assert trainer.loss.lr_weight == {"tiny": 1, "thin": 1 / FACTOR}[plans]
    batch = cost._batch(trainer)
    assert np.isfinite(trainer.train_step(batch)["loss"])
    with environment(REHRSEG_SELF_SR=str(thin.fold("SelfSRTrainer", THICK))):
        trainer.open_pseudo_hr()
    loaded = next(trainer.get_dataloaders()[0])
    for found, expected in zip((batch["data"], *batch["target"]), (loaded["data"], *loaded["target"]), strict=True):
        assert found.shape == expected.shape
        assert found.is_floating_point() == expected.is_floating_point()

"""The variants of the paper's tables through nnU-Net's commands: what each of them trains with, and on what."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from workspace import log_of

from benchmarks.quality.runs import OWN_TRAINERS
from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.segmentation.loader import HRPatchLoader
from rehrseg_nnunet.segmentation.loss import REHRSegLoss
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.self_sr.loader import SelfSRLoader
from rehrseg_nnunet.smore.export import STORE_NAME

pytestmark = pytest.mark.slow

ISOTROPIC, THICK = 1, 2
ACQUIRED = "nnUNetPlans_3d_fullres"  # folder of the preprocessed LR cases
FACTOR = 4
BASIC = ["lr", "hr"]
# terms of the loss, their weight, whether U weights the LR loss
ROWS = {
    "pseudoDataOnly": (BASIC, 0.0, False),
    "withUncertainty": (BASIC, 0.0, True),
    "withDistillation": ([*BASIC, "affinity", "spatial"], 1.0, False),
    "MIMIC": ([*BASIC, "mimic"], 1.0, True),
    "IFVD": ([*BASIC, "ifvd"], 1.0, True),
    "lambda0_01": ([*BASIC, "affinity", "spatial"], 0.01, True),
}


@pytest.fixture(scope="module")
def prepared(nnunet):
    """A thick-slice dataset with a trained baseline."""
    nnunet.write_phantom(ISOTROPIC, cases=5)
    nnunet.simulate(ISOTROPIC, THICK, factor=FACTOR)
    nnunet.prepare(THICK)
    nnunet.train("nnUNetTrainer", THICK)
    return nnunet


@pytest.fixture(scope="module")
def stage_1(prepared):
    """Fold folder of the one stage 1 that all variants share."""
    return prepared.train("SelfSRTrainer", THICK)


@pytest.fixture(scope="module")
def smore(prepared, stage_1):
    """Fold folder of SMORE, trained after stage 1, which so does not use it."""
    return prepared.train("SMORETrainer", THICK)


@pytest.fixture
def watch(monkeypatch):
    """The steps of stage 2 (terms, total, U), and the folders that its HR training cases are read from."""
    seen = SimpleNamespace(steps=[], folders=set(), reading=False)
    forward, load_case = REHRSegLoss.forward, nnUNetDatasetBlosc2.load_case
    generate = HRPatchLoader.generate_train_batch

    def watched_forward(self, outputs, targets):
        before = self.components
        loss = forward(self, outputs, targets)
        if self.components is not before:
            others = PatchTargets(*targets[-len(PatchTargets._fields) :])
            seen.steps.append((self.components, loss.detach(), others.uncertainty))
            seen.strength = self.uncertainty_strength
        return loss

    def watched_load(self, identifier):
        if seen.reading and Path(self.source_folder).name != ACQUIRED:
            seen.folders.add(Path(self.source_folder))
        return load_case(self, identifier)

    def watched_generate(self):
        seen.reading = True
        try:
            return generate(self)
        finally:
            seen.reading = False

    monkeypatch.setattr(REHRSegLoss, "forward", watched_forward)
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", watched_load)
    monkeypatch.setattr(HRPatchLoader, "generate_train_batch", watched_generate)
    return seen


def assert_finished(workspace, folder):
    """From the fold's baseline to predictions on both grids."""
    baseline = workspace.fold("nnUNetTrainer", THICK) / "checkpoint_final.pth"
    assert f"training starts from {baseline}" in log_of(folder)
    for name in ("validation", "validation_hr"):
        assert len(list((folder / name).glob("*.nii.gz"))) == 1


@pytest.mark.parametrize(("variant", "row"), ROWS.items())
def test_each_variant_trains_with_its_own_loss_on_the_same_stage_1(prepared, stage_1, watch, variant, row):
    terms, weight, uses_uncertainty = row
    np.random.seed(1)  # noqa: NPY002 (nnU-Net's loaders draw from it); not true acquisitions alone
    folder = prepared.train(f"REHRSegTrainer_{variant}", THICK)
    assert len(watch.steps) == 4
    for components, loss, _ in watch.steps:
        assert list(components) == terms
        distilled = sum((value for name, value in components.items() if name not in BASIC), torch.tensor(0.0))
        torch.testing.assert_close(loss, components["lr"] + components["hr"] + weight * distilled)
    assert any(uncertainty.max() > 0 for *_, uncertainty in watch.steps)  # of a true acquisition it is 0
    assert watch.strength == (0.99 if uses_uncertainty else 0)
    assert watch.folders == {stage_1 / "pseudo_hr"}
    log = log_of(folder)
    assert f"REHRSegTrainer_{variant} sets, whatever the plans have: " in log
    assert f"stage 1: {stage_1 / 'checkpoint_final.pth'}" in log
    assert re.findall(r"(\w+) -?\d+\.\d+", log.rpartition("loss terms of the last step: ")[2].splitlines()[0]) == terms
    assert_finished(prepared, folder)


def test_without_changes_the_plans_settings_hold_and_nothing_is_logged(prepared, stage_1, watch):
    folder = prepared.train("REHRSegTrainer", THICK)
    assert [list(components) for components, *_ in watch.steps] == 4 * [[*BASIC, "affinity", "spatial"]]
    assert "whatever the plans have" not in log_of(folder)


def test_b_spline_cases_are_trained_on_without_a_stage_1(prepared, watch, monkeypatch, tmp_path):
    monkeypatch.setenv("REHRSEG_SELF_SR", str(tmp_path))  # stage 1 would be refused
    folder = prepared.train("REHRSegTrainer_pseudoDataBSpline", THICK)
    interpolated = interpolated_folder(prepared.plans(THICK).parent / ACQUIRED, FACTOR)
    assert watch.folders == {interpolated}
    assert_only_data(watch)
    assert f"pseudo-HR data: {interpolated} (B-spline" in log_of(folder)
    assert_finished(prepared, folder)


def test_smore_cases_are_trained_on_without_a_stage_1(prepared, smore, watch, monkeypatch, tmp_path):
    monkeypatch.setenv("REHRSEG_SELF_SR", str(tmp_path))
    folder = prepared.train("REHRSegTrainer_pseudoDataSMORE_1epoch", THICK)
    assert watch.folders == {smore / STORE_NAME}
    assert_only_data(watch)
    assert f"pseudo-HR data: {smore / STORE_NAME} (SMORE)" in log_of(folder)
    assert_finished(prepared, folder)


def assert_only_data(watch):
    for components, loss, uncertainty in watch.steps:
        assert list(components) == BASIC
        torch.testing.assert_close(loss, components["lr"] + components["hr"])
        assert (uncertainty == 0).all()
    assert watch.steps


def test_smore_cases_that_are_not_there_are_named_with_the_command(prepared, smore):
    hidden = smore.parent.with_name("hidden")
    smore.parent.rename(hidden)
    command = f"nnUNetv2_train {prepared.dataset(THICK)} 3d_fullres 0 -tr SMORETrainer -p tiny"
    try:
        with pytest.raises(FileNotFoundError, match=rf"SMORETrainer__.*is missing: SMORE of .*; run: {command}$"):
            prepared.train("REHRSegTrainer_pseudoDataSMORE", THICK)
    finally:
        hidden.rename(smore.parent)
    split = json.loads((prepared.plans(THICK).parent / "splits_final.json").read_text())[0]
    label = smore / STORE_NAME / f"{split['train'][0]}_seg.b2nd"
    content = label.read_bytes()
    label.write_bytes(content[:-1])
    try:
        with pytest.raises(ValueError, match=rf"bytes.*run: {command} --val$"):
            prepared.train("REHRSegTrainer_pseudoDataSMORE", THICK)
    finally:
        label.write_bytes(content)


def test_a_variant_of_a_length_takes_stage_1_of_that_length_and_predicts(prepared, stage_1, tmp_path):
    own = prepared.train("SelfSRTrainer_3epochs", THICK)
    folder = prepared.train("REHRSegTrainer_MIMIC_3epochs", THICK)
    assert f"stage 1: {own / 'checkpoint_final.pth'}" in log_of(folder)
    images = prepared.raw / prepared.dataset(THICK) / "imagesTr"
    for predict in (prepared.predict, prepared.predict_hr):
        output = predict(images, tmp_path / predict.__name__, THICK, trainer="REHRSegTrainer_MIMIC_3epochs")
        assert len(list(output.glob("*.nii.gz"))) == 5


@pytest.fixture
def benchmarks_trainers(monkeypatch):
    """nnU-Net finds the quality benchmark's own trainers too."""
    folders = os.pathsep.join([os.environ["nnUNet_extTrainer"], str(OWN_TRAINERS)])
    monkeypatch.setenv("nnUNet_extTrainer", folders)


def test_the_quality_benchmarks_bound_trains_on_the_true_volumes(prepared, stage_1, watch, benchmarks_trainers):
    fold = prepared.train("REHRSegTrainer_trueHRData", THICK)
    assert watch.folders == {fold / "true_hr"}
    assert all(not uncertainty.any() for _, _, uncertainty in watch.steps)
    assert [*watch.steps[0][0]] == [*BASIC, "affinity", "spatial"]
    assert_true_volumes(prepared, fold)


def test_the_quality_benchmarks_bound_of_stage_1_learns_from_the_true_volumes(
    prepared, stage_1, benchmarks_trainers, monkeypatch
):
    drawn, draw_pair = set(), SelfSRLoader.draw_pair

    def watched_draw(self, key, rng, **options):
        drawn.add((self.augment, tuple(self.axes), Path(self._data.source_folder)))
        return draw_pair(self, key, rng, **options)

    monkeypatch.setattr(SelfSRLoader, "draw_pair", watched_draw)
    fold = prepared.train("SelfSRTrainer_trueHRData", THICK)
    along_z, in_plane = (0,), {(1, 2), (2, 1)}
    assert {(axes, folder) for augment, axes, folder in drawn if augment} == {(along_z, fold / "true_hr")}
    assert {axes for augment, axes, _ in drawn if not augment} <= in_plane
    monkeypatch.setenv("REHRSEG_SELF_SR", str(fold))
    assert f"stage 1: {fold / 'checkpoint_final.pth'}" in log_of(prepared.train("REHRSegTrainer_1epoch", THICK))
    assert_true_volumes(prepared, fold)


def assert_true_volumes(workspace, fold):
    """The fold's training data are what `rehrseg simulate` kept."""
    cases = nnUNetDatasetBlosc2(str(fold / "true_hr"))
    truth = workspace.raw / workspace.dataset(THICK) / "labelsTrHR"
    assert cases.identifiers
    for identifier in cases.identifiers:
        data, labels, _, _ = cases.load_case(identifier)
        true_labels = sitk.GetArrayFromImage(sitk.ReadImage(str(truth / f"{identifier}.nii.gz")))
        assert data.shape == (1, *true_labels.shape)
        np.testing.assert_array_equal(labels[0], true_labels)

"""Which finished run a training builds on."""

import pytest
import torch

from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import FoldRun

VARIABLE = "TEST_COMPANION"
STAGE_1 = Companion("SelfSRTrainer", "stage 1 of this fold", variable=VARIABLE)
BASELINE = Companion("nnUNetTrainer", "the baseline of this fold")


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def own(tmp_path):
    return FoldRun("Dataset009_X", "REHRSegTrainer_10epochs", "my_plans", "3d_fullres", 0, tmp_path / "results")


def finish(run):
    run.folder.mkdir(parents=True)
    torch.save({"network_weights": {}}, run.final_checkpoint)
    return run


@pytest.mark.parametrize("companion", [STAGE_1, BASELINE])
def test_the_sibling_run_is_found_and_the_missing_one_has_its_command(own, companion):
    assert companion.find(own) is None
    command = rf"nnUNetv2_train Dataset009_X 3d_fullres 0 -tr {companion.trainer} -p my_plans$"
    with pytest.raises(
        FileNotFoundError, match=rf"checkpoint_final.pth is missing: {companion.role} .* run: {command}"
    ):
        companion.require(own)
    run = finish(own.sibling(companion.trainer))
    assert companion.find(own) == companion.require(own) == run


def test_the_variable_wins_and_must_name_a_finished_run(own, tmp_path, monkeypatch):
    finish(own.sibling("SelfSRTrainer"))
    elsewhere = finish(FoldRun("any", "SelfSRTrainer", "other", "3d_fullres", 3, tmp_path / "elsewhere"))
    monkeypatch.setenv(VARIABLE, str(elsewhere.folder))
    assert STAGE_1.find(own) == STAGE_1.require(own) == STAGE_1.chosen() == elsewhere
    assert BASELINE.chosen() is None
    monkeypatch.chdir(elsewhere.folder.parent)
    monkeypatch.setenv(VARIABLE, "fold_3")
    assert STAGE_1.require(own) == elsewhere
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{VARIABLE} must name a finished fold folder of SelfSRTrainer, but"):
        STAGE_1.require(own)


def test_a_chosen_folder_whose_name_says_nothing_is_refused(own, tmp_path, monkeypatch):
    folder = tmp_path / "copied" / "fold_0"
    folder.mkdir(parents=True)
    torch.save({}, folder / "checkpoint_final.pth")
    monkeypatch.setenv(VARIABLE, str(folder))
    with pytest.raises(ValueError, match=f"{VARIABLE}: a training's folder must be named <trainer>__<plans>"):
        STAGE_1.find(own)

"""nnU-Net's result folders, read and written."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.utilities.file_path_utilities import get_output_folder

from rehrseg_nnunet.nnunet import fold_run
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights

REMEDY = "run: something"


@pytest.fixture
def own(tmp_path):
    return FoldRun("Dataset009_X", "REHRSegTrainer_10epochs", "my_plans", "3d_fullres", 0, tmp_path)


def finish(run):
    run.folder.mkdir(parents=True)
    torch.save({"network_weights": {}}, run.final_checkpoint)
    return run


@pytest.mark.parametrize("fold", [3, "all"])
def test_it_is_nnunets_folder(tmp_path, monkeypatch, fold):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    run = FoldRun("Dataset009_X", "T", "my_plans", "3d_lowres", fold, tmp_path)
    assert str(run.folder) == get_output_folder("Dataset009_X", "T", "my_plans", "3d_lowres", fold)
    assert FoldRun.parse(run.folder) == FoldRun.parse(str(run.folder)) == run
    assert FoldRun.of_trainer(SimpleNamespace(output_folder=str(run.folder))) == run


def test_names_of_plans_may_have_double_underscores(tmp_path):
    run = FoldRun("Dataset009_X", "SelfSRTrainer", "my__own__plans", "3d_fullres", 0, tmp_path)
    assert FoldRun.parse(run.folder) == run


def test_a_relative_folder_is_parsed(own, monkeypatch):
    finish(own)
    monkeypatch.chdir(own.folder.parent)
    assert FoldRun.parse("fold_0") == own


def test_a_folder_beside_this_one_is_parsed(own, monkeypatch):
    own.folder.mkdir(parents=True)
    monkeypatch.chdir(own.folder)
    for folder in ("../fold_0", "."):
        assert FoldRun.parse(folder) == own


@pytest.mark.parametrize("name", ["copied/fold_0", "A__p__3d_fullres/best", "A__b/fold_0", "A__b__c/fold_x"])
def test_a_folder_whose_name_says_nothing_is_refused(tmp_path, name):
    with pytest.raises(
        ValueError, match=r"must be named <trainer>__<plans>__<configuration>/fold_<fold>, got .*fold|best"
    ):
        FoldRun.parse(tmp_path / name)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("REHRSegTrainer", ["SelfSRTrainer"]),
        ("REHRSegTrainer_10epochs", ["SelfSRTrainer_10epochs", "SelfSRTrainer"]),
        ("REHRSegTrainer_1epoch", ["SelfSRTrainer_1epoch", "SelfSRTrainer"]),
        ("REHRSegTrainer_NoTeacher_20epochs", ["SelfSRTrainer_20epochs", "SelfSRTrainer"]),
        ("REHRSegTrainer_NoTeacher", ["SelfSRTrainer"]),
    ],
)
def test_the_same_length_comes_first(own, trainer, expected):
    assert [run.trainer for run in own.sibling(trainer).siblings("SelfSRTrainer")] == expected


def test_a_sibling_differs_in_the_trainer_only(own):
    sibling = own.sibling("SelfSRTrainer").folder
    assert sibling.relative_to(own.results).as_posix() == "Dataset009_X/SelfSRTrainer__my_plans__3d_fullres/fold_0"


def test_only_finished_runs_count_in_order(own):
    assert own.finished_sibling("A") is None
    own.sibling("A_10epochs").folder.mkdir(parents=True)  # started, not finished
    assert own.finished_sibling("A") is None
    base = finish(own.sibling("A"))
    assert own.finished_sibling("A") == base
    torch.save({}, own.sibling("A_10epochs").final_checkpoint)
    assert own.finished_sibling("A") == own.sibling("A_10epochs")


@pytest.mark.parametrize("fold", [3, "all"])
def test_the_command_of_a_run(tmp_path, fold):
    run = FoldRun("Dataset009_X", "SelfSRTrainer_10epochs", "my_plans", "3d_lowres", fold, tmp_path)
    assert run.command == f"nnUNetv2_train Dataset009_X 3d_lowres {fold} -tr SelfSRTrainer_10epochs -p my_plans"


def test_weights_are_in_the_final_or_the_best_checkpoint(own):
    def weights(value):
        return {"a": torch.full((2,), float(value))}

    def found(value):
        return own.checkpoint_with(hash_weights(weights(value)), remedy=REMEDY)

    assert found(0) is None
    own.folder.mkdir(parents=True)
    for value, name in enumerate((own.final_checkpoint, own.best_checkpoint, own.folder / "checkpoint_latest.pth")):
        torch.save({"network_weights": weights(value)}, name)
    assert [found(v) for v in range(3)] == [own.final_checkpoint, own.best_checkpoint, None]


def test_a_truncated_checkpoint_is_named(own):
    finish(own)
    own.final_checkpoint.write_bytes(own.final_checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{own.final_checkpoint} must be an nnU-Net checkpoint, got .*{REMEDY}"):
        own.checkpoint_with("0", remedy=REMEDY)


def test_the_chosen_checkpoint_is_no_other(own):
    finish(own)
    assert own.chosen_checkpoint("final") == own.final_checkpoint
    with pytest.raises(FileNotFoundError, match=rf"{own.best_checkpoint} is missing, .*; set it to final, or run: nn"):
        own.chosen_checkpoint("best")
    torch.save({}, own.best_checkpoint)
    assert own.chosen_checkpoint("best") == own.best_checkpoint


def test_plans_that_are_kept_with_the_model(own, monkeypatch):
    """nnU-Net writes them in place, so one may find half of them."""
    own.folder.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"{own.plans_file} is missing; {REMEDY}"):
        own.kept_plans(remedy=REMEDY)
    configuration = {"architecture": {}, "patch_size": [4, 4, 4], "spacing": [1, 1, 1]}
    whole = json.dumps({"configurations": {"3d_fullres": configuration}})
    own.plans_file.write_text(whole[:20])
    looks = iter(["", whole[:10], whole])
    monkeypatch.setattr(fold_run, "sleep", lambda seconds: own.plans_file.write_text(next(looks)))
    assert own.kept_plans(remedy=REMEDY).get_configuration("3d_fullres").configuration == configuration
    assert next(looks, None) is None


def test_an_old_file_is_not_waited_for(own, monkeypatch):
    own.folder.mkdir(parents=True)
    own.plans_file.write_text("{")
    os.utime(own.plans_file, (0, 0))
    monkeypatch.setattr(fold_run, "sleep", pytest.fail)
    with pytest.raises(ValueError, match=rf"must be JSON.*; {REMEDY}"):
        own.kept_plans(remedy=REMEDY)


def test_plans_that_stay_wrong_are_named(own, monkeypatch):
    monkeypatch.setattr(fold_run, "PAUSE_S", 0)
    own.folder.mkdir(parents=True)
    whole = json.dumps({"configurations": {"3d_fullres": {}}})
    faults = {whole[:20]: "must be JSON, got a mistake at .*; mend it there", "{}": "must be nnU-Net plans"}
    for content, said in faults.items():
        own.plans_file.write_text(content)
        with pytest.raises(ValueError, match=rf"{own.plans_file} {said}.*; {REMEDY}$") as error:
            own.kept_plans(remedy=REMEDY)
        assert str(error.value).count(REMEDY) == 1
    own.plans_file.write_text(whole)
    renamed = replace(own, configuration="3d_fullres_old")
    own.folder.parent.rename(renamed.folder.parent)
    with pytest.raises(ValueError, match=rf"the configuration 3d_fullres_old .*, got 3d_fullres; .* else {REMEDY}"):
        renamed.kept_plans(remedy=REMEDY)

"""Finding and loading the runs that stage 2 builds on."""

from types import SimpleNamespace

import pytest
import torch

from rehrseg_nnunet.cases.store import PseudoHRStore, hash_weights
from rehrseg_nnunet.config.rehrseg import parse_block
from rehrseg_nnunet.nnunet.fold_run import (
    BEST_CHECKPOINT,
    FINAL_CHECKPOINT,
    SELF_SR_VARIABLE,
    candidate_trainers,
    expected_manifest,
    exporting_checkpoint,
    find_finished_run,
    find_self_sr_run,
    is_saved,
    load_self_sr,
    read_weights,
    sibling_run,
    training_command,
)
from rehrseg_nnunet.self_sr.network import build_self_sr_network

REMEDY = "run: nnUNetv2_train 9 3d_fullres 0 -tr SelfSRTrainer"
CONFIG = parse_block({"factor": 2, "self_sr": {"base_features": 4, "candidates": 2}})


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv(SELF_SR_VARIABLE, raising=False)


@pytest.fixture
def own(tmp_path):
    return tmp_path / "Dataset009_X" / "REHRSegTrainer_10epochs__my_plans__3d_fullres" / "fold_0"


def finish(folder, checkpoint=None):
    folder.mkdir(parents=True)
    torch.save({"network_weights": {}} if checkpoint is None else checkpoint, folder / "checkpoint_final.pth")
    return folder


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
def test_the_same_length_comes_first(trainer, expected):
    assert candidate_trainers("SelfSRTrainer", trainer) == expected


def test_a_sibling_differs_in_the_trainer_only(own):
    sibling = sibling_run(str(own), "SelfSRTrainer")
    assert sibling.relative_to(own.parent.parent).as_posix() == "SelfSRTrainer__my_plans__3d_fullres/fold_0"


def test_only_finished_runs_count_in_order(own):
    trainers = ["A_10epochs", "A"]
    assert find_finished_run(own, trainers) is None
    sibling_run(own, "A_10epochs").mkdir(parents=True)  # started, not finished
    assert find_finished_run(own, trainers) is None
    base = finish(sibling_run(own, "A"))
    assert find_finished_run(own, trainers) == base
    torch.save({}, sibling_run(own, "A_10epochs") / "checkpoint_final.pth")
    assert find_finished_run(own, trainers) == sibling_run(own, "A_10epochs")


def test_no_stage_1_gives_the_command_to_run(own):
    with pytest.raises(FileNotFoundError, match=r"SelfSRTrainer__my_plans__3d_fullres.fold_0.*not finished; run: nnU"):
        find_self_sr_run(own, ["SelfSRTrainer_10epochs", "SelfSRTrainer"], remedy=REMEDY)


def test_the_variable_wins_and_must_name_a_finished_run(own, tmp_path, monkeypatch):
    sibling = finish(sibling_run(own, "SelfSRTrainer"))
    assert find_self_sr_run(own, ["SelfSRTrainer"], remedy=REMEDY) == sibling
    elsewhere = finish(tmp_path / "SelfSRTrainer__other__3d_fullres" / "fold_3")
    monkeypatch.setenv(SELF_SR_VARIABLE, str(elsewhere))
    assert find_self_sr_run(own, ["SelfSRTrainer"], remedy=REMEDY) == elsewhere
    monkeypatch.chdir(elsewhere.parent)
    monkeypatch.setenv(SELF_SR_VARIABLE, "fold_3")
    assert find_self_sr_run(own, ["SelfSRTrainer"], remedy=REMEDY).parent.name == elsewhere.parent.name
    monkeypatch.setenv(SELF_SR_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="REHRSEG_SELF_SR must name a finished stage-1 fold folder"):
        find_self_sr_run(own, ["SelfSRTrainer"], remedy=REMEDY)


def load(run, *, config=CONFIG, labels=3):
    return load_self_sr(run / FINAL_CHECKPOINT, config, image_channels=1, label_channels=labels, remedy=REMEDY)


def test_a_loaded_network_is_the_trained_one_and_frozen(tmp_path):
    torch.manual_seed(0)
    trained = build_self_sr_network(CONFIG, 1, 3).eval()
    run = finish(tmp_path / "fold_0", {"network_weights": trained.state_dict()})
    torch.manual_seed(1)
    network = load(run)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    window = torch.randn(1, 4, 4, 8, 8)
    with torch.no_grad():
        for ours, theirs in zip(network(window), trained(window), strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 4}, "3 label channels|4 label"),
        ({"config": parse_block({"factor": 3, "self_sr": {"base_features": 4, "candidates": 2}})}, "factor 3"),
        ({"config": parse_block({"factor": 2, "self_sr": {"base_features": 8, "candidates": 2}})}, "base_features 8"),
    ],
)
def test_other_sizes_are_refused_with_the_remedy(tmp_path, changes, message):
    run = finish(tmp_path / "fold_0", {"network_weights": build_self_sr_network(CONFIG, 1, 3).state_dict()})
    with pytest.raises(ValueError, match=f"({message}).*{REMEDY}"):
        load(run, **changes)


@pytest.mark.parametrize("missing", [True, False])
def test_missing_and_additional_weights_are_named(tmp_path, missing):
    weights = dict(build_self_sr_network(CONFIG, 1, 3).state_dict())
    weights.pop("head.fuse.bias") if missing else weights.update({"head.more": torch.zeros(1)})
    run = finish(tmp_path / "fold_0", {"network_weights": weights})
    with pytest.raises(ValueError, match="head.fuse.bias is missing" if missing else "head.more is .* not expected"):
        load(run)


@pytest.mark.parametrize("content", [b"", b"garbage, no checkpoint", b"PK\x03\x04 half a zip", {"weights": 1}, [1, 2]])
def test_unreadable_checkpoints_give_the_remedy(tmp_path, content):
    run = finish(tmp_path / "fold_0")
    file = run / "checkpoint_final.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=f"must be an nnU-Net checkpoint, got an unreadable file .*{REMEDY}"):
        load(run)


def test_a_missing_checkpoint_gives_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="must be an nnU-Net checkpoint"):
        read_weights(tmp_path / "none.pth", remedy=REMEDY)


def manifest(run, seed=0, **changes):
    network = SimpleNamespace(state_dict=lambda: {"w": torch.full((2,), float(seed))})
    options = {"factor": 4, "dataset_name": "Dataset009_X", "plans_name": "my_plans", "configuration": "3d_fullres"}
    return expected_manifest(run, network, **{**options, "fold": 0, **changes})


def test_the_expected_manifest_is_this_trainings(own):
    run = sibling_run(own, "SelfSRTrainer_10epochs")
    header = manifest(run)
    assert (header.factor, header.dataset_name, header.plans_name) == (4, "Dataset009_X", "my_plans")
    assert (header.configuration, header.fold, header.trainer) == ("3d_fullres", 0, "SelfSRTrainer_10epochs")
    assert header.weights_sha256 == manifest(run).weights_sha256 != manifest(run, seed=1).weights_sha256
    assert manifest(run, fold="all").fold == "all"


@pytest.mark.parametrize(("folder", "fold"), [("fold_3", 3), ("fold_all", "all")])
def test_a_chosen_run_may_be_of_other_plans_and_folds(tmp_path, monkeypatch, folder, fold):
    run = tmp_path / "SelfSRTrainer__other__3d_lowres" / folder
    monkeypatch.setenv(SELF_SR_VARIABLE, str(run))
    header = manifest(run)
    assert (header.plans_name, header.configuration, header.fold) == ("other", "3d_lowres", fold)
    assert (header.factor, header.dataset_name) == (4, "Dataset009_X")


@pytest.mark.parametrize("name", ["copied/fold_0", "SelfSRTrainer__p__3d_fullres/best", "A__b__c__d/fold_0"])
def test_a_chosen_run_whose_name_says_nothing_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setenv(SELF_SR_VARIABLE, str(tmp_path / name))
    with pytest.raises(ValueError, match=r"REHRSEG_SELF_SR must name a folder <trainer>__<plans>__<configuration>"):
        manifest(tmp_path / name)


@pytest.mark.parametrize("fold", [3, "all"])
def test_the_command_of_a_run_comes_from_its_folder(tmp_path, fold):
    run = tmp_path / "SelfSRTrainer_10epochs__my_plans__3d_lowres" / f"fold_{fold}"
    expected = f"nnUNetv2_train Dataset009_X 3d_lowres {fold} -tr SelfSRTrainer_10epochs -p my_plans"
    assert training_command(run, "Dataset009_X") == expected


@pytest.mark.parametrize(
    ("exported", "expected"), [("final", FINAL_CHECKPOINT), ("best", BEST_CHECKPOINT), ("neither", FINAL_CHECKPOINT)]
)
def test_the_checkpoint_that_made_the_cases_is_found_by_its_weights(own, exported, expected):
    run = sibling_run(own, "SelfSRTrainer")
    weights = {name: {"w": torch.full((2,), float(i))} for i, name in enumerate(("final", "best", "neither"))}
    finish(run, {"network_weights": weights["final"]})
    assert exporting_checkpoint(run, remedy=REMEDY) == run / FINAL_CHECKPOINT  # nothing was exported yet
    store = PseudoHRStore(run)
    store.open_or_create(manifest(run).model_copy(update={"weights_sha256": hash_weights(weights[exported])}))
    assert exporting_checkpoint(run, remedy=REMEDY) == run / FINAL_CHECKPOINT  # there is no best
    torch.save({"network_weights": weights["best"]}, run / BEST_CHECKPOINT)
    assert exporting_checkpoint(run, remedy=REMEDY) == run / expected


def test_a_truncated_final_checkpoint_is_named(own):
    run = finish(sibling_run(own, "SelfSRTrainer"), {"network_weights": {"w": torch.zeros(9)}})
    PseudoHRStore(run).open_or_create(manifest(run))
    file = run / FINAL_CHECKPOINT
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{file} must be an nnU-Net checkpoint, got an unreadable .*{REMEDY}"):
        exporting_checkpoint(run, remedy=REMEDY)


def test_weights_are_saved_in_the_final_or_the_best_checkpoint(tmp_path):
    def weights(value):
        return {"a": torch.full((2,), float(value))}

    assert not is_saved(tmp_path, hash_weights(weights(0)), remedy=REMEDY)
    for value, name in enumerate((FINAL_CHECKPOINT, BEST_CHECKPOINT, "checkpoint_latest.pth")):
        torch.save({"network_weights": weights(value)}, tmp_path / name)
    assert [is_saved(tmp_path, hash_weights(weights(v)), remedy=REMEDY) for v in range(3)] == [True, True, False]

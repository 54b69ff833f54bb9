"""The stage 1 that stage 2 builds on: which checkpoint and which cases count."""

import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan

from rehrseg_nnunet.cases.source_files import derived_properties
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.config.rehrseg import parse_block
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.self_sr.export import STORE_NAME
from rehrseg_nnunet.self_sr.frozen import SELF_SR, SELF_SR_VARIABLE, check_version, exporting_checkpoint, open_self_sr
from rehrseg_nnunet.self_sr.network import METHOD_VERSION, build_self_sr_network

FACTOR = 2
CASES = ("case_1", "case_2")
LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


def block(factor=FACTOR, base_features=4):
    return parse_block({"factor": factor, "self_sr": {"base_features": base_features, "candidates": 2}})


def network(seed=0):
    torch.manual_seed(seed)
    return build_self_sr_network(block(), 1, 3).eval()


@pytest.fixture(autouse=True)
def _no_override(monkeypatch):
    monkeypatch.delenv(SELF_SR_VARIABLE, raising=False)


@pytest.fixture
def own(tmp_path):
    return FoldRun("Dataset009_X", "REHRSegTrainer_10epochs", "my_plans", "3d_fullres", 0, tmp_path / "results")


def preprocess(folder, identifiers=CASES, value=0.0):
    folder.mkdir(exist_ok=True)
    for identifier in identifiers:
        for file in folder.glob(f"{identifier}[._]*"):  # blosc2 does not overwrite
            file.unlink()
        image = np.full((1, 3, 8, 8), value, np.float32)
        sizes = {"chunks": image.shape, "blocks": image.shape}
        nnUNetDatasetBlosc2.save_case(image, image.astype(np.int8), {}, str(folder / identifier), **sizes)
    return folder


@pytest.fixture
def preprocessed(tmp_path):
    return preprocess(tmp_path / "preprocessed")


def train(run, seed=0):
    """A finished run with its weights."""
    run.folder.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": network(seed).state_dict()}, run.final_checkpoint)
    return run


def export(run, source, *, seed=0, identifiers=CASES, factor=FACTOR, version=METHOD_VERSION):
    """The cases of a run, as if its network had made them."""
    store = CaseStore(run.folder, STORE_NAME)
    made_with = {"factor": factor, "method_version": version, "export": {"image": "self_sr"}}
    weights = hash_weights(network(seed).state_dict())
    store.open_or_create(CaseManifest.of_run(run, weights_sha256=weights, made_with=made_with))
    data, labels = np.zeros((2, 6, 8, 8), np.float32), np.zeros((1, 6, 8, 8), np.int8)
    for identifier in identifiers:
        properties = derived_properties(source, identifier, np.zeros((1, 2, 2, 2)), {})
        store.write_case(identifier, data, labels, properties, plan(LABELS, factor=FACTOR))
    return store


def open_run(own, source, *, config=None, identifiers=CASES, image_channels=1, label_channels=3):
    return open_self_sr(
        own,
        config or block(),
        iter(identifiers),
        image_channels=image_channels,
        label_channels=label_channels,
        source_folder=str(source),
    )


def command(run):
    return re.escape(run.command)


def test_a_finished_stage_1_is_opened(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    store = export(run, preprocessed)
    torch.manual_seed(7)
    found = open_run(own, preprocessed)
    assert found.checkpoint == run.final_checkpoint
    assert found.cases_folder == store.folder == run.folder / "pseudo_hr"
    assert not found.network.training
    assert not any(parameter.requires_grad for parameter in found.network.parameters())
    window = torch.randn(1, 4, 4, 8, 8)
    with torch.no_grad():
        for ours, theirs in zip(found.network(window), network()(window), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_the_same_length_comes_first(own, preprocessed):
    for seed, trainer in enumerate(("SelfSRTrainer", "SelfSRTrainer_10epochs")):
        export(train(own.sibling(trainer), seed), preprocessed, seed=seed)
        assert open_run(own, preprocessed).checkpoint == own.sibling(trainer).final_checkpoint


def test_a_missing_stage_1_gives_the_command(own, preprocessed):
    run = own.sibling("SelfSRTrainer")
    message = (
        rf"SelfSRTrainer__my_plans__3d_fullres.fold_0.checkpoint_final.pth is missing: "
        rf"stage 1 of this fold is not finished; run: {command(run)}$"
    )
    with pytest.raises(FileNotFoundError, match=message):
        open_run(own, preprocessed)
    run.folder.mkdir(parents=True)  # started
    with pytest.raises(FileNotFoundError, match=message):
        open_run(own, preprocessed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_channels": 4}, "factor 2, 1 image and 4 label channels, base_features 4"),
        ({"image_channels": 2}, "factor 2, 2 image and 3 label channels, base_features 4"),
        ({"config": block(factor=3)}, "factor 3, 1 image and 3 label channels, base_features 4"),
        ({"config": block(base_features=8)}, "factor 2, 1 image and 3 label channels, base_features 8"),
    ],
)
def test_other_sizes_are_refused_with_the_remedy(own, preprocessed, changes, message):
    run = train(own.sibling("SelfSRTrainer"))
    export(run, preprocessed)
    with pytest.raises(
        ValueError, match=rf"must fit the plans \({message}\), but .*train stage 1 again: {command(run)}$"
    ):
        open_run(own, preprocessed, **changes)


def test_cases_that_are_missing_or_damaged_give_the_command(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    remedy = rf"; run: {command(run)} --val$"
    with pytest.raises(FileNotFoundError, match=rf"pseudo_hr.json does not exist: .*{remedy}"):
        open_run(own, preprocessed)
    store = export(run, preprocessed, identifiers=CASES[:1])
    assert open_run(own, preprocessed, identifiers=CASES[:1]).cases_folder == store.folder
    with pytest.raises(FileNotFoundError, match=rf"case_2.b2nd: the case was not written{remedy}"):
        open_run(own, preprocessed)
    export(run, preprocessed)
    (store.folder / "case_1_seg.b2nd").unlink()
    with pytest.raises(ValueError, match=rf"case_1_seg.b2nd is missing{remedy}"):
        open_run(own, preprocessed)


def test_cases_of_replaced_weights_another_factor_or_older_data_are_refused(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    remedy = rf".*; run: {command(run)} --val$"
    export(run, preprocessed, factor=4)
    with pytest.raises(ValueError, match=rf"pseudo_hr.json has factor 4, not 2{remedy}"):
        open_run(own, preprocessed)
    export(run, preprocessed)
    train(run, seed=1)
    with pytest.raises(ValueError, match=rf"the checkpoint was replaced after the export\){remedy}"):
        open_run(own, preprocessed)
    train(run)
    preprocess(preprocessed, CASES[1:], value=1.0)
    with pytest.raises(ValueError, match=rf"case_2.b2nd must be as new as the preprocessed case{remedy}"):
        open_run(own, preprocessed)


def test_a_stage_1_of_before_is_refused_with_the_command_that_makes_it_anew(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    export(run, preprocessed)
    content = torch.load(run.final_checkpoint)
    message = rf"must be of version 2 of stage 1, got version 1, .*train it anew: {command(run)}$"
    del content["network_weights"]["version"]  # as 0.1.0 wrote it
    torch.save(content, run.final_checkpoint)
    for refused in (
        lambda: open_run(own, preprocessed),
        lambda: check_version(run.final_checkpoint, command=run.command),
    ):
        with pytest.raises(ValueError, match=message):
            refused()


def test_cases_of_another_version_are_refused(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    export(run, preprocessed, version=1)
    with pytest.raises(ValueError, match=rf"has method_version 1, not 2; run: {command(run)} --val$"):
        open_run(own, preprocessed)


def choose(monkeypatch, run):
    monkeypatch.setenv(SELF_SR_VARIABLE, str(run.folder))
    return run


@pytest.mark.parametrize("fold", [3, "all"])
def test_a_chosen_run_may_be_of_other_plans_and_preprocessed_data(own, tmp_path, monkeypatch, preprocessed, fold):
    export(train(own.sibling("SelfSRTrainer"), seed=1), preprocessed, seed=1)
    run = replace(own, trainer="SelfSRTrainer", plans="other", configuration="3d_lowres", fold=fold)
    export(train(choose(monkeypatch, run)), preprocess(tmp_path / "other", value=1.0))
    found = open_run(own, preprocessed)
    assert found.checkpoint == run.final_checkpoint
    assert found.cases_folder == run.folder / "pseudo_hr"


def test_a_chosen_run_may_be_a_copy_in_any_folder(own, tmp_path, monkeypatch, preprocessed):
    run = own.sibling("SelfSRTrainer")
    export(train(run), preprocessed)
    copied = tmp_path / "elsewhere" / run.folder.parent.name / run.folder.name
    copied.parent.mkdir(parents=True)
    os.rename(run.folder, copied)
    monkeypatch.setenv(SELF_SR_VARIABLE, str(copied))
    assert open_run(own, preprocessed).cases_folder == copied / "pseudo_hr"
    (copied / "pseudo_hr" / "case_1.b2nd").unlink()
    with pytest.raises(ValueError, match=rf"case_1.b2nd is missing; run: {command(run)} --val$"):
        open_run(own, preprocessed)  # not of a dataset called elsewhere
    (copied / "checkpoint_final.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"remove it and run: {command(run)} --c$"):
        open_run(own, preprocessed)


def test_a_chosen_run_may_not_be_of_another_dataset(own, monkeypatch, preprocessed):
    run = replace(own, dataset="Dataset010_Y", trainer="SelfSRTrainer")
    export(train(choose(monkeypatch, run)), preprocessed)
    with pytest.raises(ValueError, match=r"has dataset_name 'Dataset010_Y', not 'Dataset009_X'; run: nnUNetv2_train"):
        open_run(own, preprocessed)


def test_a_chosen_run_must_be_finished(own, tmp_path, monkeypatch, preprocessed):
    export(train(own.sibling("SelfSRTrainer")), preprocessed)
    monkeypatch.setenv(SELF_SR_VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="REHRSEG_SELF_SR must name a finished fold folder of SelfSRTrainer"):
        open_run(own, preprocessed)
    assert SELF_SR.variable == "REHRSEG_SELF_SR"


@pytest.mark.parametrize(("exported", "expected"), [(0, "final"), (1, "best"), (2, "final")])
def test_the_checkpoint_that_made_the_cases_is_found_by_its_weights(own, preprocessed, exported, expected):
    run = train(own.sibling("SelfSRTrainer"))
    assert exporting_checkpoint(run, command=run.command) == run.final_checkpoint  # nothing was exported yet
    export(run, preprocessed, seed=exported)
    assert exporting_checkpoint(run, command=run.command) == run.final_checkpoint  # there is no best
    torch.save({"network_weights": network(1).state_dict()}, run.best_checkpoint)
    assert exporting_checkpoint(run, command=run.command) == (
        run.best_checkpoint if expected == "best" else run.final_checkpoint
    )
    if exported == 1:
        assert open_run(own, preprocessed).checkpoint == run.best_checkpoint


def test_a_truncated_checkpoint_is_named(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    export(run, preprocessed)
    file = run.final_checkpoint
    file.write_bytes(file.read_bytes()[:-100])
    message = rf"{file} must be an nnU-Net checkpoint, got an unreadable .*; remove it and run: {command(run)} --c$"
    with pytest.raises(ValueError, match=message):
        exporting_checkpoint(run, command=run.command)
    with pytest.raises(ValueError, match=message):
        open_run(own, preprocessed)


def test_an_unreadable_checkpoint_without_cases_gives_the_command(own, preprocessed):
    run = train(own.sibling("SelfSRTrainer"))
    run.final_checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"must be an nnU-Net checkpoint.*remove it and run: {command(run)} --c$"):
        open_run(own, preprocessed)

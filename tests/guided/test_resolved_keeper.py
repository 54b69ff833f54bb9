"""A guided network comes back from plans that were saved as JSON."""

import dataclasses
import json

import pytest
import torch
from guided_unets import images, keeper_for, stock

from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.guided.guided_network import guidance_of
from rehrseg_nnunet.guided.resolved_keeper import (
    KEEPER_KEY,
    ResolvedKeeper,
    check_other_folds,
    check_own_plans,
    guide_by_plans,
)
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet import fold_run


def resolved(**changes):
    settings = {
        "shape": keeper_for(3).shape,
        "kernel": 5,
        "recalibration": False,
        "level_restoration": True,
        "residual": False,
        "view": SourceView(channels=(1,), axes=(0, 2, 1), spacing_ratio=(1.0, 1.5, 1.0)),
        "run": "Dataset610/KnowledgeKeeperTrainer/fold_0",
        "sha256": "ab" * 32,
    }
    return ResolvedKeeper(**settings | changes)


def configuration(keeper, **fusion):
    block = {"guidance": {"fusion": fusion}, "spacing": [1.0, 1.0, 1.0], "batch_size": 2, KEEPER_KEY: keeper.as_json()}
    return json.loads(json.dumps(block))


@pytest.mark.parametrize("residual", [True, False])
def test_it_comes_back_from_json(residual):
    keeper = resolved(residual=residual)
    assert ResolvedKeeper.of(configuration(keeper)) == keeper
    assert (keeper.build().source_features is not None) == residual


def test_one_that_was_stored_before_there_were_residual_ones_is_not():
    plans = configuration(resolved())
    del plans[KEEPER_KEY]["residual"]
    assert ResolvedKeeper.of(plans) == resolved()


def test_a_network_is_built_again_from_the_plans_alone():
    plans = configuration(resolved(), start="paper", stages=[2, 3])
    network, again = guide_by_plans(stock(), plans), guide_by_plans(stock(seed=5), plans)
    again.load_state_dict(network.state_dict(), strict=True)
    assert torch.equal(again(images()), network(images()))
    guidance = guidance_of(again)
    assert guidance.view == resolved().view
    assert list(guidance.fusions) == ["1", "2"]
    assert guidance.keeper.extraction[1].blocks[0][0].kernel_size == (5, 5, 5)
    assert not any("recalibration" in name for name, _ in guidance.keeper.named_parameters())


def test_a_keeper_that_learns():
    network = guide_by_plans(stock(), configuration(resolved()), learns=True)
    assert all(parameter.requires_grad for parameter in guidance_of(network).keeper.parameters())


def test_weights_and_runs_may_differ_in_one_plans_file():
    assert resolved().is_built_like(resolved(run="fold_1", sha256="cd"))
    for changes in ({"kernel": 3}, {"recalibration": True}, {"residual": True}, {"view": SourceView(channels=(0,))}):
        assert not resolved().is_built_like(resolved(**changes))
    wider = dataclasses.replace(keeper_for(3).shape, widths=(8, 8, 8))
    assert not resolved().is_built_like(resolved(shape=wider))


def test_plans_of_no_guided_training_are_refused():
    with pytest.raises(ValueError, match="must have guidance_keeper, which the training of a guided network writes"):
        guide_by_plans(stock(), {"spacing": [1, 1, 1], "batch_size": 2})


@pytest.fixture
def model(tmp_path):
    """A model's folder, whose fold 1 is trained."""
    folder = tmp_path / "GuidedTrainer__p__3d_fullres"
    (folder / "fold_1").mkdir(parents=True)
    (folder / "fold_1" / "checkpoint_best.pth").touch()
    content = {**configuration(resolved(run="pairs/fold_1"), hidden=0.5), "architecture": {}, "patch_size": [8, 8, 8]}
    plans = {"configurations": {"3d_fullres": content}}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


HALF = FusionConfig(hidden=0.5, start="identity")


def test_a_fold_that_is_built_alike_joins_the_others(model):
    check_other_folds(model / "fold_0", "3d_fullres", resolved(run="other", sha256="cd"), HALF)


def test_another_keeper_or_fusion_would_break_the_others(model):
    said = r"plans.json is that of fold_1 too, .* but {} differs; take a keeper of the same settings as pairs/fold_1, "
    with pytest.raises(ValueError, match=said.format("kernel")):
        check_other_folds(model / "fold_0", "3d_fullres", resolved(kernel=3), HALF)
    with pytest.raises(ValueError, match=said.format("recalibration, fusion")):
        check_other_folds(model / "fold_0", "3d_fullres", resolved(recalibration=True), FusionConfig())


def cut(model):
    plans = (model / "plans.json").read_text()
    (model / "plans.json").write_text(plans[:100])
    return plans


def test_plans_that_another_fold_is_writing_are_waited_for(model, monkeypatch):
    """Folds that start together write them in place."""
    plans = cut(model)
    monkeypatch.setattr(fold_run, "sleep", lambda seconds: (model / "plans.json").write_text(plans))
    check_other_folds(model / "fold_0", "3d_fullres", resolved(), HALF)
    cut(model)
    with pytest.raises(ValueError, match=r"plans.json is that of fold_1 too, .* but kernel differs"):
        check_other_folds(model / "fold_0", "3d_fullres", resolved(kernel=3), HALF)


def test_plans_that_stay_damaged_are_named(model, monkeypatch):
    monkeypatch.setattr(fold_run, "PAUSE_S", 0)
    cut(model)
    with pytest.raises(ValueError, match=r"plans.json must be JSON, got a mistake at line 1.*; put back the file"):
        check_other_folds(model / "fold_0", "3d_fullres", resolved(), HALF)
    check_own_plans(model / "fold_0", "3d_fullres", resolved(), HALF)  # no reason to lose a checkpoint


@pytest.mark.parametrize("check", [check_other_folds, check_own_plans])
def test_plans_without_the_configuration_are_named(model, check):
    (model / "plans.json").write_text(json.dumps({"configurations": {"2d": {}}}))
    said = r"plans.json must have the configuration 3d_fullres .*, got 2d; .* else put back the file as it was, or"
    with pytest.raises(ValueError, match=said):
        check(model / "fold_0", "3d_fullres", resolved(), HALF)


def test_a_fold_may_be_trained_anew_and_untrained_ones_do_not_count(model):
    check_other_folds(model / "fold_1", "3d_fullres", resolved(kernel=3), HALF)
    (model / "fold_1" / "checkpoint_best.pth").unlink()
    check_other_folds(model / "fold_0", "3d_fullres", resolved(kernel=3), HALF)


def test_a_checkpoint_is_not_saved_beside_plans_of_a_fold_that_began_together_with_it(model):
    """Neither saw the other's checkpoint when it began."""
    (model / "fold_1" / "checkpoint_best.pth").unlink()
    check_own_plans(model / "fold_0", "3d_fullres", resolved(run="other", sha256="cd"), HALF)
    with pytest.raises(ValueError, match=r"has been written by another fold since this one began, so .* but kernel"):
        check_own_plans(model / "fold_0", "3d_fullres", resolved(kernel=3), HALF)

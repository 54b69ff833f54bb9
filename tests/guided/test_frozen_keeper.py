"""A keeper as a guided training takes it."""

import dataclasses

import pytest
import torch
from keeper_runs import planned, write_keeper

from rehrseg_nnunet.guided.frozen_keeper import open_keeper, own_keeper, resolve
from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.networks import build_keeper
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.weights import hash_weights

VIEW = SourceView(channels=(0,))


@pytest.fixture
def keeper(tmp_path):
    return KeeperRun(write_keeper(tmp_path))


def save(keeper, file, seed):
    torch.manual_seed(seed)
    network = build_keeper(keeper.configuration)
    network.get_buffer("teacher_sha256").fill_(255)
    torch.save({"network_weights": network.state_dict()}, file)
    return hash_weights(network.keeper.state_dict())


def test_its_weights_and_how_to_build_it_again(keeper):
    sha256 = save(keeper, keeper.run.final_checkpoint, seed=0)
    frozen = open_keeper(keeper, VIEW, checkpoint="final")
    assert hash_weights(frozen.network.state_dict()) == sha256 == frozen.resolved.sha256
    assert frozen.teacher_sha256 == 32 * "ff"
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert frozen.resolved.run == "Dataset610_Pairs/KnowledgeKeeperTrainer__p__3d_fullres/fold_0"
    assert (frozen.resolved.kernel, frozen.resolved.shape.widths) == (3, (4, 8, 16))
    again = frozen.resolved.build()
    again.load_state_dict(frozen.network.state_dict())
    source = torch.rand(1, 1, 4, 8, 8)
    for own, expected in zip(again(source), frozen.network(source), strict=True):
        assert torch.equal(own, expected)


def test_the_best_checkpoint_if_the_settings_want_it(keeper):
    final = save(keeper, keeper.run.final_checkpoint, seed=0)
    best = save(keeper, keeper.run.best_checkpoint, seed=1)
    assert open_keeper(keeper, VIEW, checkpoint="best").resolved.sha256 == best
    assert open_keeper(keeper, VIEW, checkpoint="final").resolved.sha256 == final
    keeper.run.best_checkpoint.unlink()
    with pytest.raises(FileNotFoundError, match=r"checkpoint_best.pth is missing, which guidance.checkpoint best"):
        open_keeper(keeper, VIEW, checkpoint="best")


def test_a_control_is_built_like_it_and_does_not_say_that_it_is(keeper):
    save(keeper, keeper.run.final_checkpoint, seed=0)
    control = resolve(keeper, VIEW)
    assert control.is_built_like(open_keeper(keeper, VIEW, checkpoint="final").resolved)
    assert (control.run, control.sha256) == ("", "")


def test_a_datasets_own_plans_build_one_of_all_its_channels(keeper):
    own = own_keeper(planned(("T1", "T2")))
    assert own.view == SourceView(channels=(0, 1))
    assert own.shape.source_channels == 2
    alike = dataclasses.replace(own.shape, source_channels=1)
    assert alike == resolve(keeper, VIEW).shape
    assert own.build().shape == own.shape

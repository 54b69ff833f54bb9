"""A teacher as a keeper's training takes it."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from keeper_runs import write_keeper

from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE, open_teacher
from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.networks import build_teacher

NAME = "3d_fullres"


@pytest.fixture
def teacher(tmp_path):
    """A finished one; its configuration is that of a keeper's training beside it."""
    run = KeeperRun(write_keeper(tmp_path, trainer="GuidanceTeacherTrainer"))
    torch.manual_seed(0)
    torch.save({"network_weights": build_teacher(run.configuration).state_dict()}, run.run.final_checkpoint)
    return run


def opened(teacher, configuration=None):
    own = replace(teacher.run, trainer="KnowledgeKeeperTrainer")
    return open_teacher(own, configuration or teacher.configuration, checkpoint="final")


def test_it_is_frozen_and_without_what_is_of_its_training_alone(teacher):
    found = opened(teacher)
    assert found.checkpoint == teacher.run.final_checkpoint
    assert found.network.reconstruction is None
    assert not found.network.training
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["guidance"].update(level_restoration=False), r"guidance\.level_restoration False, got True"),
        (
            lambda c: c["architecture"]["arch_kwargs"].update(strides=[[1] * 3, [2] * 3, [1, 2, 2]]),
            r"strides \[.*\[2, 2, 2\], \[1, 2, 2\]\], got \[.*\[1, 2, 2\], \[2, 2, 2\]\]",
        ),
        (lambda c: c["use_mask_for_norm"].__setitem__(1, True), r"use_mask_for_norm \[True\], got \[False\]"),
        (
            lambda c: c["normalization_schemes"].__setitem__(1, "NoNormalization"),
            r"normalization_schemes \['NoNormalization'\], got \['ZScoreNormalization'\]",
        ),
    ],
)
def test_weights_that_fit_are_not_enough(teacher, change, message):
    """The network would be of the same weights and see other things."""
    changed = deepcopy(teacher.configuration)
    change(changed)
    with pytest.raises(ValueError, match=rf"plans\.json must have the keeper's {message}; train the teacher again"):
        opened(teacher, changed)
    opened(teacher)


def test_what_the_teacher_does_not_see_may_differ(teacher):
    changed = deepcopy(teacher.configuration)
    changed["guidance"]["keeper"]["kernel"] = 5
    changed["normalization_schemes"][0] = "NoNormalization"
    changed["batch_size"] = 7
    opened(teacher, changed)


def test_the_run_that_the_variable_names_must_be_a_teachers(teacher, tmp_path, monkeypatch):
    keeper = write_keeper(tmp_path)
    monkeypatch.setenv(TEACHER_VARIABLE, str(keeper.folder))
    with pytest.raises(ValueError, match=r"REHRSEG_TEACHER must name a fold folder of GuidanceTeacherTrainer"):
        opened(teacher)


def test_a_teacher_that_diverged_is_refused(teacher):
    file = teacher.run.final_checkpoint
    weights = torch.load(file, weights_only=True)["network_weights"]
    name = next(key for key in weights if key.endswith("weight"))
    weights[name].view(-1)[3] = torch.nan
    torch.save({"network_weights": weights}, file)
    with pytest.raises(ValueError, match=rf"finite weights, got NaN or infinite ones in {name}; train"):
        opened(teacher)


def test_another_checkpoint_than_the_settings_want_is_not_taken(teacher):
    with pytest.raises(FileNotFoundError, match=r"checkpoint_best.pth is missing, .* best stands for; set it to final"):
        open_teacher(replace(teacher.run, trainer="KnowledgeKeeperTrainer"), teacher.configuration, checkpoint="best")


def test_plans_without_the_configuration_are_named(teacher):
    plans = json.loads(teacher.run.plans_file.read_text())
    configuration = teacher.configuration
    del plans["configurations"][NAME]
    teacher.run.plans_file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=rf"must have the configuration {NAME} .*, else train the teacher again"):
        opened(teacher, configuration)


def test_plans_of_the_training_count_and_not_todays(teacher):
    """As the user may change plans between the two trainings."""
    file = teacher.run.folder.parent / "plans.json"
    plans, today = json.loads(file.read_text()), deepcopy(teacher.configuration)
    plans["configurations"][NAME]["guidance"]["level_restoration"] = False
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=r"guidance\.level_restoration True, got False"):
        opened(teacher, today)

"""What teacher's and keeper's trainings do of their settings."""

import itertools
from copy import deepcopy
from types import SimpleNamespace

import pytest
import torch
from keeper_runs import CONFIGURATIONS

from rehrseg_nnunet.config.blocks import learning_rate_from_trained
from rehrseg_nnunet.guided import training
from rehrseg_nnunet.guided.guided_training import GuidedTraining
from rehrseg_nnunet.guided.networks import (
    build_discriminator,
    build_keeper,
    build_teacher,
    check_adversary,
    planned_shape,
)
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.trainers.rehrseg_guidance_teacher_trainer import GuidanceTeacherTrainer
from rehrseg_nnunet.trainers.rehrseg_knowledge_keeper_trainer import KnowledgeKeeperTrainer

PEAK, EPOCHS, STEPS = 0.5, 4, 5


def rates(schedule):
    """Of every step."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    trainer = SimpleNamespace(
        initial_lr=PEAK,
        num_epochs=EPOCHS,
        num_iterations_per_epoch=STEPS,
        config=SimpleNamespace(schedule=schedule),
    )
    rate, found = PairedTraining.schedule(trainer, optimizer), []
    for epoch, step in itertools.product(range(EPOCHS), range(STEPS)):
        rate.step(epoch, step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_each_schedule_is_what_its_name_says():
    constant, falling, cycle = (rates(name) for name in ("constant", "polynomial", "one_cycle"))
    assert constant == [PEAK] * (EPOCHS * STEPS)
    assert falling[0] == pytest.approx(PEAK)
    assert all(later < earlier for earlier, later in itertools.pairwise(falling))
    top = cycle.index(max(cycle))
    assert max(cycle) == pytest.approx(PEAK, rel=0.05)
    assert 0 < top < len(cycle) - 1
    assert cycle[0] < PEAK / 2


class Loaders(SimpleNamespace):
    """As much of a trainer as its loaders ask for."""

    def do_split(self):
        return ["a"], ["b"]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # noqa: N802 (nnU-Net's)
        return None, False, (4, 4, 4), (0,)

    def get_training_transforms(self, *args, **options):
        return "stock"

    def _loader(self, keys, patch_size, transforms):
        return transforms


@pytest.mark.parametrize(
    ("trainer", "setting", "expected"),
    [
        (KnowledgeKeeperTrainer, "full", True),
        (KnowledgeKeeperTrainer, "spatial", False),
        (GuidanceTeacherTrainer, "full", False),
    ],
)
def test_only_a_keepers_source_is_augmented_and_only_if_its_settings_say_so(monkeypatch, trainer, setting, expected):
    made = []

    def transforms(stock, channels, *, masked, intensities):
        made.append((stock, intensities))
        return "augment"

    monkeypatch.setattr(training, "training_transforms", transforms)
    monkeypatch.setattr(training, "start_augmenter", lambda loader, **options: loader)
    augments = trainer.augments_intensities
    config = SimpleNamespace(keeper=SimpleNamespace(source_augmentation=setting))
    own = Loaders(
        configuration_manager=SimpleNamespace(patch_size=(4, 4, 4), use_mask_for_norm=[False, False]),
        channels=PairedChannels(source=(0,), privileged=(1,)),
        device=torch.device("cpu"),
        config=config,
    )
    own.augments_intensities = augments.fget(own) if isinstance(augments, property) else augments
    train, val = PairedTraining.get_dataloaders(own)
    assert train == "augment" != val
    assert made == [("stock", expected)]


@pytest.mark.parametrize("configuration", [{}, {"rehrseg": {"segmentation": {"learning_rate_from_trained": 0.02}}}])
def test_a_guided_training_has_its_rivals_learning_rate(configuration):
    """ContinuedBaselineTrainer takes that of whichever block there is."""
    block = GuidedTraining.guidance_block(SimpleNamespace(), configuration)
    assert block["learning_rate_from_trained"] == learning_rate_from_trained(configuration)


def test_two_blocks_that_do_not_agree_are_refused_as_by_the_rival():
    rates = {"rehrseg": {"segmentation": {"learning_rate_from_trained": 0.02}}, "guidance": {}}
    with pytest.raises(ValueError, match="learning_rate_from_trained must be the same in both blocks"):
        GuidedTraining.guidance_block(SimpleNamespace(), rates)


def paired_configuration(*, stages=5, patch_size=(16, 24, 24), **keeper):
    """Of a network with stages of stride 2 along every axis."""
    configuration = deepcopy(CONFIGURATIONS["3d_fullres"])
    strides = [[1, 1, 1], *[[2, 2, 2]] * (stages - 1)]
    configuration["architecture"]["arch_kwargs"] |= {"strides": strides, "kernel_sizes": [[3, 3, 3]] * stages}
    return configuration | {
        "patch_size": list(patch_size),
        "guidance": {"base_features": 4, "keeper": {"kernel": 3, **keeper}},
        "guidance_channels": {"source": [0], "privileged": [1]},
    }


def said_of_levels(configuration):
    lines = []
    manager = SimpleNamespace(configuration=configuration)
    PairedTraining._say_levels(SimpleNamespace(configuration_manager=manager, print_to_log_file=lines.append))
    return lines


def test_networks_of_small_patches_have_fewer_levels_which_the_log_says():
    """All of them, and whenever they are built again from the same plans."""
    configuration = paired_configuration(patch_size=(8, 8, 8))
    assert planned_shape(configuration).levels == 3
    (line,) = said_of_levels(configuration)
    assert line == "patches of [8, 8, 8] have room for 3 of the 5 levels that teacher and keeper would have"
    patch = torch.randn(2, 1, 8, 8, 8)
    features, guides = build_teacher(configuration)(patch).features, build_keeper(configuration)(patch).guides
    assert [own.shape for own in features] == [guide.shape for guide in guides]
    assert [own.shape[2] for own in features] == [8, 4, 2]
    assert build_discriminator(configuration)(patch).isfinite().all()
    again = build_keeper(deepcopy(configuration))
    again.load_state_dict(build_keeper(configuration).state_dict())


@pytest.mark.parametrize(("stages", "patch"), [(5, (16, 32, 16)), (3, (8, 8, 8)), (7, (16, 32, 16))])
def test_nothing_is_said_of_levels_that_are_all_there(stages, patch):
    configuration = paired_configuration(stages=stages, patch_size=patch)
    assert planned_shape(configuration).levels == min(stages, 5)
    assert said_of_levels(configuration) == []


def test_a_patch_without_room_for_an_adversary_is_refused_if_there_is_one():
    small = (3, 16, 16)
    with pytest.raises(ValueError, match=r"got \[3, 16, 16\]; guidance.keeper.adversarial_weight 0 trains without one"):
        check_adversary(paired_configuration(patch_size=small))
    check_adversary(paired_configuration(patch_size=small, adversarial_weight=0))
    check_adversary(paired_configuration())


class Starting(GuidanceTeacherTrainer):
    """As much of a teacher's training as its first checks ask for."""

    was_initialized = False
    local_rank = 0

    def __init__(self, configuration, *, resumed=False):
        self.configuration_manager = SimpleNamespace(configuration=configuration)
        self._resumed = resumed
        self.done = []

    def check_grids(self):
        self.done.append("grids")

    def initialize(self):
        raise KeyboardInterrupt  # that is enough


@pytest.mark.parametrize("resumed", [False, True])
def test_a_teachers_training_begins_with_what_the_keepers_would_refuse(resumed):
    """Not one that goes on: its weights are there."""
    small, large = (paired_configuration(patch_size=patch) for patch in ((3, 16, 16), (16, 16, 16)))
    trainer = Starting(large, resumed=resumed)
    with pytest.raises(KeyboardInterrupt):
        trainer.on_train_start()
    assert trainer.done == ([] if resumed else ["grids"])
    with pytest.raises(KeyboardInterrupt if resumed else ValueError, match=None if resumed else "keeper's adversary"):
        Starting(small, resumed=resumed).on_train_start()


def test_other_ranks_leave_the_grids_to_the_first():
    trainer = Starting(paired_configuration())
    trainer.local_rank = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.on_train_start()
    assert trainer.done == []

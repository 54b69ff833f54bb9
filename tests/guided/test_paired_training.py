"""What teacher's and keeper's trainings do of their settings."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from rehrseg_nnunet.config.blocks import learning_rate_from_trained
from rehrseg_nnunet.guided import training
from rehrseg_nnunet.guided.guided_training import GuidedTraining
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

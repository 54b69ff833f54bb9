"""Which weights and learning rate a stage-2 training starts from."""

import copy

import pytest
import torch
from torch import nn

from rehrseg_nnunet.nnunet.training_start import BaselineStart, load_baseline

STOCK_RATE, TRAINED_RATE = 1e-2, 1e-3


class Network(nn.Module):
    """Stem, and a segmentation layer with an optional HR head as its child."""

    def __init__(self, hr_head=False, width=2):
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.seg_layers = nn.ModuleList([nn.Linear(width, 2)])
        if hr_head:
            self.decoder = nn.Module()
            self.decoder.seg_layers = nn.ModuleList([nn.Linear(1, 1)])


class Schedule:
    def __init__(self, optimizer, initial_lr):
        self.optimizer, self.initial_lr = optimizer, initial_lr


class Logger:
    def __init__(self):
        self.values = {"lrs": []}

    def get_value(self, key, step):
        return self.values[key] if step is None else self.values[key][step]


class Base:
    """What the mixin uses of nnU-Net's trainer."""

    def __init__(self):
        self.initial_lr = STOCK_RATE
        self.logger = Logger()
        self.lines = []
        self.initialisations = 0

    def initialize(self):
        torch.manual_seed(0)
        self.initialisations += 1
        self.network = Network(hr_head=True)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.network.parameters(), lr=self.initial_lr)
        return optimizer, Schedule(optimizer, self.initial_lr)

    def load_checkpoint(self, checkpoint):
        if not self.initialisations:
            self.initialize()
        self.network.load_state_dict(checkpoint["network_weights"])
        self.logger.values["lrs"] = checkpoint["lrs"]

    def print_to_log_file(self, line):
        self.lines.append(line)


class Trainer(BaselineStart, Base):
    learning_rate_from_trained = TRAINED_RATE
    checkpoint = None

    def baseline_checkpoint(self):
        return self.checkpoint


def baseline_weights(seed=5):
    torch.manual_seed(seed)
    return Network().state_dict()


@pytest.fixture
def checkpoint(tmp_path):
    file = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": baseline_weights()}, file)
    return file


def holds(network, weights):
    return all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())


def rates(trainer):
    return trainer.initial_lr, trainer.lr_scheduler.initial_lr, trainer.optimizer.param_groups[0]["lr"]


def test_scratch_keeps_nnunets_rate():
    trainer = Trainer()
    trainer.start_from_trained()
    assert trainer.initialisations == 1
    assert rates(trainer) == (STOCK_RATE,) * 3
    assert "from scratch" in trainer.lines[0]


def test_the_baseline_is_loaded_and_named(checkpoint):
    trainer = Trainer()
    trainer.checkpoint = checkpoint
    trainer.initialize()
    head = copy.deepcopy(trainer.network.decoder.state_dict())
    trainer.start_from_trained()
    assert trainer.initialisations == 1
    assert holds(trainer.network, baseline_weights())
    assert holds(trainer.network.decoder, head)  # has no counterpart in the baseline
    assert rates(trainer) == (TRAINED_RATE,) * 3
    assert str(checkpoint) in trainer.lines[0]
    assert str(TRAINED_RATE) in trainer.lines[0]
    optimised = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in trainer.network.parameters()}


def test_pretrained_weights_are_kept(checkpoint):
    trainer = Trainer()
    trainer.checkpoint = checkpoint
    trainer.initialize()
    with torch.no_grad():
        trainer.network.stem.weight.fill_(7)
    trainer.start_from_trained()
    assert (trainer.network.stem.weight == 7).all()
    assert rates(trainer) == (TRAINED_RATE,) * 3
    assert "-pretrained_weights" in trainer.lines[0]


@pytest.mark.parametrize("rate", [STOCK_RATE, 3e-3])
def test_a_resumed_run_goes_on_at_its_own_rate(checkpoint, rate):
    torch.manual_seed(9)
    weights = Network(hr_head=True).state_dict()
    trainer = Trainer()
    trainer.checkpoint = checkpoint
    trainer.load_checkpoint({"network_weights": weights, "lrs": [rate, rate / 2, rate / 4]})
    trainer.start_from_trained()
    assert holds(trainer.network, weights)
    assert (trainer.initial_lr, trainer.lr_scheduler.initial_lr) == (rate, rate)
    assert trainer.lines == []


def test_a_checkpoint_without_a_log_can_be_loaded():
    trainer = Trainer()
    trainer.load_checkpoint({"network_weights": Network(hr_head=True).state_dict(), "lrs": []})
    assert trainer.initial_lr == STOCK_RATE


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda w: w.update({"stem.weight": torch.zeros(3, 2)}), "stem.weight"),
        (lambda w: w.update({"more.weight": torch.zeros(3, 2)}), "more.weight"),
        (lambda w: w.pop("stem.bias"), "stem.bias"),
    ],
)
def test_a_baseline_of_other_plans_is_refused(tmp_path, change, named):
    weights = dict(baseline_weights())
    change(weights)
    torch.save({"network_weights": weights}, tmp_path / "c.pth")
    network = Network(hr_head=True)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"same plans as this training, but {named} differs; train the baseline again"):
        load_baseline(network, tmp_path / "c.pth")
    assert holds(network, before)


def test_a_damaged_baseline_is_refused(tmp_path):
    (tmp_path / "c.pth").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"c.pth must be an nnU-Net checkpoint.*train the baseline again or remove it"):
        load_baseline(Network(), tmp_path / "c.pth")


def test_compiled_networks_are_loaded_too(checkpoint):
    network = Network(hr_head=True)
    load_baseline(torch.compile(network), checkpoint)
    assert holds(network, baseline_weights())


def test_what_a_network_is_filled_with_is_no_pretrained_weight():
    """A frozen part is there whatever the training starts from."""

    class Filled(Trainer):
        def fill_network(self):
            nn.init.ones_(self.network.decoder.seg_layers[0].weight)

    trainer = Filled()
    trainer.start_from_trained()
    assert trainer.lines == [Trainer.without_baseline]
    assert torch.equal(trainer.network.decoder.seg_layers[0].weight, torch.ones(1, 1))

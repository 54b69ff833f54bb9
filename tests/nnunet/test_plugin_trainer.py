"""The one constructor of all trainers, without nnU-Net's trainer and with it."""

import inspect

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer

PLANS = {
    "dataset_name": "Dataset009_X",
    "plans_name": "p",
    "configurations": {
        "base": {"architecture": {}, "spacing": [4.0, 1.0, 1.0], "batch_size": 2},
        "3d_fullres": {"inherits_from": "base", "rehrseg": {"factor": 4}},
    },
}
ARGUMENTS = (PLANS, "3d_fullres", 0, {"labels": {}}, torch.device("cpu"))


class Base:
    """What the mixin uses of nnU-Net's trainer."""

    def __init__(self, plans, configuration, fold, dataset_json, device):
        self.events.append("constructed")
        self.arguments = (plans, configuration, fold, dataset_json, device)
        self.num_epochs = 1000


class Trainer(PluginTrainer, Base):
    def __new__(cls, *args):
        self = super().__new__(cls)
        self.events = []
        return self

    def read_settings(self, configuration):
        assert not hasattr(self, "num_epochs")
        self.events.append("settings read")
        self.settings = configuration

    def configure(self):
        self.events.append("configured")
        self.num_epochs = 300


class Plain(PluginTrainer, Base):
    events = ()

    def __new__(cls, *args):
        self = super().__new__(cls)
        self.events = []
        return self


def test_settings_are_read_first_and_the_rest_is_set_last():
    trainer = Trainer(*ARGUMENTS)
    assert trainer.events == ["settings read", "constructed", "configured"]
    assert trainer.arguments == ARGUMENTS
    assert trainer.num_epochs == 300


def test_settings_are_the_configurations_own_and_inherited_ones():
    settings = Trainer(*ARGUMENTS).settings
    assert (settings["spacing"], settings["batch_size"]) == ([4.0, 1.0, 1.0], 2)
    assert settings["rehrseg"] == {"factor": 4}


@pytest.mark.parametrize("length", [1, 30])
def test_a_length_wins_over_what_is_configured(length):
    assert type("Trainer_n", (Trainer,), {"length": length})(*ARGUMENTS).num_epochs == length
    assert type("Plain_n", (Plain,), {"length": length})(*ARGUMENTS).num_epochs == length


def test_without_hooks_everything_is_nnunets():
    trainer = Plain(*ARGUMENTS)
    assert trainer.events == ["constructed"]
    assert trainer.num_epochs == 1000


def test_settings_that_cannot_be_trained_leave_nothing(tmp_path, monkeypatch):
    """nnU-Net's constructor makes the output folder and its log."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))

    class Refusing(PluginTrainer, nnUNetTrainer):
        def read_settings(self, configuration):
            raise ValueError(f"factor must not be {configuration['rehrseg']['factor']}")

    with pytest.raises(ValueError, match="factor must not be 4"):
        Refusing(*ARGUMENTS)
    assert list(tmp_path.iterdir()) == []


def test_the_signature_is_nnunets():
    """nnU-Net reads it and looks up its own local variables by these names."""
    ours, stock = (inspect.signature(trainer.__init__).parameters for trainer in (PluginTrainer, nnUNetTrainer))
    assert list(ours) == list(stock) == ["self", "plans", "configuration", "fold", "dataset_json", "device"]
    for name, parameter in stock.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default)


def test_checkpoints_survive_a_kill():
    assert issubclass(PluginTrainer, SafeCheckpoints)

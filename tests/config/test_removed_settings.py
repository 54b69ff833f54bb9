"""Settings of earlier versions in stored plans: prediction does without, training refuses what it would not do."""

import copy
import json
import logging

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.config import presets, removed_settings
from rehrseg_nnunet.config.presets import load_preset
from rehrseg_nnunet.config.rehrseg import load_config, parse_block, upgraded_plans
from rehrseg_nnunet.config.removed_settings import REMOVED_SETTINGS
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer
from rehrseg_nnunet.trainers.rehrseg_smore_trainer import SMORETrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

OLD_DEFAULTS = {
    "self_sr": {"epochs": 90, "label_profile": "centre", "export": {"image": "smore", "keep_volume": False}},
    "segmentation": {"affinity_per_slice": False, "hr_head": {"hidden_features": 2}},
}
CHANGED = {
    "self_sr": {"epochs": 90, "label_profile": "majority", "export": {"image": "smore", "keep_volume": True}},
    "segmentation": {"affinity_per_slice": True, "hr_head": {"hidden_features": 2}},
}
WITHOUT = {
    "self_sr": {"epochs": 90, "export": {"image": "smore"}},
    "segmentation": {"hr_head": {"hidden_features": 2}},
}
ONE_CHANGED = [
    ("self_sr.label_profile 'majority'", {"self_sr": {"label_profile": "majority"}}, "with 'centre'"),
    ("self_sr.export.keep_volume True", {"self_sr": {"export": {"keep_volume": True}}}, "with False"),
    ("segmentation.affinity_per_slice True", {"segmentation": {"affinity_per_slice": True}}, "with False"),
]
TRAINERS = [REHRSegTrainer, SelfSRTrainer, SMORETrainer]


@pytest.fixture(autouse=True)
def _nothing_warned_yet():
    removed_settings._warn.cache_clear()


def configuration(block):
    return {"spacing": [4.0, 1.0, 1.0], "rehrseg": copy.deepcopy(block)}


def plans(block):
    """Plans of a small U-Net, as nnU-Net writes them."""
    stages = {"n_stages": 2, "features_per_stage": [4, 8], "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1]}
    layers = {"conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU", "conv_bias": True}
    sizes = {"kernel_sizes": [[1, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2]]}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {**stages, **layers, **sizes},
        "_kw_requires_import": ["conv_op", "nonlin"],
    }
    lowres = {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 2.0], "rehrseg": copy.deepcopy(block)}
    fullres = {**configuration(block), "architecture": architecture}
    return {
        "dataset_name": "Dataset001_X",
        "plans_name": "p",
        "configurations": {"3d_fullres": fullres, "3d_lowres": lowres, "2d": {"spacing": [1.0, 1.0]}},
    }


def network(trainer, block):
    torch.manual_seed(0)
    manager = PlansManager(plans(block))
    return trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 2, True)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_each_is_tested_here():
    assert [path for path, *_ in ONE_CHANGED] == [
        f"{path} {value!r}" for path, value in removed_settings._removed_values(CHANGED).items()
    ]
    assert removed_settings._removed_values(CHANGED).keys() == REMOVED_SETTINGS.keys()
    old = removed_settings._removed_values(OLD_DEFAULTS)
    assert old == {path: setting.default for path, setting in REMOVED_SETTINGS.items()}


@pytest.mark.parametrize("block", [CHANGED, OLD_DEFAULTS])
def test_prediction_does_without_them_and_says_so_once(block, caplog):
    given = configuration(block)
    configs = [load_config(given, purpose="prediction") for _ in range(3)]
    assert configs == [load_config(configuration(WITHOUT), purpose="prediction")] * 3
    assert given == configuration(block)
    (warning,) = warnings(caplog)
    assert warning.endswith("self_sr.label_profile, self_sr.export.keep_volume, segmentation.affinity_per_slice")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_network_of_a_stored_model_is_the_one_without_them(trainer, caplog):
    old, new = network(trainer, CHANGED), network(trainer, WITHOUT)
    assert str(old) == str(new)
    for (name, weights), (other_name, other) in zip(old.state_dict().items(), new.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(weights, other)
    assert len(warnings(caplog)) == 1


def test_plans_without_them_give_no_warning(caplog):
    load_config(configuration(WITHOUT), purpose="prediction")
    load_config(configuration({}), purpose="prediction")
    assert not warnings(caplog)


@pytest.mark.parametrize(("shown", "block", "now"), ONE_CHANGED)
@pytest.mark.parametrize("trainer", TRAINERS)
def test_training_refuses_another_value_before_anything_is_written(trainer, shown, block, now):
    line = rf"^rehrseg\.{shown} is no setting since 0\.2\.0: .*; remove the key from the plans to train {now}, or make"
    with pytest.raises(ValueError, match=line) as error:
        trainer(plans(block), "3d_fullres", 0, {}, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_all_refused_ones_are_in_one_line():
    with pytest.raises(ValueError, match=r"label_profile.*keep_volume.*affinity_per_slice") as error:
        load_config(configuration(CHANGED))
    assert "\n" not in str(error.value)


def test_training_takes_their_old_defaults_silently(caplog):
    assert load_config(configuration(OLD_DEFAULTS)) == load_config(configuration(WITHOUT))
    assert load_config(configuration({"segmentation": {"affinity_per_slice": 0}})) == load_config(configuration({}))
    assert not warnings(caplog)


def test_upgraded_plans_have_none_left_for_others_to_warn_of():
    stored = plans(OLD_DEFAULTS)
    before = copy.deepcopy(stored)
    assert upgraded_plans(stored) == plans(WITHOUT)
    assert stored == before
    assert upgraded_plans(plans(CHANGED)) == plans(CHANGED)
    assert upgraded_plans(plans(WITHOUT)) == plans(WITHOUT)


@pytest.mark.parametrize("purpose", ["training", "prediction"])
@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"label_profile": "centre"}, r"^rehrseg\.label_profile: unknown key$"),
        ({"self_sr": {"keep_volume": False}}, r"^rehrseg\.self_sr\.keep_volume: unknown key$"),
        ({"self_sr": {"export": None}}, r"^rehrseg\.self_sr\.export: .*got None$"),
        (None, r"^rehrseg: .*dictionary"),
        (3, r"^rehrseg: .*dictionary"),
    ],
)
def test_other_keys_and_values_are_refused_as_ever(block, message, purpose):
    with pytest.raises(ValueError, match=message):
        load_config(configuration(block), purpose=purpose)


def test_they_are_no_settings_of_presets_and_new_blocks(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text(json.dumps({"description": "x", "rehrseg": OLD_DEFAULTS}))
    monkeypatch.setattr(presets, "files", lambda _: tmp_path)
    with pytest.raises(ValueError, match=r"mine\.json\.rehrseg\.self_sr\.label_profile: unknown key"):
        load_preset("mine")
    with pytest.raises(ValueError, match=r"rehrseg\.self_sr\.label_profile 'centre' is no setting since 0\.2\.0"):
        parse_block(OLD_DEFAULTS)

"""Defaults that changed: new trainings have the new ones, models of before keep what they were predicted with."""

import pytest

from rehrseg_nnunet.config.changed_defaults import EARLIER_DEFAULTS, with_earlier_defaults
from rehrseg_nnunet.config.guidance import GuidanceConfig
from rehrseg_nnunet.config.guidance import load_config as load_guidance
from rehrseg_nnunet.config.rehrseg import RehrsegConfig, load_config

SPACING = {"spacing": (4.0, 1.0, 1.0)}


@pytest.mark.parametrize("block", [{}, {"rehrseg": {}}, {"rehrseg": {"segmentation": {"lr_dice_weight": 0.5}}}])
def test_only_models_without_the_key_keep_the_earlier_default(block):
    stored = load_config({**SPACING, **block}, purpose="prediction")
    new = load_config({**SPACING, **block}, purpose="training")
    assert (stored.segmentation.hr_from, new.segmentation.hr_from) == ("mean", "lr")
    assert stored.segmentation.lr_dice_weight == new.segmentation.lr_dice_weight
    # what a training writes with its model says everything
    assert load_config({**SPACING, "rehrseg": new.model_dump(mode="json")}, purpose="prediction") == new


@pytest.mark.parametrize("key", ["guidance_channels", "guidance_keeper"])
def test_models_of_guidance_are_those_whose_plans_say_what_they_were_trained_with(key):
    block = {"guidance": {"keeper": {"kernel": 3}}}
    configuration = {**SPACING, "batch_size": 2}
    assert not load_guidance({**configuration, **block, key: {}}).keeper.residual
    new = load_guidance({**configuration, **block})
    assert new.keeper.residual
    written = {"guidance": new.model_dump(mode="json"), key: {}}
    assert load_guidance({**configuration, **written}).keeper.residual


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name in EARLIER_DEFAULTS for path in EARLIER_DEFAULTS[name]]
)
def test_every_one_differs_from_todays(name, path):
    value = {"rehrseg": RehrsegConfig, "guidance": GuidanceConfig}[name]().model_dump()
    for key in path.split("."):
        value = value[key]
    assert value != EARLIER_DEFAULTS[name][path]


def test_the_block_is_not_changed_and_what_is_none_is_left_to_its_validation():
    block = {"segmentation": {"lr_dice_weight": 1.0}}
    with_earlier_defaults(block, "rehrseg")
    assert block == {"segmentation": {"lr_dice_weight": 1.0}}
    for broken in (None, [], {"segmentation": 3}, {"segmentation": None}):
        assert with_earlier_defaults(broken, "rehrseg") == broken

"""Defaults that changed: new trainings have the new ones, models of before keep what they were predicted with."""

import pytest

from rehrseg_nnunet.config.changed_defaults import EARLIER_DEFAULTS, with_earlier_defaults
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


@pytest.mark.parametrize("path", EARLIER_DEFAULTS)
def test_every_one_differs_from_todays(path):
    value = RehrsegConfig().model_dump()
    for key in path.split("."):
        value = value[key]
    assert value != EARLIER_DEFAULTS[path]


def test_the_block_is_not_changed_and_what_is_none_is_left_to_its_validation():
    block = {"segmentation": {"lr_dice_weight": 1.0}}
    with_earlier_defaults(block)
    assert block == {"segmentation": {"lr_dice_weight": 1.0}}
    for broken in (None, [], {"segmentation": 3}, {"segmentation": None}):
        assert with_earlier_defaults(broken) == broken

"""The rehrseg block: defaults, refusals with the key's name, and the factor from the spacing."""

import pytest
from pydantic import ValidationError

from rehrseg_nnunet.config.rehrseg import (
    RehrsegConfig,
    change_segmentation,
    load_config,
    parse_block,
    with_thin_network,
)

THICK = {"spacing": [4.0, 1.0, 1.0]}


def test_an_empty_block_has_the_papers_settings():
    config = parse_block({})
    assert config == RehrsegConfig()
    assert (config.self_sr.base_features, config.self_sr.candidates) == (64, 16)
    assert config.self_sr.learning_rate == 2e-4
    assert config.segmentation.distillation_weight == 1
    assert config.segmentation.affinity_pool == (1, 2, 2)
    assert (config.segmentation.hr_head.first_kernel, config.segmentation.hr_head.second_kernel) == (3, 5)


def test_the_lr_loss_weighs_less_where_lr_logits_are_those_of_a_few_thin_slices():
    thick = {"spacing": [4.0, 1.0, 1.0]}
    for segmentation, weight in (({}, 1), ({"input": "thin", "thin": THIN}, 0.25)):
        assert load_config({**thick, "rehrseg": {"segmentation": segmentation}}).lr_weight == weight
        block = {"segmentation": {**segmentation, "lr_weight": 0.7}}
        assert load_config({**thick, "rehrseg": block}).lr_weight == 0.7


def test_dump_and_parse_are_inverse():
    config = parse_block({"factor": 3, "self_sr": {"simulated_axes": ["y"]}, "segmentation": {"lr_dice_weight": 1}})
    assert parse_block(config.model_dump(mode="json")) == config
    assert parse_block(config.model_dump(mode="json", exclude_unset=True)) == config
    assert config.self_sr.simulated_axes == ("y",)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"self_rs": {}}, r"^rehrseg\.self_rs: unknown key$"),
        ({"self_sr": {"epoch": 5}}, r"^rehrseg\.self_sr\.epoch: unknown key$"),
        ({"segmentation": {"hr_head": {"kernel": 5}}}, r"^rehrseg\.segmentation\.hr_head\.kernel: unknown key$"),
        ({"factor": 1}, r"rehrseg\.factor: .*greater than or equal to 2, got 1"),
        ({"factor": 2.5}, r"rehrseg\.factor: .*integer.*, got 2\.5"),
        ({"self_sr": {"learning_rate": 0}}, r"learning_rate: .*greater than 0, got 0"),
        ({"self_sr": {"image_mode": "mean"}}, r"image_mode: .*'residual' or 'direct', got 'mean'"),
        ({"self_sr": {"simulated_axes": []}}, r"simulated_axes: .*at least 1 item"),
        ({"self_sr": {"simulated_axes": ["z"]}}, r"simulated_axes\.0: .*got 'z'"),
        ({"self_sr": {"scaling_probability": 1.1}}, r"scaling_probability: .*less than or equal to 1, got 1\.1"),
        ({"segmentation": {"true_lr_probability": -0.1}}, r"true_lr_probability: .*got -0\.1"),
        ({"segmentation": {"distillation": "kd"}}, r"segmentation\.distillation: .*'mimic' or 'ifvd', got 'kd'"),
        ({"segmentation": {"distillation_weight": float("nan")}}, r"distillation_weight: .*got nan"),
    ],
)
def test_bad_keys_and_values_are_named(block, message):
    with pytest.raises(ValueError, match=message):
        parse_block(block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"self_sr": {"epochs": 5}}, "rehrseg.self_sr: uncertainty_epochs must be smaller than epochs, got 80 of 5"),
        ({"self_sr": {"scaling": [2, 1]}}, "rehrseg.self_sr: scaling must be (smallest, largest), got (2.0, 1.0)"),
        (
            {"segmentation": {"hr_head": {"second_kernel": 4}}},
            "rehrseg.segmentation.hr_head: second_kernel must be odd, got 4",
        ),
    ],
)
def test_rules_over_several_keys_say_what_they_got_once(block, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        parse_block(block)
    assert str(error.value) == message


def test_all_problems_are_in_one_line():
    with pytest.raises(ValueError, match="factor") as error:
        parse_block({"factor": 0, "self_sr": {"batch_size": 0, "width": 3}})
    message = str(error.value)
    assert all(key in message for key in ("rehrseg.factor", "rehrseg.self_sr.batch_size", "rehrseg.self_sr.width"))
    assert "\n" not in message


@pytest.mark.parametrize("block", [None, 3, ["factor"]])
def test_a_block_that_is_no_block(block):
    with pytest.raises(ValueError, match=r"rehrseg: .*dictionary"):
        parse_block(block)


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError):
        RehrsegConfig().factor = 3


@pytest.mark.parametrize(
    ("spacing", "factor"), [([4, 1, 1], 4), ([3, 1, 1], 3), ([1.6, 1, 1], 2), ([5, 0.9, 1.1], 5), ([6, 0.7, 0.7], 9)]
)
def test_the_factor_comes_from_the_spacing(spacing, factor):
    configuration = {"spacing": spacing, "rehrseg": {"self_sr": {"epochs": 100}}}
    assert load_config(configuration).factor == factor
    assert load_config(configuration).self_sr.epochs == 100
    assert load_config({"spacing": spacing}).factor == factor
    assert configuration == {"spacing": spacing, "rehrseg": {"self_sr": {"epochs": 100}}}


def test_a_given_factor_is_kept():
    assert load_config({**THICK, "rehrseg": {"factor": 3}}).factor == 3


def test_unsupported_configurations_are_refused_with_the_reason():
    with pytest.raises(NotImplementedError, match="2d configurations are not supported"):
        load_config({"spacing": [1.0, 1.0]})
    with pytest.raises(NotImplementedError, match="cascades"):
        load_config({**THICK, "previous_stage": "3d_lowres"})
    with pytest.raises(NotImplementedError, match="cascades"):  # another spacing would not help
        load_config({"spacing": [1.0, 1.0, 1.0], "previous_stage": "3d_lowres"})
    with pytest.raises(ValueError, match=r"1 x 1 x 1 mm.*-overwrite_target_spacing"):
        load_config({"spacing": [1.0, 1.0, 1.0]})
    with pytest.raises(ValueError, match=r"rehrseg\.factr: unknown key"):
        load_config({**THICK, "rehrseg": {"factr": 3}})


def test_changed_settings_of_stage_2_are_checked_and_leave_the_rest():
    config = parse_block({"factor": 3, "segmentation": {"lr_dice_weight": 1, "hr_head": {"hidden_features": 4}}})
    changed = change_segmentation(config, {"distillation": "ifvd", "distillation_weight": 0.1})
    expected = {"distillation": "ifvd", "distillation_weight": 0.1}
    assert changed.segmentation == config.segmentation.model_copy(update=expected)
    assert changed.model_copy(update={"segmentation": config.segmentation}) == config
    assert change_segmentation(config, {}) == config
    assert config.segmentation.distillation == "correlation+spatial"
    with pytest.raises(ValueError, match=r"^rehrseg\.segmentation\.lambda: unknown key$"):
        change_segmentation(config, {"lambda": 1})
    with pytest.raises(ValueError, match="changes must leave hr_head as it is in the plans"):
        change_segmentation(config, {"hr_head": {"hidden_features": 8}})


THIN = {"patch_size": [4, 16, 16], "batch_size": 3, "architecture": {"network_class_name": "a"}}


def test_thin_input_needs_its_network():
    with pytest.raises(ValueError, match=r"rehrseg\.segmentation: input thin needs .* `rehrseg plan --input thin"):
        parse_block({"segmentation": {"input": "thin", "thin": {**THIN, "batch_size": None}}})
    assert parse_block({"segmentation": {"input": "thin", "thin": THIN}}).segmentation.hr_source == "head"
    assert parse_block({"segmentation": {"thin": THIN}}).segmentation.hr_source == "lr"


def test_the_network_of_thin_slices_takes_the_place_of_that_of_thick_ones():
    plans = {
        "configurations": {
            "3d_fullres": {"spacing": [4.0, 1.0, 1.0], "patch_size": [8, 32, 32], "batch_size": 2},
            "2d": {"spacing": [1.0, 1.0]},
        }
    }
    config = load_config({"spacing": [4.0, 1.0, 1.0], "rehrseg": {"segmentation": {"input": "thin", "thin": THIN}}})
    changed = with_thin_network(plans, "3d_fullres", config)
    result = changed["configurations"]["3d_fullres"]
    assert {key: result[key] for key in THIN} == THIN
    assert result["spacing"] == [4.0, 1.0, 1.0]
    assert load_config(result) == config
    assert changed["configurations"]["2d"] == plans["configurations"]["2d"]
    assert plans["configurations"]["3d_fullres"]["patch_size"] == [8, 32, 32]
    assert with_thin_network(changed, "3d_fullres", config) == changed

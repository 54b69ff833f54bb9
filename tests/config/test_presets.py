"""Preset files and what they do to plans."""

import copy
import json
from importlib.resources import files

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.config import presets
from rehrseg_nnunet.config.presets import Preset, apply_preset, load_preset, preset_names
from rehrseg_nnunet.config.rehrseg import RehrsegConfig, load_config
from rehrseg_nnunet.config.segmentation import HRHeadConfig


def raw(name):
    return json.loads(files("rehrseg_nnunet.plans").joinpath(f"{name}.json").read_text())


def configuration(spacing, features=(32, 64, 128)):
    return {
        "data_identifier": "nnUNetPlans_x",
        "spacing": list(spacing),
        "architecture": {"arch_kwargs": {"features_per_stage": list(features), "n_stages": len(features)}},
    }


def plans():
    return {
        "plans_name": "nnUNetPlans",
        "configurations": {
            "2d": configuration((1.0, 1.0)),
            "3d_lowres": configuration((4.0, 4.0, 4.0)),
            "3d_fullres": configuration((4.0, 1.0, 1.0)),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


def keys_of(tree, path=()):
    for key, value in tree.items():
        yield from keys_of(value, (*path, key)) if isinstance(value, dict) else [(*path, key)]


def test_every_preset_is_valid():
    assert preset_names() == ["cpu", "demo", "paper"]
    for name in preset_names():
        preset = load_preset(name)
        assert preset.description
        assert preset.rehrseg.factor is None  # presets fit any dataset
        assert load_config({"spacing": [4, 1, 1], "rehrseg": raw(name)["rehrseg"]}).factor == 4


def test_the_papers_preset_spells_out_every_key_and_differs_from_the_defaults_where_the_paper_does():
    paper = load_preset("paper").rehrseg
    as_it_comes = {"back_projection_steps": 0, "uncertainty": "normalised", "volume_offsets": False}
    export = RehrsegConfig().self_sr.export.model_copy(update=as_it_comes)
    stage_1 = {
        "image_mode": "direct",
        "label_mode": "direct",
        "smooth_upsampling": False,
        "uncertainty_error": "image",
        "simulated_axes": ("x",),
        "label_dropout": 0,
        "export": export,
    }
    own = {
        "self_sr": RehrsegConfig().self_sr.model_copy(update=stage_1),
        "segmentation": RehrsegConfig().segmentation.model_copy(
            update={
                "uncertainty_strength": 1,
                "lr_dice_weight": 0,
                "lr_weight": 1,
                "true_lr_probability": 0,
                "hr_head": HRHeadConfig(label_mode="direct", upsampling="interpolate"),
                "hr_from": "head",
            }
        ),
    }
    assert paper == RehrsegConfig().model_copy(update=own)
    assert load_preset("paper").network_width == 1
    written = raw("paper")["rehrseg"]
    defaults = RehrsegConfig().model_dump(mode="json", exclude={"factor"})  # comes from the spacing
    assert set(keys_of(written)) == set(keys_of(defaults))


def test_a_preset_that_does_not_exist():
    with pytest.raises(ValueError, match=r"preset must be one of \[.*'paper'.*\], got 'papr'"):
        load_preset("papr")


def test_a_broken_preset_names_file_and_key(tmp_path, monkeypatch):
    (tmp_path / "mine.json").write_text(json.dumps({"description": "x", "rehrseg": {"self_sr": {"epoch": 3}}}))
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.setattr(presets, "files", lambda _: tmp_path)
    assert preset_names() == ["mine"]
    with pytest.raises(ValueError, match=r"^mine\.json\.rehrseg\.self_sr\.epoch: unknown key$"):
        load_preset("mine")


def test_thick_configurations_get_the_block_and_the_rest_stays():
    before = plans()
    original = copy.deepcopy(before)
    preset = Preset(description="x", network_width=0.5, rehrseg={"self_sr": {"epochs": 100}})
    after = apply_preset(before, preset, plans_name="mine")
    assert before == original
    assert after["plans_name"] == "mine"
    assert after["configurations"]["3d_fullres"]["rehrseg"] == {"self_sr": {"epochs": 100}}
    kwargs = after["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs == {"features_per_stage": [16, 32, 64], "n_stages": 3}
    assert after["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlans_x"
    for name in ("2d", "3d_lowres", "3d_cascade_fullres"):
        assert after["configurations"][name] == original["configurations"][name]


def widths(plans, name):
    resolved = PlansManager(plans).get_configuration(name).configuration
    return resolved["architecture"]["arch_kwargs"]["features_per_stage"]


@pytest.mark.parametrize("parent_spacing", [(4.0, 1.0, 1.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("own_network", [True, False])
def test_a_thick_3d_lowres_that_inherits_has_the_preset(parent_spacing, own_network):
    """nnU-Net's integration tests add a 3d_lowres that inherits from 3d_fullres, with a network of its own."""
    before = plans()
    lowres = {"inherits_from": "3d_fullres", "spacing": [4.0, 2.0, 2.0], "next_stage": "3d_cascade_fullres"}
    if own_network:
        lowres["architecture"] = configuration((), features=(16, 32))["architecture"]
    before["configurations"] |= {"3d_fullres": configuration(parent_spacing), "3d_lowres": lowres}
    preset = Preset(description="x", network_width=0.5, rehrseg={"self_sr": {"epochs": 100}})
    after = apply_preset(apply_preset(before, load_preset("demo"), plans_name="first"), preset, plans_name="mine")
    config = load_config(PlansManager(after).get_configuration("3d_lowres").configuration)
    assert (config.self_sr.epochs, config.factor) == (100, 2)
    once = apply_preset(before, preset, plans_name="mine")
    assert widths(once, "3d_lowres") == ([8, 16] if own_network else [16, 32, 64])
    assert widths(once, "3d_fullres") == ([16, 32, 64] if parent_spacing[0] == 4 else [32, 64, 128])


@pytest.mark.parametrize("name", preset_names())
def test_what_is_written_is_what_was_meant(name):
    written = json.loads(json.dumps(apply_preset(plans(), load_preset(name), plans_name="mine")))
    config = load_config(written["configurations"]["3d_fullres"])
    assert config.model_dump() == {**load_preset(name).rehrseg.model_dump(), "factor": 4}


def test_no_stage_gets_fewer_than_4_features():
    preset = Preset(description="x", network_width=0.01)
    after = apply_preset(plans(), preset, plans_name="mine")
    kwargs = after["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert kwargs["features_per_stage"] == [4, 4, 4]


def test_plans_without_thick_slices_are_refused_with_all_reasons():
    isotropic = plans()
    isotropic["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"thick-slice 3d configuration.*2d: .*3d_lowres: .*3d_fullres: .*1 x 1 x 1"):
        apply_preset(isotropic, load_preset("paper"), plans_name="mine")


def guided(**changes):
    """Plans whose configurations have batch sizes, as nnU-Net's do."""
    content = plans()
    for name, entry in content["configurations"].items():
        if "inherits_from" not in entry:
            entry["batch_size"] = 2
        entry.update(changes.get(name, {}))
    return content


def test_guidance_goes_to_every_configuration_but_cascades():
    preset = Preset(description="x", network_width=0.5, guidance={"base_features": 4})
    before = guided()
    after = apply_preset(before, preset, plans_name="mine", methods=["guidance"])["configurations"]
    for name in ("2d", "3d_lowres", "3d_fullres"):
        assert after[name]["guidance"] == {"base_features": 4}
        assert after[name]["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32, 64]
        assert "rehrseg" not in after[name]
    assert after["3d_cascade_fullres"] == before["configurations"]["3d_cascade_fullres"]


def test_both_blocks_narrow_a_network_once():
    preset = Preset(description="x", network_width=0.5, guidance={"base_features": 4}, rehrseg={"factor": 3})
    after = apply_preset(guided(), preset, plans_name="mine", methods=["rehrseg", "guidance"])
    block = after["configurations"]["3d_fullres"]
    assert (block["rehrseg"], block["guidance"]) == ({"factor": 3}, {"base_features": 4})
    assert {name: "rehrseg" in entry for name, entry in after["configurations"].items()} == {
        "2d": False,
        "3d_lowres": False,
        "3d_fullres": True,
        "3d_cascade_fullres": False,
    }
    assert all(widths(after, name) == [16, 32, 64] for name in after["configurations"])


def test_presets_have_one_learning_rate_from_trained_for_both():
    for name in preset_names():
        preset = load_preset(name)
        assert preset.guidance.learning_rate_from_trained == preset.rehrseg.segmentation.learning_rate_from_trained

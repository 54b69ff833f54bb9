"""Preset files and what they do to plans."""

import copy
import json
from importlib.resources import files

import pytest

from rehrseg_nnunet import presets
from rehrseg_nnunet.config import RehrsegConfig, load_config
from rehrseg_nnunet.presets import Preset, apply_preset, load_preset, preset_names


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
    assert {"paper", "cpu", "demo"} <= set(preset_names())
    for name in preset_names():
        preset = load_preset(name)
        assert preset.description
        assert preset.rehrseg.factor is None  # presets fit any dataset
        assert load_config({"spacing": [4, 1, 1], "rehrseg": raw(name)["rehrseg"]}).factor == 4


def test_the_papers_preset_spells_out_every_default():
    assert load_preset("paper").rehrseg == RehrsegConfig()
    assert load_preset("paper").network_width == 1
    written = raw("paper")["rehrseg"]
    defaults = RehrsegConfig().model_dump(mode="json", exclude={"factor"})  # comes from the spacing
    assert set(keys_of(written)) == set(keys_of(defaults))
    assert written == defaults


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


@pytest.mark.parametrize("name", preset_names())
def test_what_is_written_is_what_was_meant(name):
    written = json.loads(json.dumps(apply_preset(plans(), load_preset(name), plans_name="mine")))
    config = load_config(written["configurations"]["3d_fullres"])
    assert config == load_preset(name).rehrseg.model_copy(update={"factor": 4})


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

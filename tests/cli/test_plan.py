"""Plans with a preset: what nnU-Net loads from them, and what is refused before anything is written."""

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.config.guidance import load_config as load_guidance
from rehrseg_nnunet.config.presets import load_preset
from rehrseg_nnunet.config.rehrseg import RehrsegConfig, load_config, parse_block

DATASET = "Dataset009_Thick"
SPACINGS = [3.0, 5.0, 6.0, 6.5, 7.0]  # of the slices, case by case


def configuration(spacing, resampler="resample_data_or_seg_to_shape", **options):
    options = options or {"order": 1, "order_z": 0, "force_separate_z": None}
    result = {
        "data_identifier": f"nnUNetPlans_{len(spacing)}d_{spacing[0]}",
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": [4, 16, 16][-len(spacing) :],
        "batch_size": 2,
        "spacing": list(spacing),
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {"features_per_stage": [32, 64], "n_stages": 2},
            "_kw_requires_import": [],
        },
    }
    for kind in ("data", "seg", "probabilities"):
        result[f"resampling_fn_{kind}"] = resampler
        result[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", **options}
    return result


def plans(**configurations):
    return {
        "dataset_name": DATASET,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [6.0, 1.0, 1.0],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": configurations
        or {
            "2d": configuration((1.0, 1.0)),
            "3d_fullres": configuration((4.0, 1.0, 1.0)),
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    folder = tmp_path / "nnUNet_preprocessed" / DATASET
    folder.mkdir()
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans()))
    return folder


def plan(*options, dataset="9", name="mine"):
    return main(["plan", "-d", dataset, "-o", name, *options])


def written(folder, name="mine"):
    return json.loads((folder / f"{name}.json").read_text())


def error_of(capsys, *options, **names):
    assert plan(*options, **names) == 1
    error = capsys.readouterr().err
    assert error.startswith("rehrseg plan: error: ")
    assert error.count("\n") == 1
    return error


def test_nnunet_loads_them(folder, capsys):
    assert plan("--preset", "cpu") == 0
    manager = PlansManager(str(folder / "mine.json"))
    assert manager.plans_name == "mine"
    resolved = manager.get_configuration("3d_fullres")
    assert load_config(resolved.configuration).model_dump() == {**load_preset("cpu").rehrseg.model_dump(), "factor": 4}
    assert resolved.network_arch_init_kwargs["features_per_stage"] == [16, 32]
    assert "rehrseg" in manager.get_configuration("3d_cascade_fullres").configuration
    assert capsys.readouterr().out == f"wrote {folder / 'mine.json'}\n"


def test_preprocessed_data_are_shared(folder):
    before = (folder / "nnUNetPlans.json").read_bytes()
    assert plan() == 0
    assert (folder / "nnUNetPlans.json").read_bytes() == before
    old, new = plans()["configurations"], written(folder)["configurations"]
    assert new["2d"] == old["2d"]
    block = new["3d_fullres"].pop("rehrseg")
    assert parse_block(block) == RehrsegConfig()
    assert new["3d_fullres"] == old["3d_fullres"]
    assert {file.name for file in folder.iterdir()} == {"nnUNetPlans.json", "mine.json"}


def test_plans_with_settings_keep_them_under_another_name(folder):
    assert plan("--preset", "cpu") == 0
    assert plan("-p", "mine", name="again") == 0
    assert written(folder, "again") == {**written(folder), "plans_name": "again"}


def store(folder, block):
    """Plans `old` with a block of an earlier version."""
    content = plans()
    content["configurations"]["3d_fullres"]["rehrseg"] = block
    (folder / "old.json").write_text(json.dumps(content))


def test_a_copy_leaves_removed_settings_with_their_old_default_out(folder):
    store(folder, {"self_sr": {"epochs": 90, "label_profile": "centre"}, "segmentation": {"affinity_per_slice": False}})
    assert plan("-p", "old") == 0
    assert written(folder)["configurations"]["3d_fullres"]["rehrseg"] == {"self_sr": {"epochs": 90}, "segmentation": {}}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"self_sr": {"export": {"keep_volume": True}}},
            "-p old, 3d_fullres: rehrseg.self_sr.export.keep_volume True is no setting since 0.2.0: ",
        ),
        ({"self_sr": {"epoch": 3}}, "-p old, 3d_fullres: rehrseg.self_sr.epoch: unknown key"),
    ],
)
def test_plans_that_cannot_be_trained_with_are_not_copied(folder, capsys, block, message):
    store(folder, block)
    assert message in error_of(capsys, "-p", "old")
    assert not (folder / "mine.json").exists()


@pytest.mark.parametrize("options", [("--preset", "cpu"), ("--preset", "paper"), ("--z-spacing", "median")])
def test_plans_with_settings_take_no_others(folder, capsys, options):
    """The network would be narrowed twice, or stay narrow; planned anew, the settings would be lost."""
    assert plan("--preset", "cpu") == 0
    error = error_of(capsys, "-p", "mine", *options, name="again")
    assert f"-p must be plans without a rehrseg block to take {' '.join(options)}, but mine has one" in error
    assert not (folder / "again.json").exists()


@pytest.mark.parametrize("dataset", ["9", "009", DATASET])
def test_linear_interpolation_between_slices_has_data_of_its_own(folder, capsys, dataset):
    assert plan("--order-z", "1", dataset=dataset) == 0
    configurations = written(folder)["configurations"]
    assert configurations["3d_fullres"]["data_identifier"] == "mine_3d_fullres"
    assert configurations["2d"]["data_identifier"] == "mine_2d"
    assert "data_identifier" not in configurations["3d_cascade_fullres"]
    for kind in ("data", "seg", "probabilities"):
        options = configurations["3d_fullres"][f"resampling_fn_{kind}_kwargs"]
        assert options == {"is_seg": kind == "seg", "order": 1, "order_z": 1, "force_separate_z": None}
    assert "next: nnUNetv2_preprocess -d 9 -plans_name mine -c 3d_fullres\n" in capsys.readouterr().out


@pytest.mark.parametrize("order", [0, 1])
def test_the_order_does_what_it_says(folder, order):
    assert plan("--order-z", str(order)) == 0
    manager = PlansManager(str(folder / "mine.json")).get_configuration("3d_fullres")
    ramp = np.arange(5, dtype=np.float32).repeat(16).reshape(1, 5, 4, 4)
    line = manager.resampling_fn_data(ramp, (10, 4, 4), (6, 1, 1), (3, 1, 1))[0, :, 0, 0]
    linear = np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4)
    expected = linear if order else np.arange(5).repeat(2)
    np.testing.assert_allclose(line, expected, atol=1e-5)
    assert manager.resampling_fn_data.func is resample_data_or_seg_to_shape


@pytest.mark.parametrize("planned", [{}, {"aniso_axis_mode": "nearest-exact"}])
def test_nnunets_torch_resampling_is_set_too(folder, planned):
    """Its planner says nothing of the slice axis, so the function's default counts."""
    torch_options = {"force_separate_z": None, "mode": "linear", **planned}
    content = plans(**{"3d_fullres": configuration((4.0, 1.0, 1.0), "resample_torch_fornnunet", **torch_options)})
    (folder / "torch.json").write_text(json.dumps(content))
    assert plan("-p", "torch", "--order-z", "1") == 0
    manager = PlansManager(str(folder / "mine.json")).get_configuration("3d_fullres")
    ramp = np.arange(5, dtype=np.float32).repeat(16).reshape(1, 5, 4, 4)
    line = manager.resampling_fn_data(ramp, (10, 4, 4), (6, 1, 1), (3, 1, 1))[0, :, 0, 0]
    np.testing.assert_allclose(line, np.clip((np.arange(10) + 0.5) / 2 - 0.5, 0, 4), atol=1e-5)


def test_guidance_takes_isotropic_and_2d_plans(folder):
    isotropic = {"2d": configuration((1.0, 1.0)), "3d_fullres": configuration((1.0, 1.0, 1.0))}
    (folder / "iso.json").write_text(json.dumps(plans(**isotropic)))
    assert plan("-p", "iso", "--method", "guidance", "--preset", "cpu") == 0
    for name in isotropic:
        resolved = PlansManager(str(folder / "mine.json")).get_configuration(name)
        assert load_guidance(resolved.configuration).keeper == load_preset("cpu").guidance.keeper
        assert resolved.network_arch_init_kwargs["features_per_stage"] == [16, 32]
        assert "rehrseg" not in resolved.configuration


def test_both_methods_in_one_plans_file(folder):
    assert plan("--method", "both") == 0
    configurations = written(folder)["configurations"]
    assert configurations["3d_fullres"]["rehrseg"] == configurations["3d_fullres"]["guidance"] == {}
    assert "guidance" in configurations["2d"]
    assert "rehrseg" not in configurations["2d"]


def test_a_second_block_joins_the_first_and_leaves_it(folder, capsys):
    assert plan("--preset", "cpu") == 0
    before = written(folder)
    assert plan("-p", "mine", "--method", "both", "--preset", "demo", name="again") == 0
    after = written(folder, "again")
    demo = load_preset("demo").guidance.model_dump(mode="json", exclude_unset=True)
    for name in ("2d", "3d_fullres"):
        assert after["configurations"][name].pop("guidance") == demo
    assert after == {**before, "plans_name": "again"}
    assert plan("-p", "again", "--method", "guidance", name="third") == 0
    assert "to take --preset cpu, but again has one" in error_of(
        capsys, "-p", "again", "--method", "both", "--preset", "cpu", name="third"
    )


def test_thin_input_without_rehrseg_is_refused(folder, capsys):
    assert "--input thin is of thick slices" in error_of(capsys, "--method", "guidance", "--input", "thin")
    assert not (folder / "mine.json").exists()


def test_isotropic_plans_are_refused_with_the_reason(folder, capsys):
    (folder / "iso.json").write_text(json.dumps(plans(**{"3d_fullres": configuration((1.0, 1.0, 1.0))})))
    error = error_of(capsys, "-p", "iso")
    assert "3d_fullres: spacing must have slices at least 1.5 times as thick" in error
    assert "-overwrite_target_spacing" in error
    assert not (folder / "mine.json").exists()


def test_missing_plans_and_datasets(folder, capsys):
    assert "other.json is missing; run nnUNetv2_plan_and_preprocess" in error_of(capsys, "-p", "other")
    assert "dataset 8 was not found" in error_of(capsys, dataset="8")
    assert "-o must be another name than the plans to start from" in error_of(capsys, name="nnUNetPlans")
    with pytest.raises(SystemExit):
        plan("--preset", "none")


def test_other_plans_are_not_overwritten_but_own_ones_are(folder, capsys):
    (folder / "theirs.json").write_text(json.dumps(plans()))
    assert "theirs.json has none" in error_of(capsys, name="theirs")
    assert written(folder, "theirs") == plans()
    assert plan("--preset", "cpu") == 0
    assert plan("--preset", "paper") == 0
    assert parse_block(written(folder)["configurations"]["3d_fullres"]["rehrseg"]) == load_preset("paper").rehrseg


def test_a_median_that_is_not_thick_is_refused_before_planning(folder, capsys):
    thin = {**plans(), "original_median_spacing_after_transp": [1.2, 1.0, 1.0]}
    (folder / "thin.json").write_text(json.dumps(thin))
    assert "got 1.2 x 1 x 1 mm" in error_of(capsys, "-p", "thin", "--z-spacing", "median")
    flat = plans(**{"2d": configuration((1.0, 1.0))})
    (folder / "flat.json").write_text(json.dumps(flat))
    assert "-p must be plans with a 3d_fullres configuration, got ['2d']" in error_of(
        capsys, "-p", "flat", "--z-spacing", "median"
    )
    assert not (folder / "mine.json").exists()


def mixed_dataset(tmp_path, slice_axis):
    """Raw dataset and fingerprint of cases whose slices differ, along any axis of the files."""
    raw = tmp_path / "nnUNet_raw" / DATASET
    (raw / "imagesTr").mkdir(parents=True)
    (raw / "labelsTr").mkdir()
    dataset = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1},
        "numTraining": len(SPACINGS),
        "file_ending": ".nrrd",
    }
    for target in (raw, tmp_path / "nnUNet_preprocessed" / DATASET):
        (target / "dataset.json").write_text(json.dumps(dataset))
    for case in range(len(SPACINGS)):
        blank = sitk.Image((4, 4, 4), sitk.sitkUInt8)
        sitk.WriteImage(blank, str(raw / "imagesTr" / f"{case}_0000.nrrd"))
        sitk.WriteImage(blank, str(raw / "labelsTr" / f"{case}.nrrd"))
    spacings, shapes = np.ones((len(SPACINGS), 3)), np.full((len(SPACINGS), 3), 24)
    spacings[:, slice_axis], shapes[:, slice_axis] = SPACINGS, 6
    intensities = dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
    return {
        "spacings": spacings.tolist(),
        "shapes_after_crop": shapes.tolist(),
        "foreground_intensity_properties_per_channel": {"0": intensities},
        "median_relative_size_after_cropping": 1.0,
    }


@pytest.mark.parametrize("slice_axis", [0, 2])
def test_the_median_slice_spacing_wherever_the_slices_lie(folder, tmp_path, monkeypatch, slice_axis):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    # the planner's estimate of GPU memory takes seconds and decides nothing here
    def estimate(*args, **kwargs):
        assert get_allowed_n_proc_DA() > 0  # the planner takes it for a number of threads
        return 1e6

    monkeypatch.setattr(ExperimentPlanner, "static_estimate_VRAM_usage", staticmethod(estimate))
    (folder / "dataset_fingerprint.json").write_text(json.dumps(mixed_dataset(tmp_path, slice_axis)))
    (folder / "nnUNetPlans.json").unlink()
    ExperimentPlanner(9).plan_experiment()
    original = written(folder, "nnUNetPlans")
    assert original["configurations"]["3d_fullres"]["spacing"][0] < 5  # the 10th percentile
    assert original["transpose_forward"][0] == slice_axis
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # loading in the training's process
    assert plan("--z-spacing", "median", "--order-z", "1") == 0
    assert os.environ["nnUNet_n_proc_DA"] == "0"
    new = written(folder)
    assert new["configurations"]["3d_fullres"]["spacing"] == [6.0, 1.0, 1.0]
    assert new["transpose_forward"] == original["transpose_forward"]
    assert new["configurations"]["3d_fullres"]["data_identifier"] == "mine_3d_fullres"
    assert new["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["order_z"] == 1
    assert load_config(new["configurations"]["3d_fullres"]).factor == 6
    assert written(folder, "nnUNetPlans") == original
    assert plan("--z-spacing", "median") == 0  # own plans may be written again
    assert written(folder)["configurations"]["3d_fullres"]["resampling_fn_data_kwargs"]["order_z"] == 0

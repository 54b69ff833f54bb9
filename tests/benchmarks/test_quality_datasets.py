"""Thick, interpolated and true thin slices: values, grids, plans, and nothing made twice or half."""

import argparse
import json
import re
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from benchmarks.quality.benchmark import CONFIGURATION, OFFSETS, labelled_files
from benchmarks.quality.datasets import (
    copy_cases,
    copy_true_hr,
    decide_at_centres,
    interpolate_dataset,
    prepare,
    read_folder,
    whole,
    write_thin_dataset,
)
from benchmarks.quality.plans import merged, with_patch
from rehrseg_nnunet.cli.simulate import AXES, add_arguments, simulate
from rehrseg_nnunet.cli.simulate import run as run_simulate
from rehrseg_nnunet.config.presets import load_preset
from rehrseg_nnunet.config.rehrseg import BLOCK, load_config
from rehrseg_nnunet.guided.paired_channels import PairedChannels


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def values(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def same_grid(one, other):
    getters = ("GetSize", "GetSpacing", "GetOrigin", "GetDirection")
    return all(np.allclose(getattr(one, get)(), getattr(other, get)(), atol=1e-4) for get in getters)


def test_the_first_cases_are_trained_on_and_the_next_ones_tested(make_benchmark, write_source, tmp_path):
    source, target = make_benchmark().source, tmp_path / "copied"
    write_source(source)
    (source / "imagesTs").mkdir()  # has no labels: not copied
    copy_cases(source, target, cases=3, test_cases=1)
    assert names(target) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs"]
    assert names(target / "imagesTr") == [f"case_{case}_0000.nii.gz" for case in range(3)]
    assert names(target / "labelsTr") == [f"case_{case}.nii.gz" for case in range(3)]
    assert names(target / "imagesTs") == ["case_3_0000.nii.gz"]
    assert names(target / "labelsTs") == ["case_3.nii.gz"]
    copied = target / "labelsTs" / "case_3.nii.gz"
    assert copied.read_bytes() == (source / "labelsTr" / "case_3.nii.gz").read_bytes()
    before, after = (json.loads((folder / "dataset.json").read_text()) for folder in (source, target))
    assert after == {**before, "numTraining": 3}


def test_every_channel_is_copied_and_similar_names_are_not_mixed_up(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in ("imagesTr", "labelsTr"):
        (source / folder).mkdir(parents=True)
    for case in ("a", "a_0001", "b"):
        (source / "labelsTr" / f"{case}.nii.gz").touch()
        for channel in ("0000", "0001"):
            (source / "imagesTr" / f"{case}_{channel}.nii.gz").touch()
    content = {"file_ending": ".nii.gz", "channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0}}
    (source / "dataset.json").write_text(json.dumps(content))
    copy_cases(source, target, cases=2, test_cases=0)
    assert names(target) == ["dataset.json", "imagesTr", "labelsTr"]  # an empty test set would be predicted
    expected = ["a_0000.nii.gz", "a_0001.nii.gz", "a_0001_0000.nii.gz", "a_0001_0001.nii.gz"]
    assert names(target / "imagesTr") == expected


def test_labelled_files_are_in_order_and_of_the_datasets_ending(tmp_path, write_json):
    write_json(tmp_path / "dataset.json", {"file_ending": ".nii.gz"})
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "imagesTr").mkdir()
    for file in ("labelsTr/b.nii.gz", "labelsTr/a.nii.gz", "labelsTr/a.nii", "labelsTr/note.txt", "imagesTr/c.nii.gz"):
        (tmp_path / file).touch()
    assert labelled_files(tmp_path) == [tmp_path / "labelsTr" / "a.nii.gz", tmp_path / "labelsTr" / "b.nii.gz"]


def test_labelled_files_are_of_a_dataset(tmp_path):
    missing = re.escape(str(tmp_path / "dataset.json"))
    with pytest.raises(FileNotFoundError, match=rf"^{missing} is missing; \S+ is no nnU-Net dataset without it$"):
        labelled_files(tmp_path)


@pytest.mark.parametrize(("cases", "test_cases"), [(5, 2), (7, 0), (5, 0)])
def test_all_cases_may_be_taken(make_benchmark, write_source, cases, test_cases):
    benchmark = make_benchmark(cases=cases, test_cases=test_cases)
    write_source(benchmark.source, cases=7)
    benchmark.check()
    assert not benchmark.work.exists()


@pytest.mark.parametrize(("cases", "test_cases"), [(5, 2), (7, 0), (6, 1)])
def test_too_few_cases_are_refused(make_benchmark, write_source, cases, test_cases):
    benchmark = make_benchmark(cases=cases, test_cases=test_cases)
    write_source(benchmark.source, cases=6)
    message = rf"^--cases and --test-cases must be at most 6 together, got {cases} \+ {test_cases}$"
    with pytest.raises(ValueError, match=message):
        benchmark.check()
    assert not benchmark.work.exists()


@pytest.mark.parametrize(("cases", "test_cases"), [(4, 2), (0, 2), (-5, 0), (5, -1)])
def test_counts_that_make_no_folds_are_refused(make_benchmark, write_source, cases, test_cases):
    benchmark = make_benchmark(cases=cases, test_cases=test_cases)
    write_source(benchmark.source)
    with pytest.raises(ValueError, match=r"^--cases must be at least 5 and --test-cases at least 0, got \S+ and \S+$"):
        benchmark.check()


@pytest.mark.parametrize(("axis", "slices"), [("z", 16), ("y", 12), ("x", 12)])
def test_thick_slices_must_fit_into_every_case(make_benchmark, write_source, axis, slices):
    fits = make_benchmark(axis=axis, factor=slices)
    write_source(fits.source)
    fits.check()
    for factor in (1, slices + 1):
        message = rf"^--factor must be from 2 to the fewest slices of a case, {slices}, got {factor}$"
        with pytest.raises(ValueError, match=message):
            make_benchmark(axis=axis, factor=factor).check()


@pytest.mark.parametrize("name", ["Dataset001_Lowest", "Dataset199_Highest"])
def test_every_dataset_of_a_source_has_a_number_that_nnunet_takes(make_benchmark, write_source, tmp_path, name):
    benchmark = make_benchmark(source=tmp_path / name)
    write_source(benchmark.source)
    benchmark.check()
    numbers = [int(benchmark.dataset(data)[7:10]) for data in OFFSETS]
    assert numbers == [int(name[7:10]) + offset for offset in OFFSETS.values()]
    assert len({*numbers, int(name[7:10])}) == len(OFFSETS) + 1
    assert all(benchmark.dataset(data)[10] == "_" for data in OFFSETS)


@pytest.mark.parametrize(
    "name", ["Dataset200_Liver", "Dataset999_Liver", "Dataset000_Liver", "Hippocampus", "004_Tiny", "Dataset004"]
)
def test_a_number_without_room_is_refused(make_benchmark, write_source, tmp_path, name):
    benchmark = make_benchmark(source=tmp_path / name)
    write_source(benchmark.source)
    with pytest.raises(ValueError, match=rf"^--source must be named Dataset001_NAME to Dataset199_NAME, got {name}$"):
        benchmark.check()


def test_a_folder_that_is_no_dataset_is_refused(make_benchmark):
    benchmark = make_benchmark()
    benchmark.source.mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"dataset\.json is missing; \S+ is no nnU-Net dataset"):
        benchmark.check()


def test_what_is_not_whole_does_not_get_the_name(tmp_path):
    target = tmp_path / "raw" / "Dataset001_A"

    def write(*files, fails):
        with whole(target) as partial:
            for file in files:
                (partial / file).touch()
            if fails:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write("a", fails=True)
    assert not target.exists()
    write("b", fails=False)
    assert names(target) == ["b"]  # without what the first attempt left
    assert names(target.parent) == [target.name]


@pytest.fixture
def simulated(make_benchmark, write_source, monkeypatch):
    """Thick slices of two training cases and a test case; the folder."""

    def make(factor=4, axis="z"):
        benchmark = make_benchmark(factor=factor, axis=axis)
        raw = benchmark.work / "nnUNet_raw"
        write_source(benchmark.source, cases=3)
        copy_cases(benchmark.source, raw / benchmark.source.name, cases=2, test_cases=1)
        for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            monkeypatch.setenv(variable, str(benchmark.work / variable))
        return simulate("4", 504, factor=factor, axis=axis)

    return make


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("factor", [2, 3])
def test_interpolated_thin_slices_lie_where_the_true_ones_do(simulated, tmp_path, factor, axis):
    thick, target = simulated(factor, axis), tmp_path / "interpolated"
    interpolate_dataset(thick, target, factor=factor, axis=AXES[axis])
    assert names(target) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs"]
    for subfolder in ("imagesTr", "imagesTs", "labelsTr", "labelsTs"):
        files = names(thick / subfolder)
        assert names(target / subfolder) == files
        for file in files:
            truth = sitk.ReadImage(str(thick / f"{subfolder}HR" / file))
            assert same_grid(sitk.ReadImage(str(target / subfolder / file)), truth), file
    image, truth = (values(folder / "case_0_0000.nii.gz") for folder in (target / "imagesTr", thick / "imagesTrHR"))
    assert image.dtype == np.float32
    assert np.corrcoef(image.ravel(), truth.ravel())[0, 1] > 0.8  # the objects are where they were
    labels, truth = (values(folder / "case_0.nii.gz") for folder in (target / "labelsTr", thick / "labelsTrHR"))
    assert labels.dtype == truth.dtype
    assert set(np.unique(labels)) == {0, 1, 2}
    for label in (1, 2):
        dice = 2 * ((labels == label) & (truth == label)).sum() / ((labels == label).sum() + (truth == label).sum())
        assert dice > 0.8


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_thick_slices_get_what_the_probabilities_say_at_their_centres(simulated, tmp_path, factor, axis):
    """As a network of thin slices says it, whatever its labels say on either side of the centre."""
    thick, rng = simulated(factor, axis), np.random.default_rng(0)
    predicted = tmp_path / "predicted"
    shutil.copytree(thick / "labelsTrHR", predicted)
    saved = {}
    for file, labels, _ in read_folder(predicted, labels=True):
        soft = np.stack([labels == label for label in range(3)]) + rng.uniform(0, 1.5, (3, *labels.shape))
        saved[file.name] = soft.astype(np.float32)
        np.savez_compressed(predicted / f"{file.name[:-7]}.npz", probabilities=saved[file.name])
    (tmp_path / "centres").mkdir()
    label_manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
    how = {"factor": factor, "axis": AXES[axis], "label_manager": label_manager}
    decide_at_centres(predicted, tmp_path / "centres", **how)
    assert names(tmp_path / "centres") == ["case_0.nii.gz", "case_1.nii.gz"]
    for file, labels, _ in read_folder(tmp_path / "centres", labels=True):
        assert same_grid(sitk.ReadImage(str(file)), sitk.ReadImage(str(thick / "labelsTr" / file.name)))
        fine = np.moveaxis(saved[file.name], AXES[axis] + 1, 1)
        inner = [fine[:, k::factor] for k in {(factor - 1) // 2, factor // 2}]
        np.testing.assert_array_equal(labels, np.moveaxis(sum(inner).argmax(axis=0), 0, AXES[axis]))
    (predicted / "case_1.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"case_1\.npz is missing: predict with probabilities"):
        decide_at_centres(predicted, tmp_path / "centres", **how)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_interpolating_labels_and_decimating_them_gives_them_back(write_volume, write_json, tmp_path, factor, axis):
    """Two blocks that touch, of four thick slices."""
    labels = np.zeros((8, 8, 8), dtype=np.uint8)
    labels[2:6, 2:7, 1:4] = 1
    labels[2:6, 2:7, 4:7] = 2
    labels = np.moveaxis(labels, 0, axis)
    spacing = [1.0, 1.0, 1.0]
    spacing[2 - axis] = 4.0
    turn = [0.6, 0, 0.8, 0, 1, 0, -0.8, 0, 0.6]
    thick, thin, back = tmp_path / "thick", tmp_path / "thin", tmp_path / "back"
    geometry = {"spacing": spacing, "origin": (5.0, -3.0, 2.0), "direction": turn}
    write_volume(thick / "labelsTr" / "a.nii.gz", labels, **geometry)
    write_json(thick / "dataset.json", {})
    interpolate_dataset(thick, thin, factor=factor, axis=axis)
    image = sitk.ReadImage(str(thin / "labelsTr" / "a.nii.gz"))
    assert image.GetSize()[2 - axis] == 8 * factor
    assert image.GetSpacing()[2 - axis] == pytest.approx(4 / factor)
    step = np.array(turn).reshape(3, 3)[:, 2 - axis]
    np.testing.assert_allclose(
        image.GetOrigin(), np.array(geometry["origin"]) + step * 4 * (0.5 / factor - 0.5), atol=1e-4
    )
    sure = np.stack([sitk.GetArrayFromImage(image) == label for label in range(3)]).astype(np.float32)
    np.savez_compressed(thin / "labelsTr" / "a.npz", probabilities=sure)
    label_manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
    back.mkdir()
    decide_at_centres(thin / "labelsTr", back, factor=factor, axis=axis, label_manager=label_manager)
    returned = sitk.ReadImage(str(back / "a.nii.gz"))
    assert same_grid(returned, sitk.ReadImage(str(thick / "labelsTr" / "a.nii.gz")))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(returned), labels)


def test_the_true_thin_slices_are_a_dataset_of_their_own(simulated, tmp_path):
    thick, target = simulated(), tmp_path / "true"
    copy_true_hr(thick, target)
    assert names(target) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs"]
    for subfolder in ("imagesTr", "imagesTs", "labelsTr", "labelsTs"):
        kept = thick / f"{subfolder}HR"
        assert names(target / subfolder) == names(kept)
        for file in names(kept):
            assert (target / subfolder / file).read_bytes() == (kept / file).read_bytes()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_interpolated_images_with_other_labels(simulated, tmp_path, factor, axis):
    thick = simulated(factor, axis)
    targets = {}
    for data in ("interpolated", "interpolated_true_labels", "interpolated_sparse"):
        targets[data] = tmp_path / data
        write_thin_dataset(data, thick, targets[data], factor=factor, axis=AXES[axis])
        assert names(targets[data]) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr", "labelsTs"]
        images = [(targets[name] / "imagesTr" / "case_1_0000.nii.gz") for name in ("interpolated", data)]
        np.testing.assert_array_equal(*map(values, images))
    for file in (thick / "labelsTrHR").iterdir():
        copied = targets["interpolated_true_labels"] / "labelsTr" / file.name
        assert copied.read_bytes() == file.read_bytes()
        sparse, truth = (
            sitk.ReadImage(str(f)) for f in (targets["interpolated_sparse"] / "labelsTr" / file.name, file)
        )
        assert same_grid(sparse, truth)
        fine = np.moveaxis(sitk.GetArrayFromImage(sparse), AXES[axis], 0)
        acquired = np.moveaxis(values(thick / "labelsTr" / file.name), AXES[axis], 0)
        centres = {2: [0, 1], 3: [1], 4: [1, 2]}[factor]
        for phase in range(factor):
            expected = acquired if phase in centres else np.full_like(acquired, 3)
            np.testing.assert_array_equal(fine[phase::factor], expected)
    labels = json.loads((targets["interpolated_sparse"] / "dataset.json").read_text())["labels"]
    assert labels == {"background": 0, "a": 1, "b": 2, "ignore": 3}


@pytest.mark.parametrize("axis", AXES)
def test_pairs_are_interpolated_slices_and_the_true_ones(simulated, tmp_path, axis):
    """Of training cases alone, with labels that know nothing of the truth."""
    thick, targets = simulated(3, axis), {name: tmp_path / name for name in ("interpolated", "pairs")}
    for data, target in targets.items():
        write_thin_dataset(data, thick, target, factor=3, axis=AXES[axis])
    interpolated, pairs = targets.values()
    assert names(pairs) == ["dataset.json", "imagesTr", "labelsTr"]
    for file in names(interpolated / "labelsTr"):
        np.testing.assert_array_equal(values(pairs / "labelsTr" / file), values(interpolated / "labelsTr" / file))
    for file in names(interpolated / "imagesTr"):
        privileged = pairs / "imagesTr" / file.replace("_0000", "_0001")
        np.testing.assert_array_equal(values(pairs / "imagesTr" / file), values(interpolated / "imagesTr" / file))
        assert privileged.read_bytes() == (thick / "imagesTrHR" / file).read_bytes()
    dataset, channels = (json.loads((folder / "dataset.json").read_text()) for folder in (pairs, thick))
    assert dataset["channel_names"]["0"] == channels["channel_names"]["0"]
    assert PairedChannels.of_dataset(dataset) == PairedChannels(source=(0,), privileged=(1,))


def test_plans_for_another_patch_are_what_nnunet_plans_for_it(nnunet_plans):
    configuration = nnunet_plans("Dataset504_Tiny", (4.0, 1.0, 1.0))["configurations"][CONFIGURATION]
    before = json.dumps(configuration)
    changed = with_patch(configuration, [16, 64, 64])
    assert json.dumps(configuration) == before
    assert changed["patch_size"] == [16, 64, 64]
    architecture = changed["architecture"]["arch_kwargs"]
    strides = np.prod(architecture["strides"], axis=0)
    smallest = np.array([16, 64, 64]) // strides
    assert (smallest >= 4).all()
    assert (smallest < 8).all()
    assert architecture["strides"][1] == [1, 2, 2]  # thick slices are halved when pixels are as large
    assert architecture["n_stages"] == len(architecture["kernel_sizes"]) == len(architecture["features_per_stage"]) == 5
    assert architecture["features_per_stage"] == [32, 64, 128, 256, 320]
    assert json.loads(json.dumps(changed)) == changed
    with pytest.raises(
        ValueError, match=r"^--patch must be a size that nnU-Net's network can halve, got \[16, 65, 64\]"
    ):
        with_patch(configuration, [16, 65, 64])


def test_the_patch_of_thin_slices_is_as_large(make_benchmark):
    benchmark = make_benchmark(patch=(8, 40, 48))
    assert benchmark.patch_size("thick") == [8, 40, 48]
    assert benchmark.patch_size("true_hr") == benchmark.patch_size("interpolated") == [32, 40, 48]
    assert make_benchmark().patch_size("thick") is None


def test_merged_replaces_at_every_depth_and_changes_nothing_else():
    block = {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4}
    changes = {"a": {"b": {"d": 5}, "g": 6}, "f": {"h": 7}}
    assert merged(block, changes) == {"a": {"b": {"c": 1, "d": 5}, "e": 3, "g": 6}, "f": {"h": 7}}
    assert merged(block, {}) == block == {"a": {"b": {"c": 1, "d": 2}, "e": 3}, "f": 4}
    assert merged({}, changes) == changes


@pytest.mark.parametrize(
    ("key", "value", "before"),
    [
        ("factor", 3, 4),
        ("baseline_epochs", 50, 10),
        ("cases", 2, 5),
        ("test_cases", 0, 2),
        ("axis", "x", "z"),
        ("preset", "demo", "cpu"),
        ("precision", "bfloat16", "float32"),
        ("patch", (4, 8, 8), None),
    ],
)
def test_a_work_folder_is_of_one_benchmark(make_benchmark, key, value, before):
    make_benchmark().remember()
    make_benchmark().remember()
    with pytest.raises(
        ValueError, match=rf"^--work \S+ was made with {key} {before}, got {re.escape(str(value))}; take another$"
    ):
        make_benchmark(**{key: value}).remember()


def test_the_source_may_move_but_not_be_another(make_benchmark, tmp_path):
    make_benchmark().remember()
    make_benchmark(source=tmp_path / "elsewhere" / "Dataset004_Tiny").remember()
    with pytest.raises(ValueError, match=r"was made with source Dataset004_Tiny, got Dataset005_Other;"):
        make_benchmark(source=tmp_path / "Dataset005_Other").remember()


def test_what_only_one_version_knows_makes_another_benchmark(make_benchmark, write_json):
    """A work folder whose settings lack one of today's, or have one more."""
    benchmark = make_benchmark()
    benchmark.remember()
    file = benchmark.work / "benchmark.json"
    mine = json.loads(file.read_text())
    older = {key: value for key, value in mine.items() if key != "precision"}
    write_json(file, older)
    with pytest.raises(ValueError, match=r"^--work \S+ was made with precision None, got float32; take another$"):
        benchmark.remember()
    assert json.loads(file.read_text()) == older  # left as it is
    write_json(file, {**mine, "noise": "0.1"})
    with pytest.raises(ValueError, match=r"^--work \S+ was made with noise 0\.1, got None; take another$"):
        benchmark.remember()


@pytest.fixture
def prepared(make_benchmark, write_source, write_json, recorder, nnunet_plans, monkeypatch):
    """A benchmark and `prepare` with commands that plan in a moment."""
    benchmark = make_benchmark()
    write_source(benchmark.source)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(benchmark.work / variable))

    def effect(command):
        if command[:2] == ["rehrseg", "simulate"]:
            parser = argparse.ArgumentParser()
            add_arguments(parser)
            run_simulate(parser.parse_args(command[2:]))
            return
        assert command[0] == "nnUNetv2_plan_and_preprocess"
        (raw,) = (benchmark.work / "nnUNet_raw").glob(f"Dataset{int(command[command.index('-d') + 1]):03d}_*")
        spacing = sitk.ReadImage(str(next((raw / "imagesTr").iterdir()))).GetSpacing()[::-1]
        folder = benchmark.folder("preprocessed", raw.name)
        write_json(folder / "nnUNetPlans.json", nnunet_plans(raw.name, spacing))

    recorder.effect = effect
    return benchmark, lambda *plans, data=("interpolated", "true_hr"), **options: prepare(
        benchmark, set(data), set(plans), recorder, **options
    )


def plans_of(benchmark, data, name="rehrsegCPU"):
    return json.loads((benchmark.folder("preprocessed", benchmark.dataset(data)) / f"{name}.json").read_text())


def test_plans_of_both_methods_and_of_pairs(prepared, monkeypatch):
    def with_thin_input(plans):
        """As planned, but without nnU-Net's planner."""
        network = {"patch_size": [1, 16, 16], "batch_size": 3, "architecture": {"arch_kwargs": {}}}
        block = plans["configurations"][CONFIGURATION][BLOCK]
        block["segmentation"] = {**block["segmentation"], "input": "thin", "thin": network}
        return plans

    monkeypatch.setattr("benchmarks.quality.plans.plan_thin_input", with_thin_input)
    benchmark, run = prepared
    run("thin", "thinGuided", data={"pairs"})
    thin, guided = (plans_of(benchmark, "thick", f"rehrsegCPU_{key}") for key in ("thin", "thinGuided"))
    block = load_preset("cpu").block("guidance")
    both = guided["configurations"][CONFIGURATION]
    assert {key: value for key, value in both.items() if key != "guidance"} == thin["configurations"][CONFIGURATION]
    pairs = plans_of(benchmark, "pairs")["configurations"][CONFIGURATION]
    assert pairs["guidance"] == both["guidance"] == block
    assert "guidance" not in thin["configurations"][CONFIGURATION]
    assert pairs["spacing"] == pytest.approx([0.9, 1.1, 1.0])
    run("thinGuided", data={"pairs"}, settings="v2")
    assert plans_of(benchmark, "pairs", "rehrsegCPU_v2")["plans_name"] == "rehrsegCPU_v2"


def test_everything_is_prepared_once(prepared, recorder):
    benchmark, run = prepared
    run("noLRDice")
    assert [command[0] for command in recorder.commands] == ["rehrseg", *["nnUNetv2_plan_and_preprocess"] * 3]
    assert all(command[command.index("-c") + 1] == CONFIGURATION for command in recorder.commands[1:])
    raw = benchmark.work / "nnUNet_raw"
    datasets = ["Dataset504_Tiny_r4z", "Dataset604_Tiny_r4z_interpolated", "Dataset704_Tiny_r4z_true_hr"]
    assert names(raw) == ["Dataset004_Tiny", *datasets]
    assert [benchmark.dataset(data) for data in ("thick", "interpolated", "true_hr")] == datasets
    for dataset, slices in zip(datasets, (4, 16, 16), strict=True):
        assert values(raw / dataset / "imagesTr" / "case_0_0000.nii.gz").shape == (slices, 12, 12)
        assert names(raw / dataset / "labelsTs") == ["case_5.nii.gz", "case_6.nii.gz"]
    folder = benchmark.folder("preprocessed", datasets[0])
    files = {file: file.read_bytes() for file in folder.iterdir()}
    run("noLRDice")
    assert len(recorder.commands) == 4
    assert files == {file: file.read_bytes() for file in folder.iterdir()}
    run("noLRDice", "noTrueLR")  # more plans go to the same folder
    assert len(recorder.commands) == 4
    assert {file.name for file in folder.iterdir()} - {file.name for file in files} == {"rehrsegCPU_noTrueLR.json"}


def test_the_plans(prepared):
    benchmark, run = prepared
    run("noLRDice", "smore")
    stock, preset, changed, same = (
        plans_of(benchmark, "thick", name)
        for name in ("nnUNetPlans", "rehrsegCPU", "rehrsegCPU_noLRDice", "rehrsegCPU_smore")
    )
    assert changed["plans_name"] == "rehrsegCPU_noLRDice"
    configurations = [plans["configurations"][CONFIGURATION] for plans in (preset, changed)]
    configs = [load_config(configuration) for configuration in configurations]
    assert configs[1].segmentation == configs[0].segmentation.model_copy(update={"lr_dice_weight": 0})
    assert configs[1].self_sr == configs[0].self_sr
    assert {**preset, "plans_name": "rehrsegCPU_smore"} == same
    every_key = load_preset("cpu").rehrseg.model_dump(mode="json")  # so that other defaults of a later version show
    assert configurations[0][BLOCK] == every_key
    width = load_preset("cpu").network_width
    assert width != 1
    narrow = [max(4, round(features * width)) for features in (32, 64, 128)]
    thick = preset["configurations"][CONFIGURATION]
    assert thick["architecture"]["arch_kwargs"]["features_per_stage"] == narrow
    assert stock["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]["features_per_stage"] == [32, 64, 128]
    for data in ("interpolated", "true_hr"):
        thin = plans_of(benchmark, data)
        assert thin["plans_name"] == "rehrsegCPU"
        configuration = thin["configurations"][CONFIGURATION]
        assert configuration["architecture"]["arch_kwargs"]["features_per_stage"] == narrow
        assert configuration["batch_size"] == thick["batch_size"] == 2  # nnU-Net planned 5
        assert configuration["spacing"] == pytest.approx([0.9, 1.1, 1.0])
        assert BLOCK not in configuration


@pytest.mark.parametrize(("data", "name"), [("thick", "rehrsegCPU_noLRDice"), ("true_hr", "rehrsegCPU")])
def test_changed_plans_are_refused(prepared, write_json, data, name):
    benchmark, run = prepared
    run("noLRDice")
    plans = plans_of(benchmark, data, name)
    plans["configurations"][CONFIGURATION]["batch_size"] += 1
    file = benchmark.folder("preprocessed", benchmark.dataset(data)) / f"{name}.json"
    write_json(file, plans)
    with pytest.raises(ValueError, match=rf"{name}\.json must be what this version makes of its preset; take another"):
        run("noLRDice")
    assert json.loads(file.read_text()) == plans  # left as it is


def test_other_settings_have_plans_of_their_own_beside_those_of_plain_networks(prepared, write_json):
    """As of a version with other defaults: what does not depend on them stays, and goes on being used."""
    benchmark, run = prepared
    run()
    plans = plans_of(benchmark, "thick")
    plans["configurations"][CONFIGURATION][BLOCK]["segmentation"]["lr_dice_weight"] = 0.5
    file = benchmark.folder("preprocessed", benchmark.dataset("thick")) / "rehrsegCPU.json"
    write_json(file, plans)
    with pytest.raises(ValueError, match=r"or give this version's settings a name with --settings$"):
        run()
    run("noLRDice", settings="v2")
    assert plans_of(benchmark, "thick") == plans
    weights = {
        name: load_config(
            plans_of(benchmark, "thick", name)["configurations"][CONFIGURATION]
        ).segmentation.lr_dice_weight
        for name in ("rehrsegCPU_v2", "rehrsegCPU_v2_noLRDice")
    }
    assert weights == {"rehrsegCPU_v2": 1, "rehrsegCPU_v2_noLRDice": 0}


def test_interrupted_preprocessing_is_repeated(prepared, recorder):
    benchmark, run = prepared
    effect, folder = recorder.effect, benchmark.folder("preprocessed", benchmark.dataset("interpolated"))

    def fail(command):
        effect(command)
        if "604" in command:
            raise RuntimeError("killed")

    recorder.effect = fail
    with pytest.raises(RuntimeError, match="killed"):
        run()
    assert (folder / "nnUNetPlans.json").is_file()
    recorder.effect = effect
    run()
    preprocessed = [command[command.index("-d") + 1] for command in recorder.commands[1:]]
    assert preprocessed.count("604") == 2
    assert sorted(preprocessed) == ["504", "604", "604", "704"]

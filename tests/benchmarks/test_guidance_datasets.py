"""Which datasets are made, of which cases, and that all of them have one network."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.utilities.crossval_split import generate_crossval_split

from benchmarks.guidance.benchmark import CONFIGURATION
from benchmarks.guidance.datasets import add_synthesised, prepare, simulate, write_variant
from benchmarks.guidance.rows import PLANS
from rehrseg_nnunet.cli.main import build_parser
from rehrseg_nnunet.config.guidance import BLOCK, load_config, parse_block


def stock(channels=1, **changes):
    """What nnU-Net plans."""
    architecture = {"n_stages": 2, "features_per_stage": [32, 64]} | changes
    configuration = {
        "spacing": [1.0, 1.0, 1.0],
        "batch_size": 9,
        "patch_size": [16, 16, 16],
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "architecture": {"arch_kwargs": architecture},
    }
    return {"plans_name": "nnUNetPlans", "configurations": {CONFIGURATION: configuration}}


@pytest.fixture
def planned(make_guidance, write_json, recorder):
    """Prepared datasets by their plans of nnU-Net's."""
    benchmark = make_guidance()

    def plan(data, plans):
        file = benchmark.folder("preprocessed", data) / "nnUNetPlans.json"
        recorder.effect = lambda command: write_json(file, plans)
        prepare(benchmark, data, recorder)
        return json.loads(file.with_name("cpu.json").read_text())["configurations"][CONFIGURATION]

    return plan


@pytest.mark.parametrize(
    ("data", "cases", "tests", "channels"),
    [
        ("pairs", "0:5", None, "pairs"),
        ("source", "5:10", "10:12", "source"),
        ("privileged", "5:10", "10:12", "privileged"),
        ("both", "5:10", "10:12", "pairs"),
        ("everyone", "0:10", "10:12", "source"),
    ],
)
def test_subjects_are_disjoint(make_guidance, write_source, recorder, data, cases, tests, channels):
    benchmark = make_guidance()
    write_source(benchmark.source, cases=3)
    simulate(benchmark, data, recorder)
    (command,) = recorder.commands
    args = build_parser("simulate-field").parse_args(command[1:])
    assert (args.cases, args.test_cases, args.channels) == (cases, tests, channels)
    assert (args.resolution, args.snr, args.contrast, args.o) == (2, 12, 0.7, int(benchmark.dataset(data)[7:10]))
    assert (benchmark.work / "nnUNet_raw" / args.d / "dataset.json").is_file()


def test_what_is_there_is_taken_if_it_is_the_same(make_guidance, write_source, write_json, recorder):
    write_source(make_guidance().source, cases=12)
    folder = make_guidance().work / "nnUNet_raw" / "Dataset605_Other_lowfield"
    write_json(folder / "low_field.json", {"settings": {"resolution_mm": 2.0, "snr": 12.0, "contrast": 0.7}})
    names = sorted(file.name for file in (make_guidance().source / "labelsTr").iterdir())
    for part, some in (("Tr", names[5:10]), ("Ts", names[10:])):
        (folder / f"labels{part}").mkdir()
        for name in some:
            (folder / f"labels{part}" / name).touch()
    simulate(make_guidance(), "source", recorder)
    assert recorder.commands == []
    with pytest.raises(ValueError, match=r"was made with snr 12, got 8; take another --number"):
        simulate(make_guidance(snr=8.0), "source", recorder)
    with pytest.raises(ValueError, match=r"labelsTs must be of cases 10:11, got others; take another --number"):
        simulate(make_guidance(test_cases=1), "source", recorder)


def test_all_datasets_have_one_batch_and_width(planned, recorder):
    source, pairs = planned("source", stock()), planned("pairs", stock(2))
    assert source["batch_size"] == pairs["batch_size"] == 2
    assert source["architecture"] == pairs["architecture"]
    assert source["architecture"]["arch_kwargs"]["features_per_stage"] == [16, 32]
    assert load_config(pairs).keeper.epochs == 4
    planned("source", stock())
    assert len(recorder.commands) == 2


@pytest.mark.parametrize("data", ["both", "synthesised"])
def test_two_channels_have_the_network_of_one(planned, data):
    source = planned("source", stock())
    other = planned(data, stock(2, features_per_stage=[32, 64, 128]) | {"x": 1})
    assert other["architecture"] == source["architecture"]
    assert other["patch_size"] == source["patch_size"]
    assert len(other["normalization_schemes"]) == 2


def test_everyone_is_trained_on_beside_the_folds_of_the_cases_with_labels(planned, make_guidance, write_json):
    benchmark = make_guidance()
    names = {"pairs": [f"pair{i}" for i in range(3)], "source": [f"case{i}" for i in range(7)]}
    for data, cases in {"source": names["source"], "everyone": [*names["pairs"], *names["source"]]}.items():
        for case in cases:
            write_json(benchmark.folder("raw", data) / "labelsTr" / f"{case}.nii.gz", {})
    source = planned("source", stock())
    everyone = planned("everyone", stock(features_per_stage=[32, 64, 128]))
    assert everyone["architecture"] == source["architecture"]
    file = benchmark.folder("preprocessed", "everyone") / "splits_final.json"
    splits = json.loads(file.read_text())
    assert len(splits) == 5
    for fold, own in zip(splits, generate_crossval_split(names["source"]), strict=True):
        assert fold["val"] == list(own["val"])
        assert set(fold["train"]) == {*names["pairs"], *own["train"]}


def test_more_cases_must_be_planned_for_the_same_voxels(planned, make_guidance, write_json):
    planned("source", stock())
    for data in ("everyone", "source"):
        for case in range(5):
            write_json(make_guidance().folder("raw", data) / "labelsTr" / f"case{case}.nii.gz", {})
    other = stock()
    other["configurations"][CONFIGURATION]["spacing"] = [2.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"must be planned for voxels as .*cpu.json, \[1.0, 1.0, 1.0\], .* got \[2.0"):
        planned("everyone", other)


@pytest.mark.parametrize("key", [key for key in PLANS if key])
def test_variants_differ_in_what_they_name(planned, make_guidance, key):
    own = planned("pairs", stock(2))
    write_variant(make_guidance(), "pairs", key)
    file = make_guidance().folder("preprocessed", "pairs") / f"cpu_{key}.json"
    plans = json.loads(file.read_text())
    assert plans["plans_name"] == f"cpu_{key}"
    blocks = [parse_block(c[BLOCK]).model_dump() for c in (own, plans["configurations"][CONFIGURATION])]
    assert {name for name in blocks[0] if blocks[0][name] != blocks[1][name]} == set(PLANS[key])
    write_variant(make_guidance(), "pairs", key)  # what is there is taken

    plans["configurations"][CONFIGURATION][BLOCK] = own[BLOCK]
    file.write_text(json.dumps(plans))
    with pytest.raises(ValueError, match=f"cpu_{key}.json must have"):
        write_variant(make_guidance(), "pairs", key)


def test_a_synthesised_channel_stands_beside_the_scan(make_guidance, write_volume, write_json, recorder, tmp_path):
    benchmark = make_guidance()
    source = benchmark.folder("raw", "source")
    write_json(source / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": {}, "file_ending": ".nii.gz"})
    for part in ("Tr", "Ts"):
        write_volume(source / f"images{part}" / f"case{part}_0000.nii.gz", np.zeros((2, 3, 4), np.float32))
        write_volume(source / f"labels{part}" / f"case{part}.nii.gz", np.zeros((2, 3, 4), np.uint8))

    def effect(command):
        args = build_parser("synthesize").parse_args(command[1:])
        (scan,) = Path(args.i[0]).iterdir()
        name = scan.name.replace("_0000", "")
        write_volume(Path(args.o) / name, np.full((2, 3, 4), 7, np.float32))

    recorder.effect = effect
    for _ in range(2):
        add_synthesised(benchmark, tmp_path / "keeper", recorder)
    assert len(recorder.commands) == 2
    target = benchmark.folder("raw", "synthesised")
    names = json.loads((target / "dataset.json").read_text())["channel_names"]
    assert names == {"0": "MRI", "1": "synthesised"}
    for part in ("Tr", "Ts"):
        files = sorted(file.name for file in (target / f"images{part}").iterdir())
        assert files == [f"case{part}_0000.nii.gz", f"case{part}_0001.nii.gz"]
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(target / f"images{part}" / files[1]))).min() == 7
    assert sorted(f.name for f in target.iterdir() if f.is_dir()) == ["imagesTr", "imagesTs", "labelsTr", "labelsTs"]

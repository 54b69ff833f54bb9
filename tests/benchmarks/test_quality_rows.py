"""Which trainings are compared, and that nnU-Net has every trainer and accepts all plans."""

import os
from pathlib import Path

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from benchmarks.quality.__main__ import main
from benchmarks.quality.commands import DEFAULTS, SIDE_BY_SIDE
from benchmarks.quality.plans import merged
from benchmarks.quality.rows import PLANS, ROWS, TABLES, in_order
from benchmarks.quality.runs import OWN_TRAINERS, set_environment
from rehrseg_nnunet.cli.trainers import VARIABLE, trainers_folder
from rehrseg_nnunet.config.presets import load_preset, preset_names
from rehrseg_nnunet.config.rehrseg import parse_block
from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.trainers import rehrseg_training_lengths

OWN_TRAINER = {
    "true_hr_data": "quality_true_hr_data",
    "self_sr_taught": "quality_true_hr_data",
    "true_hr_only": "quality_true_hr_data",
    "thick_true_labels": "quality_true_hr_data",
    "truth_everywhere": "quality_true_hr_data",
    "truth_between": "quality_true_hr_data",
    "truth_at_boundaries": "quality_true_hr_data",
    "true_uncertainty": "quality_true_hr_data",
    "thin_true_labels": "quality_true_hr_data",
}


@pytest.fixture
def environment(make_benchmark, monkeypatch):
    """The benchmark's, undone after the test."""
    for name in (
        VARIABLE,
        "PYTHONPATH",
        "nnUNet_raw",
        "nnUNet_preprocessed",
        "nnUNet_results",
        *DEFAULTS,
        *SIDE_BY_SIDE,
    ):
        monkeypatch.setenv(name, "")  # remembers what it was
    monkeypatch.setenv("nnUNet_def_n_proc", "7")
    monkeypatch.setenv("PYTHONPATH", "/installed")
    set_environment(make_benchmark())


@pytest.mark.parametrize("table", TABLES)
def test_the_rows_of_every_table_exist(table):
    _, keys = TABLES[table]
    assert set(keys) <= ROWS.keys()
    assert len(set(keys)) == len(keys)
    assert len({ROWS[key].segments for key in keys}) == 1  # a table is of segmentations or of restorations
    assert {ROWS[key].plans for key in keys} <= PLANS.keys()


def test_every_row_is_in_a_table_or_builds_one():
    shown = [key for _, keys in TABLES.values() for key in keys]
    assert {row.key for row in in_order(shown)} == ROWS.keys()


def test_titles_tell_rows_apart():
    assert len({row.title for row in ROWS.values()}) == len(ROWS)


def builds_on(row):
    others = {*row.after, row.stage_1, row.keeper} | ({"baseline"} if row.start == "baseline" else set())
    return others - {""}


@pytest.mark.parametrize("keys", [[key] for key in ROWS] + [list(reversed(ROWS)), ["rehrseg", "rehrseg", "smore"]])
def test_what_a_row_builds_on_comes_before_it_once(keys):
    ordered = [row.key for row in in_order(keys)]
    assert set(keys) <= set(ordered)
    assert len(set(ordered)) == len(ordered)
    for position, key in enumerate(ordered):
        assert builds_on(ROWS[key]) <= set(ordered[:position]), key
    assert set(ordered) == set(keys).union(*(builds_on(ROWS[key]) for key in ordered))  # and nothing else


def test_the_order_of_the_main_row():
    assert [row.key for row in in_order(["rehrseg"])] == ["baseline", "self_sr", "rehrseg"]
    with_smore = [row.key for row in in_order(["rehrseg_smore"])]
    assert with_smore == ["baseline", "smore", "self_sr_smore", "rehrseg_smore"]
    assert [row.key for row in in_order(["scratch"])] == ["self_sr", "scratch"]
    assert [row.key for row in in_order(["thin_guided"])] == ["self_sr", "teacher", "keeper", "thin_guided"]


def test_an_unknown_row_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match=r"^--rows must be among baseline, .*, scratch, got rehrsge$"):
        in_order(["baseline", "rehrsge"])
    options = ["--source", str(tmp_path / "Dataset004_Tiny"), "--work", str(tmp_path / "work"), "--rows", "rehrsge"]
    with pytest.raises(SystemExit, match=r"^error: --rows must be among .*, got rehrsge$"):
        main(options)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("key", ROWS)
def test_nnunet_finds_every_rows_trainer(key, make_run, environment):
    run = make_run(key)
    trainer = recursive_find_trainer_class_by_name(run.trainer)
    assert trainer.__name__ == run.trainer
    assert issubclass(trainer, nnUNetTrainer)
    if run.row.trainer == "SafeTrainer":
        assert trainer.__module__ == "quality_safe_trainer"
        assert issubclass(trainer, SafeCheckpoints)
    elif key in OWN_TRAINER:
        assert trainer.__module__ == OWN_TRAINER[key]
    else:
        assert trainer.__name__ in (run.row.trainer, f"{run.row.trainer}_{run.epochs}epochs")
        assert hasattr(rehrseg_training_lengths, f"{run.row.trainer}_10epochs")
    assert trainer.length == run.epochs


def test_lengths_of_trainings(make_run):
    lengths = {key: make_run(key, epochs=30).epochs for key in ("baseline", "smore", "rehrseg", "true_hr", "scratch")}
    assert lengths == {"baseline": 10, "smore": None, "rehrseg": 30, "true_hr": 40, "scratch": 40}
    assert make_run("baseline").trainer == "SafeTrainer_10epochs"
    assert make_run("true_hr").trainer == "SafeTrainer_20epochs"
    assert make_run("rehrseg", epochs=1).trainer == "REHRSegTrainer_1epoch"
    assert make_run("smore").trainer == "SMORETrainer"
    shown = {key: make_run(key).all_epochs for key in ("baseline", "rehrseg", "scratch", "smore")}
    assert shown == {"baseline": "10", "rehrseg": "10+10", "scratch": "20", "smore": ""}


def test_the_environment(environment, make_benchmark):
    work = make_benchmark().work
    assert os.environ["nnUNet_raw"] == str(work / "nnUNet_raw")
    assert os.environ[VARIABLE].split(os.pathsep) == [str(trainers_folder()), str(OWN_TRAINERS)]
    assert os.environ["nnUNet_def_n_proc"] == "7"  # the user's own
    assert (work / "nnUNet_preprocessed").is_dir()
    assert os.environ["PYTHONPATH"].split(os.pathsep)[0] == "/installed"
    assert (Path(os.environ["PYTHONPATH"].split(os.pathsep)[-1]) / "benchmarks" / "quality").is_dir()


def test_trainings_side_by_side_have_one_thread_each(environment, make_benchmark, monkeypatch):
    for name in SIDE_BY_SIDE:
        monkeypatch.delenv(name, raising=False)
    set_environment(make_benchmark(), jobs=2)
    assert {name: os.environ[name] for name in SIDE_BY_SIDE} == SIDE_BY_SIDE


def test_trainer_folders_are_added_once_and_the_users_stay(environment, make_benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for _ in range(2):
        set_environment(make_benchmark())
        assert os.environ[VARIABLE].split(os.pathsep) == [str(tmp_path), str(trainers_folder()), str(OWN_TRAINERS)]


def leaves(tree, path=()):
    for key, value in tree.items():
        yield from leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("key", PLANS)
def test_all_plans_are_valid_with_every_preset(preset, key):
    block = load_preset(preset).rehrseg.model_dump(mode="json", exclude_unset=True)
    thin = {"patch_size": [1, 2, 3], "batch_size": 2, "architecture": {}}  # planned with the plans
    block = merged(block, {"segmentation": {"thin": thin}})
    config = parse_block(merged(block, PLANS[key])).model_dump(mode="json")
    for path, value in leaves(PLANS[key]):
        at = config
        for name in path:
            at = at[name]
        assert at == value, path
    changed = {path for path, _ in leaves(PLANS[key])}
    before = parse_block(block).model_dump(mode="json")
    assert [entry for entry in leaves(before) if entry[0] not in changed] == [
        entry for entry in leaves(config) if entry[0] not in changed
    ]

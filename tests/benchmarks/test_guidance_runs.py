"""What is trained and predicted, where, with which commands, and what is found of other trainings."""

import os
from pathlib import Path

import pytest
from nnunet_arguments import arguments
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from benchmarks.guidance.rows import KEEPERS, PARTS, PLANS, ROWS, in_order
from benchmarks.guidance.runs import TRAINERS, predict, train
from benchmarks.quality.commands import DEFAULTS, set_environment
from rehrseg_nnunet.cli.trainers import VARIABLE
from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FoldRun
from rehrseg_nnunet.nnunet.training_start import BASELINE

GUIDED = [key for key, row in ROWS.items() if row.keeper]


def finish(run):
    run.report.parent.mkdir(parents=True, exist_ok=True)
    run.report.write_text("{}")
    (run.folder / FINAL_CHECKPOINT).touch()


def trained(run, recorder):
    train(run, device="cpu", execute=recorder)
    (command,) = recorder.commands
    assert command[1:6] == ["-m", "benchmarks.quality.launch", str(run.seed), "bfloat16", str(run.seconds)]
    return arguments(run_training_entry, command[6:])


@pytest.mark.parametrize("key", ROWS)
def test_nnunet_finds_every_rows_trainer(key, make_guided_run, monkeypatch, tmp_path):
    for name in (VARIABLE, "PYTHONPATH", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", *DEFAULTS):
        monkeypatch.setenv(name, "")
    set_environment(tmp_path, trainers=TRAINERS)
    run = make_guided_run(key)
    trainer = recursive_find_trainer_class_by_name(run.trainer)
    assert issubclass(trainer, nnUNetTrainer)
    assert trainer.__name__ == run.trainer
    assert run.row.plans in PLANS


def test_every_row_is_in_a_part():
    assert sorted([*PARTS["pairs"], *PARTS["segmentation"]]) == sorted(ROWS)
    assert set(KEEPERS) < set(PARTS["pairs"])


def test_a_row_comes_after_what_it_builds_on():
    rows = [row.key for row in in_order(["guided"], keeper="keeper_width16")]
    assert rows == ["baseline", "teacher_width16", "keeper_width16", "guided"]
    with pytest.raises(ValueError, match=r"--rows must be among teacher, .*, got nothing"):
        in_order(["nothing"], keeper="keeper")


def test_the_first_seed_lies_where_nnunets_commands_train(make_guided_run, make_guidance, recorder):
    run = make_guided_run("keeper_kernel7")
    args = trained(run, recorder)
    assert (args.dataset_name_or_id, args.configuration, args.fold) == ("Dataset604_Tiny_pairs", "3d_fullres", "0")
    assert (args.tr, args.p) == ("KnowledgeKeeperTrainer", "cpu_kernel7")
    results = make_guidance().work / "nnUNet_results" / "Dataset604_Tiny_pairs"
    assert run.folder == results / "KnowledgeKeeperTrainer__cpu_kernel7__3d_fullres" / "fold_0"
    (environment,) = recorder.environments
    teacher = results / "GuidanceTeacherTrainer__cpu__3d_fullres" / "fold_0"
    assert environment[TEACHER_VARIABLE] == str(teacher)
    assert environment[KEEPER_VARIABLE] == ""


def test_lengths_of_their_own(make_guided_run):
    lengths = {"teacher_epochs": 7, "keeper_epochs": 9}
    trainers = {key: make_guided_run(key, **lengths).trainer for key in ("teacher", "l1_unet", "keeper_onecycle")}
    assert trainers == {
        "teacher": "GuidanceTeacherTrainer_7epochs",
        "l1_unet": "L1UNetTrainer_9epochs",
        "keeper_onecycle": "KnowledgeKeeperTrainer_9epochs",
    }
    teacher = make_guided_run("keeper_onecycle", **lengths).environment()[TEACHER_VARIABLE]
    assert "GuidanceTeacherTrainer_7epochs__cpu_onecycle" in teacher


@pytest.mark.parametrize("key", ["teacher", "l1_unet", "keeper_kernel7_noAdversary", "baseline", "guided"])
def test_nothing_is_done_for_a_finished_training(make_guided_run, recorder, key):
    run = make_guided_run(key)
    finish(run)
    train(run, device="cpu", execute=recorder)
    assert recorder.commands == []
    assert not run.seconds.exists()


def test_a_training_that_was_stopped_goes_on(make_guided_run, recorder):
    run = make_guided_run("keeper")
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth").touch()
    assert trained(run, recorder).c


def test_a_new_training_forgets_the_scores_of_the_old(make_guided_run, recorder):
    run = make_guided_run("guided")
    run.scores.parent.mkdir(parents=True)
    run.scores.touch()
    run.predictions.mkdir(parents=True)
    trained(run, recorder)
    assert not run.scores.exists()
    assert not run.predictions.exists()


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("key", ["continued", "guided", "true_guides"])
def test_every_seed_starts_from_the_one_baseline(make_guided_run, recorder, key, seed):
    run = make_guided_run(key, seed=seed)
    baseline = run.other("baseline")
    finish(baseline)
    args = trained(run, recorder)
    assert args.tr.endswith("_3epochs")
    found = BASELINE.find(FoldRun.parse(run.folder))
    assert found is not None
    assert found.folder.resolve() == baseline.folder.resolve()


@pytest.mark.parametrize("key", GUIDED)
def test_the_keeper_that_is_chosen_guides(make_guided_run, recorder, key):
    run = make_guided_run(key, seed=3, keeper="keeper_width16")
    trained(run, recorder)
    (environment,) = recorder.environments
    keeper = Path(environment[KEEPER_VARIABLE])
    assert keeper.parent.name == "KnowledgeKeeperTrainer__cpu_width16__3d_fullres"
    assert "seed" not in str(keeper)
    assert "width16" in environment[TEACHER_VARIABLE]  # true guides are of that keeper's teacher


@pytest.fixture
def test_set(make_guided_run):
    run = make_guided_run("guided", seed=2)
    labels = run.benchmark.folder("raw", "source") / "labelsTs"
    labels.mkdir(parents=True)
    for case in ("a", "b"):
        (labels / f"{case}.nii.gz").touch()
    return run


def test_all_rows_are_predicted_without_mirroring(test_set, recorder):
    def effect(command):
        folder = Path(command[command.index("-o") + 1])
        folder.mkdir(parents=True)
        for case in ("a", "b"):
            (folder / f"{case}.nii.gz").touch()

    recorder.effect = effect
    predict(test_set, device="cpu", execute=recorder)
    (command,) = recorder.commands
    args = arguments(predict_entry_point, command[1:])
    assert args.disable_tta
    assert (args.tr, args.p, args.f) == ("GuidedTrainer_3epochs", "cpu", ["0"])
    assert sorted(os.listdir(test_set.predictions)) == ["a.nii.gz", "b.nii.gz"]
    predict(test_set, device="cpu", execute=recorder)
    assert len(recorder.commands) == 1


def test_predictions_that_were_cut_off_are_made_again(test_set, recorder):
    test_set.predictions.mkdir(parents=True)
    (test_set.predictions / "a.nii.gz").touch()
    recorder.effect = lambda command: Path(command[command.index("-o") + 1]).mkdir()
    predict(test_set, device="cpu", execute=recorder)
    assert len(recorder.commands) == 1
    assert not (test_set.predictions / "a.nii.gz").exists()

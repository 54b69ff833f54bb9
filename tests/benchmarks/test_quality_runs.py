"""What is trained, continued and predicted again, where, and with which commands."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from nnunet_arguments import arguments
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.run.run_training import run_training_entry

from benchmarks.quality import runs
from benchmarks.quality.benchmark import OFFSETS
from benchmarks.quality.rows import ROWS
from benchmarks.quality.runs import predict, scores_file, seconds_file, train
from rehrseg_nnunet.cli.predict import add_arguments
from rehrseg_nnunet.guided.frozen import TEACHER_VARIABLE
from rehrseg_nnunet.guided.keeper_run import KEEPER_VARIABLE
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.training_start import BASELINE
from rehrseg_nnunet.self_sr.frozen import SELF_SR_VARIABLE
from rehrseg_nnunet.smore.export import SMORE

SEGMENTING = [key for key, row in ROWS.items() if row.segments]
# networks of thick slices without an HR head
UPSAMPLED = [key for key, row in ROWS.items() if row.hr == "upsampled"]


def trained(run, recorder):
    """Train; the arguments of nnUNetv2_train."""
    train(run, device="cpu", execute=recorder)
    (command,) = recorder.commands
    assert command[:3] == [sys.executable, "-m", "benchmarks.quality.launch"]
    assert command[3:6] == [str(run.seed), run.benchmark.precision, str(seconds_file(run))]
    return arguments(run_training_entry, command[6:])


def test_a_fresh_training(make_run, recorder):
    run = make_run("self_sr_direct", fold=3, seed=7, precision="bfloat16")
    args = trained(run, recorder)
    assert (args.dataset_name_or_id, args.configuration, args.fold) == ("Dataset504_Tiny_r4z", "3d_fullres", "3")
    assert (args.tr, args.p, args.device) == ("SelfSRTrainer", "rehrsegCPU_direct", "cpu")
    assert not any((args.c, args.val, args.npz))
    (environment,) = recorder.environments
    work = run.benchmark.work
    assert environment == {
        "nnUNet_raw": str(work / "nnUNet_raw"),
        "nnUNet_preprocessed": str(work / "nnUNet_preprocessed"),
        "nnUNet_results": str(work / "seed_7" / "nnUNet_results"),
        SELF_SR_VARIABLE: "",
        TEACHER_VARIABLE: "",
        KEEPER_VARIABLE: "",
    }
    assert run.folder == (
        work / "seed_7/nnUNet_results/Dataset504_Tiny_r4z/SelfSRTrainer__rehrsegCPU_direct__3d_fullres/fold_3"
    )


@pytest.mark.parametrize("key", ["baseline", "smore", "self_sr", "rehrseg", "true_hr", "teacher", "keeper"])
def test_nothing_is_done_for_a_finished_training(make_run, recorder, finish, key):
    run = make_run(key)
    finish(run)
    train(run, device="cpu", execute=recorder)
    assert recorder.commands == []
    assert not seconds_file(run).exists()


@pytest.mark.parametrize("key", ["baseline", "smore", "self_sr", "rehrseg"])
def test_an_interrupted_validation_is_repeated(make_run, recorder, finish, key):
    run = make_run(key)
    finish(run, report=False)
    args = trained(run, recorder)
    assert args.val
    assert not args.c


def test_an_interrupted_validation_at_hr_is_repeated(make_run, recorder, finish):
    """nnU-Net's summary of the LR validation is there before the HR predictions."""
    run = make_run("rehrseg")
    finish(run, cases=("case_0", "case_1"), hr_cases=("case_0",))
    assert trained(run, recorder).val


@pytest.mark.parametrize("checkpoints", [["latest"], ["best"], ["latest", "best"]])
def test_an_interrupted_training_goes_on(make_run, recorder, checkpoints):
    run = make_run("smore")
    run.folder.mkdir(parents=True)
    for name in checkpoints:
        (run.folder / f"checkpoint_{name}.pth").touch()
    args = trained(run, recorder)
    assert args.c
    assert not args.val


def test_what_a_killed_save_left_is_no_checkpoint(make_run, recorder):
    run = make_run("smore")
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint_latest.pth.tmp").touch()
    (run.folder / "training_log.txt").touch()
    assert not trained(run, recorder).c


@pytest.mark.parametrize("key", ROWS)
def test_probabilities_where_labels_are_upsampled_or_offset(make_run, recorder, finish, key):
    run = make_run(key)
    finish(make_run("baseline"), report=key != "baseline")
    assert trained(run, recorder).npz == (run.row.hr in ("upsampled", "data"))


@pytest.mark.parametrize("key", ROWS)
def test_stage_1_of_other_plans_is_named(make_run, recorder, finish, key):
    run = make_run(key, fold=1, seed=2)
    finish(make_run("baseline", fold=1, seed=2), report=key != "baseline")
    trained(run, recorder)
    (environment,) = recorder.environments
    assert bool(environment[SELF_SR_VARIABLE]) == bool(run.row.stage_1)  # one of the user's would count otherwise
    if run.row.stage_1:
        other = make_run(run.row.stage_1, fold=1, seed=2).folder
        assert environment[SELF_SR_VARIABLE] == str(other)
        assert other.name == "fold_1"
        trainer = "SelfSRTrainer_trueHRData" if key == "rehrseg_taught" else "SelfSRTrainer"
        assert other.parent.name == f"{trainer}__rehrsegCPU__3d_fullres"
        assert "seed_2" in other.parts


def test_the_teacher_is_named(make_run, recorder):
    trained(make_run("keeper", fold=1, seed=2), recorder)
    assert recorder.environments[0][TEACHER_VARIABLE] == str(make_run("teacher", fold=1, seed=2).folder)


def test_the_keeper_is_named_and_is_of_the_same_fold_and_seed(make_run, recorder):
    run = make_run("thin_guided", fold=1, seed=2)
    args = trained(run, recorder)
    assert (args.tr, args.p) == ("GuidedREHRSegTrainer_20epochs", "rehrsegCPU_thinGuided")
    keeper = make_run("keeper", fold=1, seed=2)
    assert recorder.environments[0][KEEPER_VARIABLE] == str(keeper.folder)
    assert keeper.folder.parts[-3:-1] == ("Dataset304_Tiny_r4z_pairs", "KnowledgeKeeperTrainer__rehrsegCPU__3d_fullres")


@pytest.mark.parametrize("epochs", [1, 5, 10, 20])
@pytest.mark.parametrize("key", ["continued", "rehrseg", "mimic", "eq11", "rehrseg_smore"])
def test_the_baseline_is_found_under_any_plans_and_length(make_run, recorder, finish, key, epochs):
    baseline, run = make_run("baseline", epochs=epochs), make_run(key, epochs=epochs)
    finish(baseline)
    train(run, device="cpu", execute=recorder)
    train(run, device="cpu", execute=recorder)  # the link is there by now
    found = BASELINE.find(FoldRun.parse(run.folder))
    assert found is not None
    assert found.folder.resolve() == baseline.folder.resolve()


def test_each_seed_has_its_own_baseline(make_run, recorder, finish):
    for seed in (0, 1):
        finish(make_run("baseline", seed=seed))
        run = make_run("eq11", seed=seed)
        train(run, device="cpu", execute=recorder)
        found = BASELINE.find(FoldRun.parse(run.folder))
        assert found.folder.resolve() == make_run("baseline", seed=seed).folder.resolve()
    assert make_run("eq11", seed=0).results != make_run("eq11", seed=1).results


@pytest.mark.parametrize("key", ["scratch", "true_hr", "self_sr"])
def test_what_does_not_start_from_the_baseline_does_not_find_it(make_run, recorder, finish, key):
    finish(make_run("baseline"))
    run = make_run(key)
    train(run, device="cpu", execute=recorder)
    assert BASELINE.find(FoldRun.parse(run.folder)) is None


def test_smores_cases_are_found_by_the_rows_on_them_alone(make_run, finish):
    finish(make_run("smore"))
    found = {key: SMORE.find(FoldRun.parse(make_run(key).folder)) for key in ("self_sr", "self_sr_smore")}
    assert found["self_sr"] is None
    assert found["self_sr_smore"].folder == make_run("smore").folder


def test_runs_have_files_of_their_own(make_run):
    made = [
        make_run(key, fold=fold, seed=seed, epochs=epochs)
        for key in ROWS
        for fold in (0, 1)
        for seed in (0, 1)
        for epochs in (5, 10)
    ]
    names = {(run.row.key, run.fold, run.seed, run.all_epochs) for run in made}
    for attribute in ("folder", "predictions"):
        assert len({getattr(run, attribute) for run in made}) == len(names), attribute
    assert len({seconds_file(run) for run in made}) == len(names)


@pytest.fixture
def test_set(make_benchmark, write_json):
    """Test images of all datasets, and training images of two cases, one of them in each fold's validation set."""
    benchmark = make_benchmark()
    for data in OFFSETS:
        raw = benchmark.folder("raw", benchmark.dataset(data))
        for file in ("imagesTs/case_3_0000.nii.gz", "imagesTr/case_1_0000.nii.gz", "imagesTr/case_12_0000.nii.gz"):
            (raw / file).parent.mkdir(parents=True, exist_ok=True)
            (raw / file).touch()
        splits = [{"train": ["case_12"], "val": ["case_1"]}] * 4 + [{"train": ["case_1"], "val": ["case_12"]}]
        write_json(benchmark.folder("preprocessed", benchmark.dataset(data)) / "splits_final.json", splits)


def write_prediction(command):
    """What both predict commands do."""
    folder = Path(command[command.index("-o") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case_3.nii.gz").touch()


def predict_arguments(command):
    if command[0] == "nnUNetv2_predict":
        return arguments(predict_entry_point, command[1:])
    assert command[:2] == ["rehrseg", "predict"]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(command[2:])


@pytest.mark.parametrize("key", SEGMENTING)
def test_predictions(make_run, recorder, test_set, key):
    run = make_run(key, fold=2)
    recorder.effect = write_prediction
    predict(run, device="cpu", execute=recorder)
    names = ["hr"] if run.row.hr == "data" else ["lr", "hr", "validation_hr"]
    assert sorted(folder.name for folder in run.predictions.iterdir()) == sorted(names)
    assert all((run.predictions / name / "case_3.nii.gz").is_file() for name in names)
    programs = [command[0] for command in recorder.commands]
    assert programs == (["nnUNetv2_predict"] if run.row.hr == "data" else ["nnUNetv2_predict", "rehrseg", "rehrseg"])
    dataset = run.folder.parent.parent.name
    for name, command in zip(names, recorder.commands, strict=True):
        args = predict_arguments(command)
        assert (args.d, args.c, args.tr, args.device) == (dataset, "3d_fullres", run.trainer, "cpu")
        images = sorted(file.name for file in Path(args.i if isinstance(args.i, str) else args.i[0]).iterdir())
        assert images == (["case_1_0000.nii.gz"] if name == "validation_hr" else ["case_3_0000.nii.gz"])
        assert [int(fold) for fold in args.f] == [2]
        assert args.p == run.benchmark.plans_name(run.row.plans)
        assert not args.continue_prediction  # it would keep files that a kill has cut off
        assert args.save_probabilities == (name != "lr" or key in UPSAMPLED)
    assert {environment["nnUNet_results"] for environment in recorder.environments} == {str(run.results)}
    predict(run, device="cpu", execute=recorder)
    assert len(recorder.commands) == len(names)  # nothing again


def test_a_prediction_that_fails_is_not_taken_for_a_finished_one(make_run, recorder, test_set):
    run = make_run("rehrseg")

    def fail_at_hr(command):
        write_prediction(command)
        if command[0] == "rehrseg":
            raise subprocess.CalledProcessError(1, command)

    recorder.effect = fail_at_hr
    with pytest.raises(subprocess.CalledProcessError):
        predict(run, device="cpu", execute=recorder)
    assert (run.predictions / "lr").is_dir()
    assert not (run.predictions / "hr").exists()
    recorder.effect = write_prediction
    predict(run, device="cpu", execute=recorder)
    assert [command[0] for command in recorder.commands] == ["nnUNetv2_predict", *["rehrseg"] * 3]
    assert recorder.commands[1] == recorder.commands[2]
    assert (run.predictions / "hr").is_dir()


@pytest.mark.parametrize("resolution", ["lr", "hr"])
def test_files_of_an_interrupted_prediction_do_not_survive(make_run, recorder, test_set, resolution):
    run = make_run("rehrseg")

    def cut_off(command):
        write_prediction(command)
        folder = Path(command[command.index("-o") + 1])
        (folder / "case_4.nii.gz").write_text("half")
        if folder.name.startswith(resolution):
            raise subprocess.CalledProcessError(1, command)
        (folder / "case_4.nii.gz").write_text("whole")

    recorder.effect = cut_off
    with pytest.raises(subprocess.CalledProcessError):
        predict(run, device="cpu", execute=recorder)
    found = []

    def note(command):
        folder = Path(command[command.index("-o") + 1])
        found.extend(folder.glob("*"))
        write_prediction(command)

    recorder.effect = note
    predict(run, device="cpu", execute=recorder)
    assert found == []  # each command starts from an empty folder
    assert [file.name for file in (run.predictions / resolution).iterdir()] == ["case_3.nii.gz"]
    assert sorted(folder.name for folder in run.predictions.iterdir()) == ["hr", "lr", "validation_hr"]
    if resolution == "hr":  # finished before, so left alone
        assert (run.predictions / "lr" / "case_4.nii.gz").read_text() == "whole"


def test_without_a_test_set_nothing_is_predicted(make_run, recorder):
    run = make_run("rehrseg", test_cases=0)
    predict(run, device="cpu", execute=recorder)
    assert recorder.commands == []
    assert not run.predictions.exists()


@pytest.mark.parametrize("checkpoint", [None, "checkpoint_latest.pth", "checkpoint_final.pth"])
def test_results_of_a_former_network_are_forgotten(make_run, recorder, checkpoint):
    """Predictions and scores of weights that change now; times only where the training starts anew."""
    run = make_run("rehrseg")
    run.other("baseline").folder.mkdir(parents=True)
    for file in (run.predictions / "lr" / "a.nii.gz", scores_file(run), seconds_file(run)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"predict_lr": {"wall": 1.0, "cpu": 1.0}}))
    if checkpoint is not None:
        run.folder.mkdir(parents=True)
        (run.folder / checkpoint).touch()
    train(run, device="cpu", execute=recorder)
    assert not run.predictions.exists()
    assert not scores_file(run).exists()
    assert seconds_file(run).exists() == (checkpoint is not None)


def test_the_cpu_seconds_of_predictions_are_kept(make_run, test_set):
    run, seconds = make_run("rehrseg"), iter([3.0, 4.5, 2.0])

    def execute(command, environment=None):
        write_prediction(command)
        return next(seconds)

    predict(run, device="cpu", execute=execute)
    kept = {step: clock["cpu"] for step, clock in json.loads(seconds_file(run).read_text()).items()}
    assert kept == {"predict_lr": 3, "predict_hr": 4.5, "predict_validation_hr": 2}
    assert not seconds_file(make_run("rehrseg", fold=1)).exists()


def test_what_a_run_builds_on(make_run):
    assert [run.row.key for run in make_run("rehrseg", epochs=5).pipeline] == ["baseline", "self_sr", "rehrseg"]
    assert [run.row.key for run in make_run("rehrseg_smore").pipeline] == [
        "baseline",
        "smore",
        "self_sr_smore",
        "rehrseg_smore",
    ]
    run = make_run("rehrseg_taught", fold=2, seed=3)
    assert {(other.fold, other.seed) for other in run.pipeline} == {(2, 3)}
    assert [other.row.key for other in run.before] == ["baseline", "self_sr_taught"]


def test_execute_runs_this_pythons_commands_and_raises(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("KEPT", "kept")
    code = "import os; print(os.environ['KEPT'], os.environ['NEW'], os.environ['PATH'].split(os.pathsep)[0])"
    runs.execute([sys.executable, "-c", code], {"NEW": "new"})
    out = capfd.readouterr().out
    assert f"kept new {Path(sys.executable).parent}\n" in out
    assert out.startswith(f"$ {sys.executable} -c")
    with pytest.raises(subprocess.CalledProcessError):
        runs.execute([sys.executable, "-c", "raise SystemExit(3)"])


def test_execute_says_what_the_command_and_its_children_took():
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    assert runs.execute([sys.executable, "-c", nested]) >= 0.3


@pytest.mark.parametrize("key", ROWS)
def test_named_settings_are_beside_others_only_where_they_count(make_run, key):
    plain, named = make_run(key), make_run(key, settings="v2")
    depends = ROWS[key].trainer not in ("SafeTrainer", "ContinuedBaselineTrainer")
    assert (plain.folder != named.folder) == (plain.label != named.label) == depends
    assert all(other.settings == "v2" for other in named.pipeline)


def test_the_baseline_is_found_under_named_settings(make_run, recorder, finish):
    finish(make_run("baseline"))
    run = make_run("rehrseg", settings="v2")
    train(run, device="cpu", execute=recorder)
    found = BASELINE.find(FoldRun.parse(run.folder))
    assert found.folder.resolve() == make_run("baseline").folder.resolve()

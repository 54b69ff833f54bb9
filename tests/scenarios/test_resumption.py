"""Trainings that are killed or interrupted go on with `--c` or `--val` and end as undisturbed ones."""

import json
import shutil
from pathlib import Path

import faults
import pytest
import torch
from short_runs import EPOCHS
from workspace import environment

from rehrseg_nnunet.nnunet.fold_run import BEST_CHECKPOINT, FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.weights import hash_weights

pytestmark = pytest.mark.slow

THICK, LENGTH = 2, 4
STAGE_1, STAGE_2, BASELINE = "SelfSRTrainer", "REHRSegTrainer", "ContinuedBaselineTrainer"


@pytest.fixture(scope="module")
def undisturbed(nnunet):
    """A fold of every trainer, and the folder's copies in `undisturbed/`."""
    nnunet.write_phantom(1, cases=5)
    nnunet.simulate(1, THICK)
    nnunet.prepare(THICK)
    nnunet.train("nnUNetTrainer", THICK)
    with environment(**{EPOCHS: str(LENGTH)}):
        for trainer in (STAGE_1, STAGE_2, BASELINE):
            fold = nnunet.train(trainer, THICK)
            shutil.copytree(fold, nnunet.base / "undisturbed" / trainer)
        yield nnunet


@pytest.fixture
def start_anew(undisturbed):
    """Remove a trainer's fold; it is as the undisturbed one again afterwards."""
    removed = []

    def remove(trainer):
        removed.append(undisturbed.fold(trainer, THICK))
        shutil.rmtree(removed[-1])
        return removed[-1]

    yield remove
    for fold in removed:
        shutil.rmtree(fold)
        shutil.copytree(undisturbed.base / "undisturbed" / fold.parent.name.split("__")[0], fold)


def killed(nnunet, trainer, *options, fault):
    """The output of a training that kills itself at some point."""
    process = nnunet.start_training(trainer, THICK, *options, epochs=LENGTH, fault=fault)
    output = process.communicate()[0]
    assert process.returncode == -9, output
    return output


def epochs(output):
    """Epochs that an output tells of, in order."""
    words = [line.split() for line in output.splitlines()]
    return [int(line[-1]) for line in words if len(line) > 1 and line[-2] == "Epoch" and line[-1].isdigit()]


def files(folder):
    """Everything in a fold but logs."""
    names = {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*")}
    return {name for name in names if not name.startswith("training_log")}


def log_of(checkpoint):
    return torch.load(checkpoint, weights_only=False)["logging"]


def weights_hash(checkpoint):
    return hash_weights(torch.load(checkpoint, weights_only=False)["network_weights"])


def assert_as_undisturbed(nnunet, trainer):
    """Same files, all epochs once, same learning rates."""
    fold, expected = nnunet.fold(trainer, THICK), nnunet.base / "undisturbed" / trainer
    assert files(fold) == files(expected)
    log, expected_log = log_of(fold / FINAL_CHECKPOINT), log_of(expected / FINAL_CHECKPOINT)
    assert log["lrs"] == pytest.approx(expected_log["lrs"], rel=1e-12)
    assert {key: len(values) for key, values in log.items()} == dict.fromkeys(expected_log, LENGTH)
    assert torch.load(fold / FINAL_CHECKPOINT, weights_only=False)["current_epoch"] == LENGTH


def test_stage_1_killed_in_an_epoch_and_in_the_export(undisturbed, start_anew, capsys):
    """The killed epoch starts again; complete pseudo-HR cases are not made again."""
    fold = start_anew(STAGE_1)
    output = killed(undisturbed, STAGE_1, fault="at_step(2, 1, die)")
    assert epochs(output) == [0, 1, 2]
    assert not (fold / FINAL_CHECKPOINT).exists()

    output = killed(undisturbed, STAGE_1, "--c", fault="in_export(2, die)")
    assert epochs(output) == [2, 3]
    manifest = json.loads((fold / "pseudo_hr.json").read_text())
    assert manifest["weights_sha256"] == weights_hash(fold / FINAL_CHECKPOINT)
    complete = {path: path.stat().st_mtime_ns for path in fold.glob("pseudo_hr*/*") if "_tmp_" not in path.parent.name}
    assert len(complete) == 2 * 4  # two cases of three files and an entry
    assert len(list(fold.glob("pseudo_hr_tmp_*"))) == 1

    undisturbed.train(STAGE_1, THICK, "--val")
    assert epochs(capsys.readouterr().out) == []
    assert {path: path.stat().st_mtime_ns for path in complete} == complete
    assert_as_undisturbed(undisturbed, STAGE_1)


def test_stage_1_killed_before_the_uncertainty_phase_goes_on_in_it(undisturbed, start_anew, monkeypatch):
    """Phase, step-wise learning rate and Adam's state are those of the undisturbed run at that epoch."""
    start_anew(STAGE_1)
    steps = []
    with monkeypatch.context() as patch:
        faults.at_step(LENGTH - 1, 0, faults.interrupt, set_attribute=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            undisturbed.train(STAGE_1, THICK)

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = nnUNetTrainer.train_step

    def observed(self, batch):
        state = self.optimizer.state_dict()["state"]
        taken = {int(values["step"]) for values in state.values()}
        rate = self.optimizer.param_groups[0]["lr"]
        steps.append((self.current_epoch, self.loss.use_uncertainty, rate, taken))
        return stock(self, batch)

    monkeypatch.setattr(nnUNetTrainer, "train_step", observed)
    undisturbed.train(STAGE_1, THICK, "--c")
    assert [step[:2] for step in steps] == [(LENGTH - 1, True)] * 2
    first, second = (step[2] for step in steps)
    assert first == pytest.approx(0.002 / 25)  # the phase's own cycle starts at a 25th of the peak
    assert second > 10 * first
    assert steps[0][3] == {2 * (LENGTH - 1)}
    assert_as_undisturbed(undisturbed, STAGE_1)


def test_a_kill_while_the_latest_state_is_written_leaves_the_former_one(undisturbed, start_anew, capsys):
    fold = start_anew(STAGE_2)
    output = killed(undisturbed, STAGE_2, fault="in_checkpoint('checkpoint_latest.pth', 2, die)")
    assert epochs(output) == [0, 1, 2]
    assert len(log_of(fold / "checkpoint_latest.pth")["lrs"]) == 2
    assert (fold / "checkpoint_latest.pth.tmp").is_file()
    undisturbed.train(STAGE_2, THICK, "--c")
    assert epochs(capsys.readouterr().out) == [2, 3]
    assert_as_undisturbed(undisturbed, STAGE_2)
    assert log_of(fold / FINAL_CHECKPOINT)["lrs"][0] == pytest.approx(0.005)  # the preset's, not nnU-Net's


def test_stage_2_killed_in_its_first_epoch_and_while_the_final_state_is_written(undisturbed, start_anew, capsys):
    """Without any checkpoint `--c` starts anew; a killed end repeats the last epoch."""
    fold = start_anew(STAGE_2)
    with pytest.MonkeyPatch.context() as patch:
        faults.at_step(0, 1, faults.interrupt, set_attribute=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            undisturbed.train(STAGE_2, THICK)
    assert not list(fold.glob("*.pth"))
    output = killed(undisturbed, STAGE_2, "--c", fault="in_checkpoint('checkpoint_final.pth', 0, die)")
    assert epochs(output) == [0, 1, 2, 3]
    assert not (fold / FINAL_CHECKPOINT).exists()
    undisturbed.train(STAGE_2, THICK, "--c")
    assert epochs(capsys.readouterr().out)[-1:] == [3]
    assert_as_undisturbed(undisturbed, STAGE_2)


def test_a_process_killed_from_outside(undisturbed, start_anew, capsys):
    """The real thing: SIGKILL from another process as soon as the log tells of the second epoch."""
    start_anew(BASELINE)
    process = undisturbed.start_training(BASELINE, THICK, epochs=LENGTH, fault="at_step(1, 1, hang)")
    try:
        assert any(faults.HANGING in line for line in process.stdout)
    finally:
        process.kill()
        process.communicate()
    undisturbed.train(BASELINE, THICK, "--c")
    assert epochs(capsys.readouterr().out) == [1, 2, 3]
    assert_as_undisturbed(undisturbed, BASELINE)


def test_ctrl_c_in_the_export_loses_no_complete_case(undisturbed, start_anew, monkeypatch):
    fold = start_anew(STAGE_1)
    with monkeypatch.context() as patch:
        faults.in_export(2, faults.interrupt, set_attribute=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            undisturbed.train(STAGE_1, THICK)
    before = {path: path.stat().st_mtime_ns for path in fold.glob("pseudo_hr/*.b2nd")}
    assert len(before) == 4
    undisturbed.train(STAGE_1, THICK, "--c")  # as good as --val once the training itself is done
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert_as_undisturbed(undisturbed, STAGE_1)


def change_weights(checkpoint):
    content = torch.load(checkpoint, weights_only=False)
    for value in content["network_weights"].values():
        if value.is_floating_point():
            value.mul_(1.01)
    torch.save(content, checkpoint)


def test_stage_2_is_taught_by_the_checkpoint_that_made_its_data(undisturbed, start_anew, capsys):
    """`--val_best` of stage 1, then stage 2; then neither checkpoint fits, and `--val` mends that."""
    fold = undisturbed.fold(STAGE_1, THICK)
    start_anew(STAGE_2)
    change_weights(fold / BEST_CHECKPOINT)  # or it may be the final one
    undisturbed.train(STAGE_1, THICK, "--val", "--val_best")
    manifest = json.loads((fold / "pseudo_hr.json").read_text())
    assert manifest["weights_sha256"] == weights_hash(fold / BEST_CHECKPOINT) != weights_hash(fold / FINAL_CHECKPOINT)

    capsys.readouterr()
    undisturbed.train(STAGE_2, THICK)
    assert f"stage 1: {fold / BEST_CHECKPOINT}" in capsys.readouterr().out

    change_weights(fold / BEST_CHECKPOINT)
    command = f"run: nnUNetv2_train {undisturbed.dataset(THICK)} 3d_fullres 0 -tr SelfSRTrainer -p tiny --val"
    with pytest.raises(
        ValueError, match=rf"pseudo_hr.json has weights_sha256 .*replaced after the export.*; {command}"
    ):
        undisturbed.train(STAGE_2, THICK)
    undisturbed.train(STAGE_1, THICK, "--val")
    capsys.readouterr()
    undisturbed.train(STAGE_2, THICK)
    assert f"stage 1: {fold / FINAL_CHECKPOINT}" in capsys.readouterr().out

"""Checkpoints that survive a kill, without nnU-Net's trainer."""

from unittest.mock import patch

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints, checkpoint_interval


class Base:
    """What the mixin uses of nnU-Net's trainer."""

    def __init__(self, folder, *, rank=0, epochs=100):
        self.output_folder, self.local_rank, self.num_epochs = str(folder), rank, epochs
        self.save_every, self.disable_checkpointing = 50, False
        self.state, self.loaded, self.started = 0, None, False

    def initialize(self):
        self.was_initialized = True

    def on_train_start(self):
        self.started = True

    def save_checkpoint(self, filename):
        if self.local_rank == 0 and not self.disable_checkpointing:
            torch.save({"network_weights": {"w": torch.full((1000,), float(self.state))}}, filename)

    def load_checkpoint(self, filename):
        self.loaded = torch.load(filename, weights_only=False)


class Trainer(SafeCheckpoints, Base):
    pass


def value(file):
    return float(torch.load(file)["network_weights"]["w"][0])


@pytest.mark.parametrize(("epochs", "expected"), [(1, 1), (6, 1), (19, 1), (20, 2), (100, 10), (600, 50), (1000, 50)])
def test_the_latest_state_is_saved_at_every_tenth(epochs, expected, tmp_path):
    assert checkpoint_interval(epochs, 50) == expected
    trainer = Trainer(tmp_path, epochs=epochs)
    trainer.initialize()
    assert trainer.save_every == expected


def test_a_shorter_interval_of_a_subclass_is_kept():
    assert checkpoint_interval(1000, 3) == 3


def test_a_checkpoint_replaces_the_former_one(tmp_path):
    trainer, file = Trainer(tmp_path), tmp_path / "checkpoint_latest.pth"
    for trainer.state in (1, 2):
        trainer.save_checkpoint(str(file))
        assert value(file) == trainer.state
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_kill_while_writing_leaves_the_former_one_and_the_next_start_cleans_up(tmp_path, monkeypatch, error):
    trainer, file = Trainer(tmp_path), tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))

    def dies_midway(content, target):
        with open(target, "wb") as stream:
            stream.write(b"PK half a checkpoint")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies_midway)
        trainer.state = 5
        with pytest.raises(error):
            trainer.save_checkpoint(str(file))
    assert value(file) == 0
    assert len(list(tmp_path.iterdir())) == 2
    trainer.on_train_start()
    assert trainer.started
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_is_named_and_leaves_the_former_one(tmp_path, monkeypatch, failure):
    trainer, file = Trainer(tmp_path), tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))

    def fails(content, target):
        with open(target, "wb") as stream:
            stream.write(b"half")
        raise failure

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError, match=rf"{file} could not be written \(.*\); if the disk is full, free space .*--c"):
        trainer.save_checkpoint(str(file))
    assert value(file) == 0
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("rank", "disabled"), [(1, False), (0, True)])
def test_other_ranks_and_disabled_checkpointing_write_nothing_and_move_nothing(tmp_path, rank, disabled):
    trainer, file = Trainer(tmp_path, rank=rank), tmp_path / "checkpoint_latest.pth"
    trainer.disable_checkpointing = disabled
    partial = tmp_path / "checkpoint_latest.pth.tmp"  # being written by the first rank
    partial.touch()
    trainer.save_checkpoint(str(file))
    assert list(tmp_path.iterdir()) == [partial]


def test_the_first_rank_alone_cleans_up(tmp_path):
    partial = tmp_path / "checkpoint_latest.pth.tmp"
    partial.touch()
    Trainer(tmp_path, rank=1).on_train_start()
    assert partial.exists()


def test_a_damaged_checkpoint_gives_the_way_out(tmp_path):
    trainer, file = Trainer(tmp_path), tmp_path / "checkpoint_final.pth"
    trainer.state = 3
    trainer.save_checkpoint(str(file))
    trainer.load_checkpoint(str(file))
    assert float(trainer.loaded["network_weights"]["w"][0]) == 3
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match=rf"{file} must be an nnU-Net checkpoint.*; remove it and continue with --c"):
        trainer.load_checkpoint(str(file))


class Changed(Trainer):
    """Of plans that changed, so that torch refuses the weights; nnU-Net resolves inheritance."""

    configuration_name = "3d_lowres"

    def __init__(self, folder, *, hidden):
        super().__init__(folder)
        self.plans_manager = PlansManager(self.plans(hidden))

    def plans(self, hidden):
        own = {"inherits_from": "3d_fullres", "patch_size": [8, 8, 8]}
        guidance = {"keeper": {"kernel": 3}, "fusion": {"hidden": hidden}}
        fullres = {"patch_size": (4, 4, 4), "architecture": {}, "guidance": guidance}
        return {"configurations": {"3d_fullres": fullres, "3d_lowres": own}}

    def save_checkpoint(self, filename):
        content = {"network_weights": {}, "init_args": {"plans": self.plans_manager.plans}}
        torch.save(content, filename)


class BaseThatRefuses(Changed):
    error = RuntimeError("Error(s) in loading state_dict: size mismatch for w")

    def load_checkpoint(self, filename_or_checkpoint):
        with patch.object(Base, "load_checkpoint", side_effect=self.error):
            super().load_checkpoint(filename_or_checkpoint)


@pytest.mark.parametrize("as_dict", [False, True])
def test_settings_that_changed_since_the_checkpoint_are_named(tmp_path, as_dict):
    file = tmp_path / "checkpoint_latest.pth"
    Changed(tmp_path, hidden=0.25).save_checkpoint(str(file))
    checkpoint = torch.load(file, weights_only=False) if as_dict else str(file)
    changed = r"guidance.fusion.hidden was 0.25 and is 1.0; put back what builds the network, .* plans of another name"
    with pytest.raises(ValueError, match=rf"in {tmp_path} is not of .* these have changed: {changed}"):
        BaseThatRefuses(tmp_path, hidden=1.0).load_checkpoint(checkpoint)
    with pytest.raises(RuntimeError, match="size mismatch"):  # nothing of the plans has changed
        BaseThatRefuses(tmp_path, hidden=0.25).load_checkpoint(checkpoint)


def test_settings_are_not_blamed_for_other_errors(tmp_path):
    file = tmp_path / "checkpoint_latest.pth"
    Changed(tmp_path, hidden=0.25).save_checkpoint(str(file))
    trainer = BaseThatRefuses(tmp_path, hidden=1.0)
    trainer.error = torch.OutOfMemoryError("out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        trainer.load_checkpoint(str(file))
    del trainer.error
    torch.save({"network_weights": {}}, file)  # which does not say its plans
    with pytest.raises(RuntimeError, match="size mismatch"):
        trainer.load_checkpoint(str(file))


def test_a_folder_that_takes_no_files_is_refused_before_anything_is_built(tmp_path):
    trainer = Trainer(tmp_path / "none")
    with pytest.raises(OSError, match=f"{tmp_path / 'none'} must be writable, .*nnUNet_results"):
        trainer.initialize()
    assert not hasattr(trainer, "was_initialized")

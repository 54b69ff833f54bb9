"""Cases that a trained network makes of its fold's, without nnU-Net's trainer."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan
from torch import nn

from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.restoration import export as module
from rehrseg_nnunet.restoration.export import CaseExport

CASES = ["case_2", "case_1", "case_3"]
PLANNED = plan(LabelManager({"background": 0, "a": 1}, None), factor=2)


class Trainer(CaseExport):
    """What the mixin uses of nnU-Net's trainer, and hooks that note what they are called with."""

    store_name, stored, needed_by = "derived", "derived cases", "the next stage"

    def __init__(self, run, *, rank=0, ddp=False):
        self.output_folder = str(run.folder)
        self.local_rank, self.is_ddp, self.disable_checkpointing = rank, ddp, False
        self.network = nn.Linear(2, 2).train()
        self.lines, self.written, self.reported = [], [], []
        self.options = {"factor": 2}
        run.folder.mkdir(parents=True, exist_ok=True)

    def print_to_log_file(self, line):
        self.lines.append(line)

    def cases_to_write(self):
        return CASES

    def write_cases(self, network, store, identifiers):
        assert not network.training
        self.written.append(list(identifiers))
        for identifier in identifiers:
            if not store.is_complete(identifier):
                data, labels = np.zeros((1, 4, 4, 4), np.float32), np.zeros((1, 4, 4, 4), np.int8)
                store.write_case(identifier, data, labels, {}, PLANNED)

    def made_with(self):
        return self.options

    def report(self, network):
        self.reported.append(network)

    def store(self):
        """As a reader opens it."""
        return CaseStore(self.output_folder, self.store_name)


@pytest.fixture
def run(tmp_path):
    return FoldRun("Dataset009_X", "SelfSRTrainer_10epochs", "my_plans", "3d_lowres", "all", tmp_path)


def expected(trainer, run):
    weights = hash_weights(trainer.network.state_dict())
    return CaseManifest.of_run(run, weights_sha256=weights, made_with=trainer.options)


def save(trainer, file):
    torch.save({"network_weights": trainer.network.state_dict()}, file)


def test_cases_are_written_under_the_runs_header_and_reported(run):
    trainer = Trainer(run)
    trainer.perform_actual_validation()
    trainer.store().verify(CASES, expected(trainer, run), remedy="")
    assert trainer.store().folder == run.folder / "derived"
    assert trainer.written == [sorted(CASES)]
    assert trainer.reported == [trainer.network]
    assert trainer.lines == [f"3 derived cases are in {run.folder / 'derived'}"]


@pytest.mark.parametrize("change", ["weights", "options"])
def test_cases_of_something_else_are_made_anew(run, change):
    trainer = Trainer(run)
    trainer.perform_actual_validation()
    file = run.folder / "derived" / "case_1.pkl"
    before = file.stat().st_mtime_ns
    trainer.perform_actual_validation()
    assert file.stat().st_mtime_ns == before
    if change == "weights":
        nn.init.zeros_(trainer.network.weight)
    else:
        trainer.options = {"factor": 2, "image": "smore"}
    trainer.perform_actual_validation()
    assert file.stat().st_mtime_ns != before
    trainer.store().verify(CASES, expected(trainer, run), remedy="")


def test_another_training_may_not_write_at_the_same_time(run):
    trainer = Trainer(run)
    with trainer.store().exclusive(), pytest.raises(RuntimeError, match="another process is writing there"):
        trainer.perform_actual_validation()
    assert trainer.written == []


def test_a_network_that_is_not_kept_makes_no_cases(run):
    trainer = Trainer(run)
    trainer.disable_checkpointing = True
    trainer.perform_actual_validation()
    (line,) = trainer.lines
    assert line == (
        "no derived cases are written: the next stage needs the network that made them, which --disable_checkpointing "
        "does not keep"
    )
    assert trainer.written == []
    assert not trainer.store().manifest_file.exists()


@pytest.mark.parametrize("name", ["final_checkpoint", "best_checkpoint"])
def test_one_that_an_earlier_training_kept_does(run, name):
    trainer = Trainer(run)
    trainer.disable_checkpointing = True
    save(trainer, getattr(run, name))
    trainer.perform_actual_validation()
    assert trainer.written == [sorted(CASES)]


class Group:
    """torch.distributed for ranks that take turns: notes what was written at each barrier."""

    def __init__(self, trainer, world_size):
        self.trainer, self.world_size, self.seen = trainer, world_size, []

    def get_world_size(self):
        return self.world_size

    def barrier(self):
        self.seen.append([identifier for share in self.trainer.written for identifier in share])


def train_in_group(run, monkeypatch, rank, *, cases=CASES):
    trainer = Trainer(run, rank=rank, ddp=True)
    torch.manual_seed(0)
    trainer.network.reset_parameters()  # the same on all ranks
    trainer.cases_to_write = lambda: cases
    trainer.cases_between_barriers = 1
    group = Group(trainer, 2)
    monkeypatch.setattr(module, "dist", group)
    trainer.perform_actual_validation()
    return trainer, group


def test_ranks_share_the_cases_and_meet_at_as_many_barriers(run, monkeypatch):
    (first, meetings), (second, others) = (train_in_group(run, monkeypatch, rank) for rank in (0, 1))
    assert first.written == [["case_1"], ["case_3"]]
    assert second.written == [["case_2"], []]  # fewer cases, as many barriers
    assert meetings.seen == [[], ["case_1"], ["case_1", "case_3"]]
    assert len(others.seen) == len(meetings.seen)
    first.store().verify(CASES, expected(first, run), remedy="")


def test_the_first_rank_alone_opens_and_reports(run, monkeypatch):
    first, _ = train_in_group(run, monkeypatch, 0)
    assert first.reported == [first.network]
    assert first.lines == [f"2 derived cases are in {run.folder / 'derived'}"]  # of one rank
    first.store().manifest_file.unlink()
    second, _ = train_in_group(run, monkeypatch, 1)
    assert second.reported == second.lines == []
    assert not second.store().manifest_file.exists()

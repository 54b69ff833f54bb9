"""A training ends with a page if the user asks for one, and never fails because of it."""

import shutil
from types import SimpleNamespace

import pytest
from report_cases import CASES, write_fold
from report_page import read_page

from rehrseg_nnunet.report.after_training import VARIABLE, report_when_all_are_done


@pytest.fixture
def trainer(folders, tmp_path, monkeypatch):
    folder = write_fold(tmp_path, folders, cases=CASES[:2])
    for name in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    said = []
    return SimpleNamespace(
        output_folder=str(folder), is_ddp=False, local_rank=0, said=said, print_to_log_file=said.append, folder=folder
    )


def test_the_page_of_the_fold_on_request(trainer, monkeypatch):
    for value in (None, "", "0", "False"):
        monkeypatch.delenv(VARIABLE, raising=False) if value is None else monkeypatch.setenv(VARIABLE, value)
        report_when_all_are_done(trainer)
    assert trainer.said == []
    assert not (trainer.folder / "report.html").exists()
    monkeypatch.setenv(VARIABLE, "1")
    report_when_all_are_done(trainer)
    assert trainer.said == [f"to look at: {trainer.folder / 'report.html'}"]
    assert sorted(read_page(trainer.folder / "report.html").cases) == CASES[:2]


def test_what_prevents_the_page_is_said(trainer, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    shutil.rmtree(trainer.folder / "validation")
    report_when_all_are_done(trainer)
    (said,) = trainer.said
    assert said.startswith("WARNING: no page was written: ")
    assert "--val" in said


def test_ranks_wait_for_each_other_and_the_first_one_writes(trainer, monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    waited = []
    monkeypatch.setattr("rehrseg_nnunet.report.after_training.dist.barrier", lambda: waited.append(trainer.local_rank))
    trainer.is_ddp, trainer.local_rank = True, 1
    report_when_all_are_done(trainer)
    assert (waited, trainer.said) == ([1], [])

import os
import signal
import subprocess
import sys
import time

import pytest

from rehrseg_nnunet.nnunet.staging_folders import (
    STAGING_PREFIX,
    STALE_SECONDS,
    output_folder,
    remove_leftovers,
    staging_folder,
    staging_name,
)

HOLD = """
import sys, time
from pathlib import Path
from rehrseg_nnunet.nnunet.staging_folders import staging_folder
with staging_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def age(folder):
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (time.time() - 2 * STALE_SECONDS,) * 2)


def test_a_folder_is_there_while_it_is_needed(tmp_path):
    with staging_folder(tmp_path / staging_name()) as folder:
        (folder / "case").mkdir()
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_names_differ():
    assert len({staging_name() for _ in range(100)}) == 100


def test_what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    killed, living = (tmp_path / f"{STAGING_PREFIX}{name}" for name in ("killed", "living"))
    processes = [hold(killed), hold(living)]
    try:
        for folder in (killed, living):
            (folder / "case").mkdir()
            (folder / "case" / "case.nii.gz").touch()
            age(folder)
        assert remove_leftovers(tmp_path) == []  # however old: both are going
        os.kill(processes[0].pid, signal.SIGKILL)
        processes[0].wait()
        assert remove_leftovers(tmp_path) == [killed.name]
        assert [path.name for path in tmp_path.iterdir()] == [living.name]
        assert (living / "case" / "case.nii.gz").is_file()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("machine", ["another", None])
def test_locks_of_other_machines_are_not_believed_but_their_age_is(tmp_path, machine):
    left = tmp_path / staging_name()
    (left / "case").mkdir(parents=True)
    (left / "run.lock").touch()
    if machine is not None:
        (left / "machine").write_text(machine)
    assert remove_leftovers(tmp_path) == []
    age(left)
    assert remove_leftovers(tmp_path) == [left.name]
    assert not left.exists()


def test_without_locks_a_folder_counts_as_going(tmp_path, monkeypatch):
    def no_locks(*_, **__):
        raise OSError(38, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr("rehrseg_nnunet.nnunet.staging_folders.FileLock.acquire", no_locks)
        context = staging_folder(tmp_path / staging_name())
        folder = context.__enter__()
    assert remove_leftovers(tmp_path) == []
    assert folder.is_dir()
    context.__exit__(None, None, None)


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "case.nii.gz").touch()
    (tmp_path / ".hidden").mkdir()
    assert remove_leftovers(tmp_path) == []
    assert remove_leftovers(tmp_path / "none") == []
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_new_output_folder_goes_with_an_error_unless_something_is_in_it(tmp_path, error):
    def fail(folder, *, file=None):
        with output_folder(folder, purpose="x"):
            if file:
                (folder / file).touch()
            raise error

    (tmp_path / "there").mkdir()
    for folder, file, left in (("a/b", None, False), ("there", None, True), ("c/d", "x", True)):
        with pytest.raises(error):
            fail(tmp_path / folder, file=file)
        assert (tmp_path / folder).exists() == left
    assert not (tmp_path / "a").exists()
    with output_folder(tmp_path / "e", purpose="x"):
        pass
    assert (tmp_path / "e").is_dir()

"""What kills, full disks and other processes may and may not do to files."""

import errno
import logging
import os
import subprocess
import sys
import threading
import time

import pytest

from rehrseg_nnunet.nnunet import safe_files
from rehrseg_nnunet.nnunet.safe_files import check_writable, exclusive, make_folder, partial_name, write_atomically


def test_a_written_file_replaces_the_former_one(tmp_path):
    file = tmp_path / "a.json"
    for text in ("former", "new"):
        write_atomically(file, text)
        assert file.read_text() == text
    assert list(tmp_path.iterdir()) == [file]


def test_a_kill_while_writing_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomically(file, "former")

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(safe_files.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, "new")
    assert file.read_text() == "former"
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", partial_name(file).name}


def test_a_full_disk_is_named_and_leaves_the_former_file(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_atomically(file, "former")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safe_files.os, "fsync", full)
    with pytest.raises(OSError, match=rf"{file} could not be written \(.*No space left.*; if the disk is full, free"):
        write_atomically(file, "new")
    assert file.read_text() == "former"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_takes_no_files_is_named_with_the_purpose(tmp_path):
    check_writable(tmp_path, purpose="checkpoints")
    assert list(tmp_path.iterdir()) == []
    missing = tmp_path / "none"
    with pytest.raises(FileNotFoundError, match=f"{missing} must be writable, got 'No such file.*': checkpoints"):
        check_writable(missing, purpose="checkpoints")


def test_a_lock_excludes_others_until_it_is_left(tmp_path):
    lock = tmp_path / "lock"
    with (
        exclusive(lock, folder=tmp_path, wait=False),
        pytest.raises(RuntimeError, match=f"{tmp_path}: another process is writing there; wait for it or stop it"),
        exclusive(lock, folder=tmp_path, wait=False),
    ):
        pytest.fail("must not come here")
    with pytest.raises(KeyError), exclusive(lock, folder=tmp_path, wait=False):
        raise KeyError
    with exclusive(lock, folder=tmp_path, wait=False):
        pass


def test_a_waiting_process_says_so_and_goes_on_afterwards(tmp_path, caplog):
    lock, order = tmp_path / "lock", []

    def second():
        with exclusive(lock, folder=tmp_path, wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with caplog.at_level(logging.WARNING), exclusive(lock, folder=tmp_path, wait=True):
        thread.start()
        deadline = time.monotonic() + 10
        while "waiting for it" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]
    assert f"{tmp_path}: another process is writing there, waiting for it" in caplog.text


def test_a_killed_process_holds_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from rehrseg_nnunet.nnunet.safe_files import exclusive\n"
        "with exclusive(Path(sys.argv[1]), folder=Path('.'), wait=False):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    try:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(RuntimeError), exclusive(tmp_path / "lock", folder=tmp_path, wait=False):
            pass
    finally:
        process.kill()
        process.communicate()
    with exclusive(tmp_path / "lock", folder=tmp_path, wait=False):
        pass


def refuse_locks(monkeypatch, number):
    def refuse(*args):
        raise OSError(number, "none here")

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_written_to_with_a_warning(tmp_path, monkeypatch, caplog, number):
    refuse_locks(monkeypatch, number)
    with exclusive(tmp_path / "lock", folder=tmp_path, wait=True) as held:
        assert not held
    assert f"{tmp_path}: its file system has no locks (none here)" in caplog.text


def test_other_errors_of_the_lock_are_raised(tmp_path, monkeypatch):
    refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="none here"), exclusive(tmp_path / "lock", folder=tmp_path, wait=True):
        pytest.fail("must not come here")


def test_a_folder_that_cannot_be_made_is_named_with_the_purpose(tmp_path):
    make_folder(tmp_path / "a" / "b", purpose="results")
    make_folder(tmp_path / "a" / "b", purpose="results")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(OSError, match=f"{folder} must be a folder or a place for a new one, got .*: results"):
            make_folder(folder, purpose="results")

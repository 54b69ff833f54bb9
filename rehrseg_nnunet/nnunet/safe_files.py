"""Files and folders that kills, full disks and other processes cannot spoil."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

PARTIAL_SUFFIX = ".tmp"
# what flock says on network file systems without a lock service
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
FULL_DISK = "free space there and run the command again (--c continues a training, --val an export)"


def partial_name(file: Path) -> Path:
    """The name beside a file under which it is written; what has this name is unfinished."""
    return file.with_name(f"{file.name}{PARTIAL_SUFFIX}")


def move_into_place(partial: Path, file: Path) -> None:
    """Give a written file its final name, replacing the former one, once it is on the disk.

    Raises:
        OSError: the disk did not take all of it (some file systems say so only now); the former file is untouched.
    """
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, file)


def write_atomically(file: Path, text: str) -> None:
    """Write a small text file; a kill leaves the former one or the new one.

    Raises:
        OSError: the file could not be written; the former one is untouched.
    """
    partial = partial_name(file)
    try:
        partial.write_text(text, encoding="utf-8")
        move_into_place(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{file} could not be written ({error}); if the disk is full, {FULL_DISK}") from error


def make_folder(folder: Path, *, purpose: str) -> None:
    """Make a folder, and those above it, and check that a file can be made in it.

    Args:
        folder: new or existing.
        purpose: what will be written and how to change the place, the end of the message.

    Raises:
        OSError: of the same kind as the system's, naming the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = "a file" if folder.is_file() or Path(error.filename).is_file() else f"'{error.strerror}'"
        raise type(error)(f"{folder} must be a folder or a place for a new one, got {found}: {purpose}") from None
    check_writable(folder, purpose=purpose)


def check_writable(folder: Path, *, purpose: str) -> None:
    """Refuse a folder in which no file can be made.

    Args:
        folder: existing folder.
        purpose: what will be written and how to change the place, the end of the message.

    Raises:
        OSError: of the same kind as the system's (PermissionError, ...), naming the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(f"{folder} must be writable, got '{error.strerror}': {purpose}") from None


@contextmanager
def exclusive(lock_file: Path, *, folder: Path, wait: bool) -> Iterator[bool]:
    """Hold a lock that ends with the process, however it ends.

    Where the file system has no locks, nothing is held, with a warning: training there must stay possible.

    Args:
        lock_file: made if missing, and left there.
        folder: what the lock protects, for messages.
        wait: wait (logged) until another process is done, instead of refusing.

    Yields:
        Whether the lock is held.

    Raises:
        RuntimeError: another process holds the lock, and `wait` is off.
    """
    lock, held = FileLock(str(lock_file)), True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise RuntimeError(f"{folder}: another process is writing there; wait for it or stop it") from None
        logger.warning("%s: another process is writing there, waiting for it", folder)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(
            "%s: its file system has no locks (%s); let only one training write there", folder, error.strerror
        )
        held = False
    try:
        yield held
    finally:
        lock.release()

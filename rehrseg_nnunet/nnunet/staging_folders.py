"""Hidden folders beside results, in which files are written before they get their names.

A killed run leaves its folder there. The next run removes it, but never that of a run that is still going, be it on
another machine: a run holds a lock in its folder, and locks are only believed on the machine that took them, because
some cluster file systems keep locks per machine. What cannot be told is removed when nothing in it changed for a day.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rehrseg_nnunet.nnunet.safe_files import make_folder

STAGING_PREFIX = ".rehrseg-partial-"
STALE_SECONDS = 24 * 3600.0
_LOCK, _MACHINE = "run.lock", "machine"


def staging_name() -> str:
    """A name that no other run has."""
    return STAGING_PREFIX + uuid.uuid4().hex[:8]


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Make a folder of `staging_name`, hold its lock, and remove it at the end.

    Args:
        folder: the new folder, in an existing one.
    """
    folder.mkdir()
    lock = FileLock(str(folder / _LOCK))
    try:
        try:
            lock.acquire(timeout=0)
            (folder / _MACHINE).write_text(_this_machine())  # last: it says that the lock is held
        except OSError:  # no locks there, or a full disk: others wait for a day
            pass
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def output_folder(folder: Path, *, purpose: str) -> Iterator[None]:
    """Make a folder for results, free of what killed runs left; on an error no new folder stays that has nothing in it.

    Args:
        folder: new or existing.
        purpose: what will be written and how to change the place, the end of messages.

    Raises:
        OSError: see `make_folder`.
    """
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder, purpose=purpose)
    remove_leftovers(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for place in new:
                place.rmdir()
        raise


def remove_leftovers(folder: Path) -> list[str]:
    """Remove what killed runs left in a folder.

    Args:
        folder: where results are written; it may not exist.

    Returns:
        Names of the folders that were removed.
    """
    left = sorted(folder.glob(f"{STAGING_PREFIX}*"))
    removed = [leftover.name for leftover in left if _is_over(leftover)]
    for name in removed:
        shutil.rmtree(folder / name, ignore_errors=True)
    return removed


def _is_over(folder: Path) -> bool:
    """Whether the run that made a folder has ended, as far as that can be told."""
    try:
        if (folder / _MACHINE).read_text() == _this_machine():
            return _is_free(folder / _LOCK)
    except OSError:
        pass  # none there, or its run removes it now
    return time.time() - _last_change(folder) > STALE_SECONDS


def _is_free(lock_file: Path) -> bool:
    lock = FileLock(str(lock_file))
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    lock.release()
    return True


def _last_change(folder: Path) -> float:
    times = []
    for path in (folder, *folder.rglob("*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            return time.time()  # it disappears: its run is going
    return max(times)


def _this_machine() -> str:
    """The machine, as a hash: results are passed on."""
    return hashlib.sha256(platform.node().encode()).hexdigest()

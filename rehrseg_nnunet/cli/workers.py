"""Worker processes that a command starts through nnU-Net end with it, however it ends, and do not speak of it."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def end_workers() -> Iterator[None]:
    """On Ctrl-C or an error, end the worker processes that were started inside.

    A terminal sends Ctrl-C to all processes of a command, and every worker would print its traceback. Workers started
    inside never see it: it is this process that ends them.
    """
    before = set(multiprocessing.active_children())
    try:
        with _interrupts_blocked_for_children():
            yield
    except BaseException:
        started = set(multiprocessing.active_children()) - before
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.join()
        raise


@contextmanager
def _interrupts_blocked_for_children() -> Iterator[None]:
    """Block SIGINT in this thread, whose mask children inherit, and let another thread receive it.

    Python handles signals in the main thread whichever thread receives them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # the first worker would start it, which unblocks SIGINT
    done = threading.Event()
    receiver = threading.Thread(target=done.wait, daemon=True)
    receiver.start()
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
        done.set()

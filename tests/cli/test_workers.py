import multiprocessing
import os
import signal
import time

import pytest

from rehrseg_nnunet.cli.workers import end_workers

posix = pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no signal masks")


def sleeper():
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    return worker


def fail_beside_a_worker(error, workers):
    with end_workers():
        workers.append(sleeper())
        raise error


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_workers_end_with_an_error(error):
    outer, workers = sleeper(), []
    with pytest.raises(type(error)):
        fail_beside_a_worker(error, workers)
    assert [worker.exitcode for worker in workers] == [-signal.SIGTERM]
    assert outer.is_alive()
    outer.kill()
    outer.join()


def test_workers_are_left_alone_without_one():
    with end_workers():
        worker = sleeper()
    assert worker.is_alive()
    worker.kill()
    worker.join()


def interrupt_worker_and_self(workers):
    with end_workers():
        workers.append(sleeper())
        os.kill(workers[0].pid, signal.SIGINT)
        workers[0].join(1)
        assert workers[0].exitcode is None
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


@posix
def test_ctrl_c_reaches_this_process_and_not_the_workers():
    workers = []
    with pytest.raises(KeyboardInterrupt):
        interrupt_worker_and_self(workers)
    assert workers[0].exitcode == -signal.SIGTERM
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@posix
def test_the_mask_holds_after_the_first_worker():
    """Starting Python's resource tracker unblocks SIGINT."""
    with end_workers():
        worker = sleeper()
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        worker.kill()
        worker.join()

"""Jobs that build on each other."""

import threading
import time

import pytest

from benchmarks.quality.jobs import Job, do_jobs

# name: what it builds on
GRAPH = {"a": (), "b": ("a",), "c": (), "d": ("b", "c"), "e": ("a",)}


def jobs(work, graph=GRAPH):
    return [Job(name, frozenset(after), lambda name=name: work(name)) for name, after in graph.items()]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_every_job_is_done_once_after_what_it_builds_on(at_once):
    done, running, most, lock = [], set(), [0], threading.Lock()

    def work(name):
        with lock:
            assert set(GRAPH[name]) <= set(done)
            running.add(name)
            most[0] = max(most[0], len(running))
        time.sleep(0.02)
        with lock:
            running.remove(name)
            done.append(name)

    do_jobs(jobs(work), at_once=at_once)
    assert sorted(done) == sorted(GRAPH)
    assert most[0] <= at_once
    assert most[0] > 1 or at_once == 1
    if at_once == 1:
        assert done == list(GRAPH)


def test_what_another_run_has_finished_does_not_hold_a_job_up():
    done = []
    do_jobs(jobs(done.append, {"b": ("a",)}), at_once=2)
    assert done == ["b"]


def test_after_a_failure_nothing_starts():
    done = []

    def work(name):
        if name == "a":
            raise ValueError("broken")
        time.sleep(0.1)
        done.append(name)

    with pytest.raises(ValueError, match="broken"):
        do_jobs(jobs(work), at_once=2)
    assert done == ["c"]  # ran beside it

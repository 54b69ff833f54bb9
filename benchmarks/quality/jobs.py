"""Several steps at a time, each as soon as those that it builds on are done."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A step.

    Attributes:
        name: unique among the jobs.
        after: names of the jobs that must be done before.
        work: does it.
    """

    name: Hashable
    after: frozenset
    work: Callable[[], None]


def do_jobs(jobs: Iterable[Job], *, at_once: int) -> None:
    """Do all jobs; of those that can start the first in order do.

    After a failure nothing new starts; what is running ends, then the failure is raised.

    Args:
        jobs: in an order in which they could be done one by one.
        at_once: most jobs at the same time.
    """
    waiting: dict[Hashable, Job] = {job.name: job for job in jobs}
    running: dict[Future[None], Hashable] = {}
    with ThreadPoolExecutor(at_once) as pool:
        while waiting or running:
            for job in _ready(waiting, running.values()):
                if len(running) < at_once:
                    running[pool.submit(waiting.pop(job.name).work)] = job.name
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                del running[future]
                future.result()


def _ready(waiting: Mapping[Hashable, Job], running: Iterable[Hashable]) -> list[Job]:
    """Waiting jobs that build on nothing that is waiting or running."""
    unfinished = {*waiting, *running}
    return [job for job in waiting.values() if not job.after & unfinished]

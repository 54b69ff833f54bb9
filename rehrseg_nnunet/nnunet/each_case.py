"""Something is done for every case, several at a time; what is wrong with any of them is said at the end."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rehrseg_nnunet.nnunet.raw_files import listed

MOST_THREADS = 8  # each holds a case's volumes

Result = TypeVar("Result")


def cases_at_a_time(given: int | None) -> int:
    """What `-np` says, else a thread for each processor core, up to `MOST_THREADS`.

    Raises:
        ValueError: less than 1.
    """
    number = min(MOST_THREADS, os.cpu_count() or 1) if given is None else given
    if number < 1:
        raise ValueError(f"-np must be at least 1, got {number}")
    return number


def for_each_case(
    work: Callable[[str], Result], cases: Sequence[str], *, processes: int, title: str
) -> dict[str, Result]:
    """Do something for every case, several at a time, with a progress bar.

    Raises:
        ValueError: what went wrong with the first case, and the names of others with which something did.
    """
    failed: dict[str, ValueError] = {}
    done: dict[str, Result] = {}

    def careful(case: str) -> None:
        try:
            done[case] = work(case)
        except ValueError as error:  # of this case's files; the other cases are looked at too
            failed[case] = error

    with ThreadPoolExecutor(processes) as pool, logging_redirect_tqdm():  # readers and filters let other threads run
        try:
            list(tqdm(pool.map(careful, cases), desc=title, total=len(cases)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        first, *others = sorted(failed)
        more = f" (and of case {listed(others)})" if others else ""
        raise ValueError(f"{failed[first]}{more}")
    return {case: done[case] for case in cases}

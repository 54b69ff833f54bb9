"""Run tasks in processes of their own, within the seconds of their part; a task that fails costs that task only.

A server process imports PyTorch and nnU-Net once and is forked for each task, which saves each of them the imports. It
never touches CUDA, so its children may.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.data import GPUData, set_environment
from benchmarks.gpu.parts import Lengths, Part, Task
from benchmarks.gpu.records import RESULTS, add_record

PRELOADED = "benchmarks.gpu.preloaded"
LOG, LOG_BYTES, FAILED_LOG_BYTES = "log.txt", 1500, 20_000
SLOWER, GRACE_S = 2, 20.0  # a task is killed after this many times its seconds, and these
LEFT_OUT = "not on this device"


@dataclass(frozen=True)
class Settings:
    """Of a run.

    Attributes:
        device: "cuda" or "cpu".
        data: the work folder's copy.
        lengths: of measurements.
        out: folder for results.
        scale: of the parts' budgets, 1 for a run of `FULL_SECONDS`.
    """

    device: str
    data: GPUData
    lengths: Lengths
    out: Path
    scale: float = 1.0

    def seconds(self, at_full_length: float) -> float:
        """A budget in a run of this length."""
        return at_full_length * self.scale


@dataclass(frozen=True)
class Context:
    """What a task's function gets: the settings, when it must be done, when its part began and ends.

    Attributes:
        settings: of the run.
        until: `time.monotonic()` at which the task is killed.
        part_began: when its part began.
        part_until: when its part ends.
        results: folder for nnUNet_results.
    """

    settings: Settings
    until: float
    part_began: float
    part_until: float
    results: Path

    @property
    def seconds_left(self) -> float:
        """Until the task is killed."""
        return self.until - time.monotonic()


class Scheduler:
    """Runs parts one after another.

    Args:
        settings: of the run.
        cores: of the machine; fewer than 16 run fewer tasks at the same time.
        grace_s: that a task may take beyond twice its seconds.
    """

    def __init__(self, settings: Settings, *, cores: int, grace_s: float = GRACE_S) -> None:
        self.settings, self.cores, self.grace_s = settings, cores, grace_s
        self.done: dict[str, str] = {}  # status by task
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload([PRELOADED])
        first = self._processes.Process(target=importlib.import_module, args=(PRELOADED,))
        first.start()  # waits for the server's imports, which must not count as a task's seconds
        first.join()
        if first.exitcode:  # the server itself says nothing of an import that fails
            raise ImportError(f"{PRELOADED} must be importable; the traceback is above")

    def run(self, part: Part, tasks: Sequence[Task], *, until: float) -> None:
        """Run a part's tasks; at `until` (`time.monotonic()`) whatever still runs is killed."""
        began, parallel = time.monotonic(), self._parallel(part)
        waiting, running = [task for task in tasks if not self._left_out(task)], {}
        while waiting or running:
            for name in [name for name, (process, _, _) in running.items() if not process.is_alive()]:
                self._finish(*running.pop(name), None)
            for name, (_, context, _) in list(running.items()):
                if time.monotonic() > context.until:
                    self._finish(*running.pop(name), "timed out")
            for task in [task for task in waiting if self._ready(task) and len(running) < parallel]:
                if len(running) < parallel:
                    waiting.remove(task)
                    if (started := self._start(task, began, until)) is not None:
                        running[task.name] = started
            if not running and waiting and not any(self._ready(task) for task in waiting):
                for task in waiting:
                    self._record(task, "skipped", reason=f"needs {', '.join(self._unmet(task))}")
                return
            time.sleep(0.05)

    def _parallel(self, part: Part) -> int:
        if self.settings.lengths.rehearsal:
            return self.cores
        return min(part.parallel, max(4, self.cores // 2))

    def _left_out(self, task: Task) -> bool:
        if not task.gpu_only or self.settings.device == "cuda":
            return False
        self._record(task, LEFT_OUT, reason=task.gpu_only)
        return True

    def _unmet(self, task: Task) -> list[str]:
        return [name for name in task.after if self.done.get(name) != "ok"]

    def _ready(self, task: Task) -> bool:
        return not self._unmet(task)

    def _start(self, task: Task, began: float, until: float) -> tuple[Any, Context, Task] | None:
        now, rehearsal = time.monotonic(), self.settings.lengths.rehearsal
        if until - now < (0 if rehearsal else task.least_seconds):
            reason = f"takes {task.least_seconds:.0f} s or more, {max(0.0, until - now):.0f} s were left of its part"
            self._record(task, "skipped", reason=reason)
            return None
        limit = until if rehearsal or task.ends_itself else min(until, now + SLOWER * task.seconds + self.grace_s)
        context = Context(self.settings, limit, began, until, self._results(task))
        process = self._processes.Process(target=_run, args=(task, context, str(self._log(task))), name=task.name)
        process.start()
        return process, context, task

    def _results(self, task: Task) -> Path:
        shared = "quality" if task.part == "quality" else task.name.replace("/", "_")
        folder = self.settings.data.results(shared)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _log(self, task: Task) -> Path:
        return self.settings.data.folder / f"{task.name.replace('/', '_')}.log"

    def _finish(self, process: Any, context: Context, task: Task, status: str | None) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with the workers that it left
        process.kill()  # one that has not made its group yet
        process.join(10)
        if status is None or process.exitcode in (0, 1):  # it may end while its time does
            status = {0: "ok", 1: "failed"}.get(process.exitcode, f"died with exit code {process.exitcode}")
        if status not in ("ok", "failed"):  # those have said so themselves
            self._record(task, status)
        self.done[task.name] = status
        _keep_log(self._log(task), context.settings.out / LOG, task.name, status)

    def _record(self, task: Task, status: str, **more: Any) -> None:
        self.done[task.name] = status
        record = {"part": task.part, "task": task.name, "status": status, **more}
        add_record(self.settings.out / RESULTS, record)
        print(f"{task.name}: {status} {more.get('reason', '')}", flush=True)


def _keep_log(log: Path, kept: Path, name: str, status: str) -> None:
    """Append the end of a task's log, more of it where something went wrong."""
    content = log.read_bytes() if log.is_file() else b""
    end = content[-(LOG_BYTES if status == "ok" else FAILED_LOG_BYTES) :]
    with kept.open("ab") as file:
        file.write(f"\n==== {name}: {status}\n".encode() + end)


def _run(task: Task, context: Context, log: str) -> None:
    """In the task's process: all it prints goes to its log, what its function yields to the results."""
    os.setsid()
    # as in nnUNetv2_train; by this server's method each worker of a loader would import everything again
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    terminal = os.dup(1)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    defaults = {"nnUNet_n_proc_DA": "0", "nnUNet_compile": "false"}
    set_environment({**context.settings.data.environment(context.results), **defaults, **task.variables})
    began, results = time.monotonic(), context.settings.out / RESULTS
    head = {"part": task.part, "task": task.name}
    end: dict[str, Any] = {"status": "ok"}
    try:
        module, function = task.function.split(":")
        for record in getattr(importlib.import_module(module), function)(context, **task.arguments):
            add_record(results, {**head, "status": "result", **record})
    except Exception:
        end = {"status": "failed", "error": traceback.format_exc()[-4000:]}
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in usage)
    end |= {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}
    add_record(results, {**head, **end})
    os.write(terminal, f"{task.name}: {end['status']} in {end['seconds']} s\n".encode())
    sys.stdout.flush()
    os._exit(0 if end["status"] == "ok" else 1)  # nnU-Net's workers may hold a normal exit up

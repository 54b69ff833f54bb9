"""Everything that a short run on one GPU can answer, in one command.

    python -m benchmarks.gpu --minutes 9 --data .gpu/data --out OUT

runs four parts within the minutes: the environment, whether trainings and predictions are correct, what they cost, and
how good trainings side by side become. Every result is on the disk at once (`results.jsonl`; `log.txt` has what went
wrong). `python -m benchmarks.gpu.prepare` makes the data, `python -m benchmarks.gpu.report OUT` the page.

The rehearsal, on the tiny networks of `prepare --tiny`, runs every task that the device can run:

    python -m benchmarks.gpu --minutes 3 --data TINY --out OUT --device cpu
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from benchmarks.gpu.data import GPUData
from benchmarks.gpu.parts import FULL_SECONDS, PARTS, QUICK, Lengths, Task, tasks
from benchmarks.gpu.records import RESULTS, add_record
from benchmarks.gpu.scheduler import Scheduler, Settings

RESERVE_S = 4  # for what is killed at the very end


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts and say what came of them."""
    began = time.monotonic() - _age_of_process()  # the minutes hold the imports too
    args = _parser().parse_args(argv)
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", nnUNet_def_n_proc="2", TQDM_DISABLE="1")
    try:
        prepared = GPUData.read(args.data)
        prepared.check()
        chosen = _chosen(args.only)
        _require_new(args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    with tempfile.TemporaryDirectory(prefix="rehrseg_gpu_", ignore_cleanup_errors=True) as work:
        data = prepared.copied_to(Path(work, "data"))
        lengths = QUICK if args.quick or args.device == "cpu" else Lengths()
        settings = Settings(args.device, data, lengths, args.out.resolve())
        done = _run(settings, chosen, end=began + 60 * args.minutes)
    counts = ", ".join(f"{count} {status}" for status, count in Counter(done.values()).items())
    print(f"{counts}; {time.monotonic() - began:.0f} s; results in {args.out / RESULTS}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what `python -m benchmarks.gpu.prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder for results, new or empty")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a rehearsal, always so on a CPU: few steps of everything, several tasks at a time, no part's budget",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TASK",
        default=["*"],
        help="tasks to run, with those that they need; * stands for anything, e.g. 'step/*' train/rehrseg",
    )
    return parser


def _age_of_process() -> float:
    """Seconds since this process started (Linux)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _require_new(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if (out / RESULTS).exists():
        raise FileExistsError(f"--out must be a folder without results, got {out / RESULTS}")


def _chosen(patterns: Sequence[str]) -> list[Task]:
    """The tasks that match, with all that they need.

    Raises:
        ValueError: nothing matches a pattern.
    """
    known = {task.name: task for task in tasks()}
    wanted = {"environment"}  # which every page names
    for pattern in patterns:
        if not (matching := fnmatch.filter(known, pattern)):
            raise ValueError(f"--only must name tasks such as {', '.join(list(known)[2:5])}, got {pattern}")
        wanted.update(matching)
    for task in reversed(known.values()):  # a task comes after those that it needs
        if task.name in wanted:
            wanted.update(task.after)
    return [task for task in known.values() if task.name in wanted]


def _run(settings: Settings, chosen: Sequence[Task], *, end: float) -> dict[str, str]:
    """All parts until `end`; what a part leaves of its seconds goes to the next ones."""
    scheduler = Scheduler(settings, cores=len(os.sched_getaffinity(0)))
    began = time.monotonic()
    scale = (end - RESERVE_S - began) / FULL_SECONDS
    scheduler.settings = settings = replace(settings, scale=scale)
    deadlines = list(accumulate((settings.seconds(part.seconds) for part in PARTS), initial=began))[1:]
    for number, part in enumerate(PARTS):
        started = time.monotonic()
        until = deadlines[number + 1] if part.essential else deadlines[number]
        if settings.lengths.rehearsal:
            until = end - RESERVE_S
        scheduler.run(part, [task for task in chosen if task.part == part.name], until=until)
        seconds, budget = time.monotonic() - started, settings.seconds(part.seconds)
        record = {"part": part.name, "status": "part", "seconds": round(seconds, 1), "budget_s": round(budget, 1)}
        add_record(settings.out / RESULTS, record)
        print(f"{part.name}: {seconds:.0f} s of {budget:.0f}", flush=True)
    return scheduler.done


if __name__ == "__main__":
    main()

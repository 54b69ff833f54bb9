"""When a part's tasks should be done, and the page's tables of it."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from benchmarks.gpu.estimates import LAUNCH_S, START_S, TFLOP_S
from benchmarks.gpu.parts import FULL_SECONDS, PARTS, Part, Task, tasks

EXPLANATION = f"""\
Estimates, made before the first run: a task takes {START_S:g} s to start, and what its steps take:
{LAUNCH_S:g} s for a step's kernels and three times the forward pass's operations at {TFLOP_S:g} TFLOP/s, a fiftieth
of what an H100 can do in float16; on the CPU what was measured on one core. A task that should take longer than
what is left of its part is skipped, which is recorded, and the next one gets its turn; the most valuable ones come
first. Trainings need half of their time: they do fewer steps. What takes twice its time and 20 s is killed. What a
part does not need goes to the next one. Trainings that are scored stop at a share of their part. All parts have
{FULL_SECONDS:g} s together: of nine minutes, {540 - FULL_SECONDS:g} s are left for the imports and for what is
killed late.
"""


def part_tasks(part: Part) -> list[Task]:
    """The tasks of a part, in order."""
    return [task for task in tasks() if task.part == part.name]


def seconds_of(task: Task, part: Part) -> float:
    """What a task should take; a training that is scored goes on until its share of the part is over."""
    if "until" not in task.arguments:
        return task.seconds
    waits = max((seconds_of(other, part) for other in part_tasks(part) if other.name in task.after), default=0.0)
    return task.arguments["until"] * part.seconds - waits


def done_after(part: Part, chosen: Sequence[Task]) -> float:
    """Seconds after which all tasks of a part are done, started in order as soon as there is room for one."""
    ends: dict[str, float] = {}
    room = [0.0] * part.parallel
    for task in chosen:
        begin = max(heapq.heappop(room), *(ends.get(name, 0.0) for name in task.after), 0.0)
        ends[task.name] = begin + seconds_of(task, part)
        heapq.heappush(room, ends[task.name])
    return max(ends.values())


def part_rows() -> list[dict[str, str]]:
    """A row for each part: budget and estimate."""
    rows = []
    for part in PARTS:
        chosen = part_tasks(part)
        rows.append(
            {
                "part": part.name,
                "tasks": str(len(chosen)),
                "at the same time": str(part.parallel),
                "their s together": f"{sum(seconds_of(task, part) for task in chosen):.0f}",
                "done after, s": f"{done_after(part, chosen):.0f}",
                "budget, s": f"{part.seconds:g}",
            }
        )
    return rows


def kind_rows() -> list[dict[str, str]]:
    """A row for each kind of tasks, in order."""
    rows = []
    for part in PARTS:
        chosen = part_tasks(part)
        for kind in dict.fromkeys(_kind(task) for task in chosen):
            own = [task for task in chosen if _kind(task) == kind]
            each = [seconds_of(task, part) for task in own]
            span = f"{min(each):.0f}" if round(min(each)) == round(max(each)) else f"{min(each):.0f} to {max(each):.0f}"
            rows.append({"part": part.name, "kind of task": kind, "number": str(len(own)), "s each": span})
    return rows


def _kind(task: Task) -> str:
    return task.name.split("/")[0] + (", compiled" if task.gpu_only else "")

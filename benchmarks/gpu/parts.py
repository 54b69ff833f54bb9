"""What is run, in order, and how many seconds each part and each task may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.data import DEFAULT, PAPER, SMALL

BASE = ("nnUNetTrainer", "ContinuedBaselineTrainer")
OURS = ("SMORETrainer", "SelfSRTrainer", "REHRSegTrainer")
# The other variants differ in a number alone, or take their data from SMORE.
VARIANTS = ("pseudoDataOnly", "withUncertainty", "withDistillation", "MIMIC", "IFVD", "correlationOnly", "spatialOnly")


@dataclass(frozen=True)
class Part:
    """Tasks that share a budget.

    Attributes:
        name: of the part.
        seconds: budget of a run of `FULL_SECONDS`.
        parallel: tasks at the same time on a GPU machine of 16 cores; where times are measured it is one.
        essential: all others need it, so it may take the next part's seconds too.
    """

    name: str
    seconds: float
    parallel: int
    essential: bool = False


# In this order. A run of 9 minutes has 20 s more, for the imports and for what is killed late.
PARTS = (
    Part("environment", 25, 1, essential=True),
    Part("correctness", 150, 7),
    Part("cost", 180, 1),
    Part("quality", 165, 5),
)
FULL_SECONDS = sum(part.seconds for part in PARTS)


@dataclass(frozen=True)
class Task:
    """One process.

    Attributes:
        name: unique.
        part: name of its part.
        function: `module:function`; it takes the context and the arguments and yields results.
        arguments: the function's keyword arguments.
        seconds: after which it is killed, in a run of `FULL_SECONDS`; longer than it should take.
        after: tasks that must have gone well before.
        variables: environment variables.
    """

    name: str
    part: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 60
    after: tuple[str, ...] = ("workspace",)
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Lengths:
    """How long single measurements are.

    Attributes:
        steps: of a comparison with the CPU.
        long_steps: of each phase of the trainings in which no loss may be nan.
        timed_steps: of a timing, after as many as `warm_up`.
        warm_up: steps.
        loader_seconds: of a loader's timing.
        workers: of the loaders.
        epoch_steps: of an epoch of the trainings that are scored.
        most_epochs: of these trainings.
    """

    steps: int = 20
    long_steps: int = 200
    timed_steps: int = 20
    warm_up: int = 5
    loader_seconds: float = 2.0
    workers: tuple[int, ...] = (4, 8, 16)
    epoch_steps: int = 250
    most_epochs: int = 1000


QUICK = Lengths(4, 6, 2, 1, 0.3, (1,), 4, 3)


def tasks() -> list[Task]:
    """All tasks, in the order in which they start."""
    return [*_environment(), *_correctness(), *_cost(), *_quality()]


def _environment() -> list[Task]:
    return [
        Task("environment", "environment", "benchmarks.gpu.environment:describe", seconds=25, after=()),
        Task("workspace", "environment", "benchmarks.gpu.environment:make_workspace", seconds=120, after=()),
    ]


def _correctness() -> list[Task]:
    def task(kind: str, function: str, seconds: float, *, compiled: bool = False, **arguments: Any) -> Task:
        name = "/".join([kind, *(value for value in arguments.values() if isinstance(value, str))])
        variables = {"nnUNet_compile": "true" if compiled else "false"}
        suffix = "/compiled" if compiled else ""
        return Task(f"{name}{suffix}", "correctness", function, arguments, seconds, variables=variables)

    compiled = [
        task("steps", "benchmarks.gpu.correctness:steps", 120, compiled=True, trainer=name)
        for name in (*BASE[:1], *OURS)
    ]
    eager = [task("steps", "benchmarks.gpu.correctness:steps", 60, trainer=name) for name in (*BASE, *OURS)]
    finite = [
        task("finite", "benchmarks.gpu.correctness:finite", 90, trainer=name, plans=plans)
        for name, plans in (("SelfSRTrainer", DEFAULT), ("REHRSegTrainer", SMALL), ("REHRSegTrainer", DEFAULT))
    ]
    resumed = [task("resume", "benchmarks.gpu.correctness:resume", 60, trainer=name) for name in OURS[1:]]
    distributed = [task("ddp", "benchmarks.gpu.correctness:distributed", 60, trainer=name) for name in OURS[1:]]
    memory = [
        Task(f"memory/{name}", "correctness", f"benchmarks.gpu.memory_faults:{name}")
        for name in ("super_resolution", "prediction")
    ]
    variants = [Task("variants", "correctness", "benchmarks.gpu.correctness:variants", {"names": VARIANTS}, 120)]
    return [*compiled[-2:], *finite, *memory, *distributed, *resumed, *eager, *compiled[:-2], *variants]


def _cost() -> list[Task]:
    def step(name: str, plans: str, data: str, *, compiled: bool = False) -> Task:
        suffix = "/compiled" if compiled else ""
        variables = {"nnUNet_compile": "true" if compiled else "false"}
        arguments = {"trainer": name, "plans": plans, "data": data}
        seconds = 90 if compiled else 25
        return Task(
            f"step/{name}/{plans}/{data}{suffix}",
            "cost",
            "benchmarks.gpu.cost:step",
            arguments,
            seconds,
            variables=variables,
        )

    both = ("thick", "large")
    steps = [step(name, DEFAULT, data) for name in ("nnUNetTrainer", "REHRSegTrainer") for data in both]
    steps += [step(name, plans, "thick") for name in OURS[:2] for plans in (DEFAULT, PAPER)]
    steps += [step("REHRSegTrainer", PAPER, data) for data in both]
    steps += [step("ContinuedBaselineTrainer", DEFAULT, "thick")]
    steps += [step(name, DEFAULT, "large") for name in OURS[:2]]
    whole = [
        Task(
            f"case/{data}",
            "cost",
            "benchmarks.gpu.cost:whole_cases",
            {"data": data},
            40,
            variables={"nnUNet_compile": "false"},
        )
        for data in both
    ]
    loaders = [
        Task(f"loader/{name}/{data}", "cost", "benchmarks.gpu.cost:loader", {"trainer": name, "data": data}, 30)
        for name, data in [(name, "thick") for name in (BASE[0], *OURS[::-1])]
        + [(BASE[0], "large"), (OURS[2], "large")]
    ]
    compiled = [step(name, DEFAULT, "thick", compiled=True) for name in ("REHRSegTrainer", "nnUNetTrainer")]
    return [*steps[:4], *whole, *loaders[:3], *steps[4:], *loaders[3:], *compiled]


def _quality() -> list[Task]:
    first, second = 0.5, 0.93  # shares of the part's seconds at whose end the trainings of each round must be scored

    def train(name: str, trainer: str, data: str, share: float, after: tuple[str, ...] = ()) -> Task:
        arguments = {"name": name, "trainer": trainer, "data": data, "until": share}
        variables = {"nnUNet_n_proc_DA": "4", "nnUNet_compile": "false"}
        before = ("workspace", *(f"train/{other}" for other in after))
        return Task(f"train/{name}", "quality", "benchmarks.gpu.quality:train", arguments, 600, before, variables)

    return [
        train("baseline", "nnUNetTrainer", "thick", first),
        train("interpolated", "nnUNetTrainer", "interpolated", second),
        train("stage_1", "SelfSRTrainer", "thick", second),
        train("continued", "ContinuedBaselineTrainer", "thick", second, ("baseline",)),
        train("rehrseg", "REHRSegTrainer", "thick", second, ("baseline",)),
    ]

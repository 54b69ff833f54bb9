"""What is run, in order, and how many seconds each part and each task may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.data import DEFAULT, PAPER, SMALL
from benchmarks.gpu.estimates import (
    COMPARED_STEPS,
    COMPILE_S,
    LONG_STEPS,
    RECOMPILE_S,
    SCORED_S,
    START_S,
    TIMED_STEPS,
    WARM_UP_STEPS,
    WORKERS,
    compared_seconds,
    loader_seconds,
    step_seconds,
    timed_seconds,
)

BASE = ("nnUNetTrainer", "ContinuedBaselineTrainer")
OURS = ("SMORETrainer", "SelfSRTrainer", "REHRSegTrainer")
GUIDED = ("GuidanceTeacherTrainer", "KnowledgeKeeperTrainer", "GuidedTrainer_randomKeeper")
BOTH_METHODS = "GuidedREHRSegTrainer_randomKeeper"  # compared, not timed: its parts are
# Each device draws noise of its own, so steps are compared without the teacher's: by the variant that has none.
NOISELESS_TEACHER = "GuidanceTeacherTrainer_noNoise"
# The other variants differ in a number alone, or take their data from SMORE.
VARIANTS = ("pseudoDataOnly", "withUncertainty", "withDistillation", "MIMIC", "IFVD", "correlationOnly", "spatialOnly")
COMPILED_ON_GPU = "nnU-Net compiles networks on CUDA only"


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
    Part("environment", 18, 1, essential=True),
    Part("correctness", 118, 8),
    Part("cost", 275, 1),
    Part("quality", 109, 5),
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
        seconds: that it should take on an H100; after twice as much and 20 s it is killed.
        ends_itself: it does less in less time, or nothing goes on without it: half the time will do, and only the
            part's end kills it.
        after: tasks that must have gone well before.
        variables: environment variables.
        gpu_only: why it needs a GPU; empty: it does not.
    """

    name: str
    part: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 10
    ends_itself: bool = False
    after: tuple[str, ...] = ("workspace",)
    variables: Mapping[str, str] = field(default_factory=dict)
    gpu_only: str = ""

    @property
    def least_seconds(self) -> float:
        """With less time left it is not started."""
        return self.seconds / 2 if self.ends_itself else self.seconds


@dataclass(frozen=True)
class Lengths:
    """How long single measurements are.

    Attributes:
        rehearsal: only whether everything runs counts, so no part's budget leaves a task out and times are measured
            of several tasks at the same time.
        steps: of a comparison with the CPU.
        long_steps: of each phase of the trainings in which no loss may be nan.
        timed_steps: of a timing, after as many as `warm_up`.
        warm_up: steps.
        loader_seconds: of a loader's timing.
        workers: of the loaders.
        training_workers: of each training that is scored.
        epoch_steps: of an epoch of the trainings that are scored.
        most_epochs: of these trainings.
        scored_cases: of each set, at most.
    """

    rehearsal: bool = False
    steps: int = COMPARED_STEPS
    long_steps: int = LONG_STEPS
    timed_steps: int = TIMED_STEPS
    warm_up: int = WARM_UP_STEPS
    loader_seconds: float = 1.5
    workers: tuple[int, ...] = WORKERS
    training_workers: int = 4
    epoch_steps: int = 250
    most_epochs: int = 1000
    scored_cases: int = 1000


QUICK = Lengths(
    rehearsal=True,
    steps=2,
    long_steps=2,
    timed_steps=1,
    warm_up=1,
    loader_seconds=0.1,
    workers=(1,),
    training_workers=1,
    epoch_steps=2,
    most_epochs=2,
    scored_cases=1,
)


def tasks() -> list[Task]:
    """All tasks, in the order in which they start: the most valuable of each part first."""
    return [*_environment(), *_correctness(), *_cost(), *_quality()]


def _environment() -> list[Task]:
    return [
        Task("environment", "environment", "benchmarks.gpu.environment:describe", seconds=START_S, after=()),
        Task(
            "workspace", "environment", "benchmarks.gpu.environment:make_workspace", {}, 12, ends_itself=True, after=()
        ),
    ]


def _compiling(compiled: bool) -> dict[str, Any]:
    """Arguments of a task whose network is compiled, or is not."""
    variables = {"nnUNet_compile": "true" if compiled else "false"}
    return {"variables": variables, "gpu_only": COMPILED_ON_GPU if compiled else ""}


def _correctness() -> list[Task]:
    def task(kind: str, function: str, seconds: float, *, compiled: bool = False, **arguments: Any) -> Task:
        name = "/".join([kind, *arguments.values(), *(["compiled"] if compiled else [])])
        seconds += START_S + (COMPILE_S if compiled else 0)
        path, adapts = f"benchmarks.gpu.{function}", kind in ("steps", "finite")
        return Task(name, "correctness", path, arguments, seconds, adapts, **_compiling(compiled))

    def steps(name: str, *, compiled: bool = False) -> Task:
        return task("steps", "correctness:steps", compared_seconds(name), compiled=compiled, trainer=name)

    def finite(name: str, plans: str, *, compiled: bool = False) -> Task:
        seconds = 2 * LONG_STEPS * step_seconds(name)
        return task("finite", "correctness:finite", seconds, compiled=compiled, trainer=name, plans=plans)

    return [
        finite("SelfSRTrainer", DEFAULT),
        *(steps(name, compiled=True) for name in OURS[:0:-1]),
        # these two leave their kernels in the cache of the compiled timings
        *(finite(name, DEFAULT, compiled=True) for name in ("REHRSegTrainer", "nnUNetTrainer")),
        *(steps(name, compiled=True) for name in GUIDED[1:]),
        *(finite(name, DEFAULT) for name in GUIDED[1:]),
        finite("REHRSegTrainer", SMALL),
        task("memory/super_resolution", "memory_faults:super_resolution", 10),
        task("memory/prediction", "memory_faults:prediction", 10),
        *(task("ddp", "correctness:distributed", 3, trainer=name) for name in (*OURS[1:], GUIDED[1])),
        *(task("resume", "correctness:resume", 10, trainer=name) for name in (*OURS[1:], *GUIDED[1:])),
        *(steps(name, compiled=True) for name in (BASE[0], OURS[0])),
        *(steps(name) for name in (*GUIDED[1:], BOTH_METHODS, NOISELESS_TEACHER)),
        *(steps(name) for name in (*OURS[::-1], *BASE)),
        *(steps(f"REHRSegTrainer_{variant}") for variant in VARIANTS),
    ]


def _cost() -> list[Task]:
    def step(name: str, *runs: tuple[str, str], compiled: bool = False) -> Task:
        """Timings of a trainer, of (plans, data) each, in one process."""
        seconds = START_S + sum(timed_seconds(name, data) for _, data in runs) + (RECOMPILE_S if compiled else 0)
        suffix = "/compiled" if compiled else ""
        arguments = {"trainer": name, "runs": runs}
        function = "benchmarks.gpu.cost:steps"
        return Task(f"step/{name}{suffix}", "cost", function, arguments, seconds, **_compiling(compiled))

    def case(data: str, seconds: float) -> Task:
        function = "benchmarks.gpu.cost:whole_cases"
        return Task(f"case/{data}", "cost", function, {"data": data}, START_S + seconds, **_compiling(False))

    def loader(name: str, *data: str) -> Task:
        seconds = START_S + loader_seconds(name) * len(data)
        return Task(f"loader/{name}", "cost", "benchmarks.gpu.cost:loader", {"trainer": name, "data": data}, seconds)

    thick, large, paper = (DEFAULT, "thick"), (DEFAULT, "large"), ((PAPER, "thick"), (PAPER, "large"))
    pairs, scans = (DEFAULT, "pairs"), (DEFAULT, "scans")
    return [
        step("nnUNetTrainer", thick, large, scans),
        step("REHRSegTrainer", thick, large, *paper),
        case("thick", 8),
        step("SelfSRTrainer", thick, paper[0]),
        *(step(name, scans if name == GUIDED[2] else pairs) for name in GUIDED[::-1]),
        case("large", 30),
        loader("REHRSegTrainer", "thick", "large"),
        loader("nnUNetTrainer", "thick", "large"),
        step("SMORETrainer", thick, paper[0]),
        *(step(name, thick, compiled=True) for name in ("REHRSegTrainer", "nnUNetTrainer")),
        loader("SelfSRTrainer", "thick"),
        loader("SMORETrainer", "thick"),
        step("ContinuedBaselineTrainer", thick),
    ]


def _quality() -> list[Task]:
    first, second = 0.5, 0.93  # shares of the part's seconds at whose end the trainings of each round must be scored

    def train(name: str, trainer: str, data: str, share: float, after: tuple[str, ...] = ()) -> Task:
        arguments = {"name": name, "trainer": trainer, "data": data, "until": share}
        before = ("workspace", *(f"train/{other}" for other in after))
        return Task(
            f"train/{name}",
            "quality",
            "benchmarks.gpu.quality:train",
            arguments,
            START_S + SCORED_S,
            ends_itself=True,
            after=before,
            variables={"nnUNet_compile": "false"},
        )

    return [
        train("baseline", "nnUNetTrainer", "thick", first),
        train("interpolated", "nnUNetTrainer", "interpolated", second),
        train("stage_1", "SelfSRTrainer", "thick", second),
        train("continued", "ContinuedBaselineTrainer", "thick", second, ("baseline",)),
        train("rehrseg", "REHRSegTrainer", "thick", second, ("baseline",)),
    ]

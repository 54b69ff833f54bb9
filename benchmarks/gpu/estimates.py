"""How many seconds the pieces of a run should take on an H100 with 16 cores: nothing of it is measured there.

A step has three times the forward pass's floating-point operations, which PyTorch counts, at 20 TFLOP/s: a fiftieth of
what the card can do in float16. What the CPU does, steps for comparison and batches of the loaders, is measured on one
core and rounded up. The rest, from starting a task to compiling a network, is a guess.
"""

from __future__ import annotations

COMPARED_STEPS, LONG_STEPS = 20, 100
TIMED_STEPS, WARM_UP_STEPS = 10, 2
WORKERS = (4, 8, 16)

START_S = 4.0  # to fork, to start CUDA, to build a trainer, to load its first batch
TRIALS_S = 3.0  # in which cuDNN finds its fastest kernels
COMPILE_S = 40.0
RECOMPILE_S = 20.0  # with the kernels in the cache
SCORED_S = 25.0  # to predict and score all validation and test cases

LAUNCH_S = 0.03  # of a step's kernels, however small they are
TFLOP_S = 20.0
# TFLOP of a step: default plans of Hippocampus, and of 32 x 128 x 128. Stage 1's and SMORE's windows are the same.
STEP_TFLOP = {
    "nnUNetTrainer": (0.06, 1.8),
    "ContinuedBaselineTrainer": (0.06, 1.8),
    "SMORETrainer": (0.95, 0.95),
    "SelfSRTrainer": (7.3, 7.3),
    "REHRSegTrainer": (0.7, 12.5),  # most of it the teacher's forward pass
    "GuidanceTeacherTrainer": (0.02, 0.02),  # these have data of their own, small patches and batches of two
    "KnowledgeKeeperTrainer": (0.1, 0.1),
    "GuidedTrainer": (0.4, 0.4),
}
# s of CPU: a step of the small plans, and a batch of the default plans
REFERENCE_STEP_S = {
    "nnUNetTrainer": 0.25,
    "ContinuedBaselineTrainer": 0.25,
    "SMORETrainer": 0.1,
    "SelfSRTrainer": 0.4,
    "REHRSegTrainer": 0.5,
    "GuidanceTeacherTrainer": 0.2,
    "KnowledgeKeeperTrainer": 0.6,
    "GuidedTrainer": 0.5,
    "GuidedREHRSegTrainer": 0.8,
}
BATCH_S = {"nnUNetTrainer": 0.05, "REHRSegTrainer": 0.1, "SelfSRTrainer": 0.4, "SMORETrainer": 0.1}


def step_seconds(trainer: str, data: str = "thick") -> float:
    """A training step on the GPU."""
    return LAUNCH_S + STEP_TFLOP[trainer.split("_")[0]][data == "large"] / TFLOP_S


def compared_seconds(trainer: str) -> float:
    """All steps of a comparison; a variant of stage 2 has its cost."""
    return COMPARED_STEPS * (REFERENCE_STEP_S[trainer.split("_")[0]] + LAUNCH_S)


def timed_seconds(trainer: str, data: str) -> float:
    """All steps of a timing, with the search for kernels."""
    return TRIALS_S + (WARM_UP_STEPS + TIMED_STEPS) * step_seconds(trainer, data)


def loader_seconds(trainer: str) -> float:
    """A loader's timings: its workers start and fill their queue before 1.5 s count."""
    return sum(1.5 + 1.0 + 8 * BATCH_S[trainer] / workers for workers in WORKERS)

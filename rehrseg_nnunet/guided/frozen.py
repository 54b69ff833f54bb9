"""A finished teacher as the keeper's training takes it: found, checked, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehrseg_nnunet.guided.networks import build_teacher, planned_shape
from rehrseg_nnunet.guided.teacher import Teacher
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen

TEACHER_VARIABLE = "REHRSEG_TEACHER"
TEACHER = Companion("GuidanceTeacherTrainer", "the teacher of this fold", variable=TEACHER_VARIABLE)


@dataclass(frozen=True)
class FrozenTeacher:
    """A finished teacher.

    Attributes:
        checkpoint: its file.
        network: in evaluation mode, without gradients, on the CPU.
        sha256: hash of the weights that teach: encoder, decoder and `image_range`.
    """

    checkpoint: Path
    network: Teacher
    sha256: str


def open_teacher(own: FoldRun, configuration: Mapping[str, Any], *, checkpoint: str) -> FrozenTeacher:
    """Find the teacher of a keeper's training.

    Args:
        own: the keeper's training.
        configuration: of its plans, with settings and channels.
        checkpoint: "final" or "best".

    Raises:
        FileNotFoundError: no teacher is finished; the message ends with the command to run.
        ValueError: it does not fit or is damaged; likewise.
    """
    run = TEACHER.require(own)
    file = run.best_checkpoint if checkpoint == "best" and run.best_checkpoint.is_file() else run.final_checkpoint
    shape = planned_shape(configuration)
    teacher = build_teacher(configuration)
    teacher.reconstruction = None  # of its training alone
    load_frozen(
        teacher,
        file,
        sizes=f"widths {list(shape.widths)}, {shape.privileged_channels} privileged channels",
        remedy=f"train the teacher again: {run.command}",
        without=("reconstruction.",),
    )
    return FrozenTeacher(file, teacher, hash_weights(teacher.state_dict()))

"""A finished teacher as the keeper's training takes it: found, checked, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehrseg_nnunet.guided.networks import build_teacher, planned_shape
from rehrseg_nnunet.guided.teacher import Teacher
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import BEST_CHECKPOINT, FINAL_CHECKPOINT, FOLD_FOLDER, FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen, read_weights

TEACHER_VARIABLE = "REHRSEG_TEACHER"
TEACHER = Companion("GuidanceTeacherTrainer", "the teacher of this fold", variable=TEACHER_VARIABLE)
TRAINING_ALONE = ("reconstruction.",)  # weights of a teacher that do not teach


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
    file = run.chosen_checkpoint(checkpoint)
    shape = planned_shape(configuration)
    teacher = build_teacher(configuration)
    teacher.reconstruction = None  # of its training alone
    load_frozen(
        teacher,
        file,
        sizes=f"widths {list(shape.widths)}, {shape.privileged_channels} privileged channels",
        remedy=f"train the teacher again: {run.command}",
        without=TRAINING_ALONE,
    )
    return FrozenTeacher(file, teacher, hash_weights(teacher.state_dict()))


def teacher_of(keeper: FoldRun, sha256: str) -> FoldRun | None:
    """The training whose teacher has taught a keeper, None if it is gone.

    Args:
        keeper: the keeper's training; teachers of all datasets beside it are looked at, those of its own fold first.
        sha256: of the weights that taught, see `FrozenTeacher`.
    """
    folders = {file.parent for file in keeper.results.glob(f"*/{TEACHER.trainer}*__*/fold_*/checkpoint_*.pth")}
    runs = [FoldRun.parse(folder) for folder in sorted(folders) if FOLD_FOLDER.fullmatch(folder.name)]
    runs.sort(key=lambda run: (run.dataset != keeper.dataset, run.fold != keeper.fold))
    return next((run for run in runs if _has_taught(run, sha256)), None)


def _has_taught(run: FoldRun, sha256: str) -> bool:
    files = [run.folder / name for name in (FINAL_CHECKPOINT, BEST_CHECKPOINT)]
    return any(file.is_file() and _hash_of_teacher(file) == sha256 for file in files)


def _hash_of_teacher(file: Path) -> str | None:
    """None for a damaged file, which may be anybody's."""
    try:
        weights = read_weights(file, remedy="")
    except ValueError:
        return None
    return hash_weights({name: value for name, value in weights.items() if not name.startswith(TRAINING_ALONE)})

"""A finished teacher as the keeper's training takes it: found, checked, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rehrseg_nnunet.config.guidance import load_config
from rehrseg_nnunet.guided.networks import build_teacher, planned_shape, stored_channels
from rehrseg_nnunet.guided.teacher import Teacher
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import BEST_CHECKPOINT, FINAL_CHECKPOINT, FoldRun
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
        FileNotFoundError: no teacher is finished, or it has no such checkpoint; the message ends with the command to
            run.
        ValueError: it does not fit or is damaged; likewise.
    """
    run = TEACHER.require(own)
    if not run.trainer.startswith(TEACHER.trainer):
        raise ValueError(f"{TEACHER_VARIABLE} must name a fold folder of {TEACHER.trainer}, got {run.folder}")
    file = run.chosen_checkpoint(checkpoint)
    shape, remedy = planned_shape(configuration), f"train the teacher again: {run.command}"
    teacher = build_teacher(configuration)
    teacher.reconstruction = None  # of its training alone
    load_frozen(
        teacher,
        file,
        sizes=f"widths {list(shape.widths)}, {shape.privileged_channels} privileged channels",
        remedy=remedy,
        without=TRAINING_ALONE,
    )
    _check_plans(run, configuration, remedy=remedy)
    return FrozenTeacher(file, teacher, hash_weights(teacher.state_dict()))


def _check_plans(run: FoldRun, configuration: Mapping[str, Any], *, remedy: str) -> None:
    """Weights alone do not say all: they fit networks of other strides too, and images in other units."""
    trained = run.kept_plans(remedy=remedy).get_configuration(run.configuration).configuration
    its, wanted = _seen(trained), _seen(configuration)
    for name, value in wanted.items():
        if its[name] != value:
            raise ValueError(f"{run.plans_file} must have the keeper's {name} {value}, got {its[name]}; {remedy}")


def _seen(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What the features of the better scan depend on beside the weights."""
    shape, channels = planned_shape(configuration), stored_channels(configuration).privileged
    per_channel = {
        key: [configuration[key][channel] for channel in channels]
        for key in ("normalization_schemes", "use_mask_for_norm")
    }
    return {
        "strides": [list(level) for level in shape.strides],
        "guidance.level_restoration": load_config(configuration).level_restoration,
        **per_channel,
    }


def teacher_of(keeper: FoldRun, sha256: str) -> FoldRun | None:
    """The training whose teacher has taught a keeper, None if it is gone.

    Args:
        keeper: the keeper's training; teachers of all datasets beside it are looked at, those of its own fold first.
        sha256: of the weights that taught, see `FrozenTeacher`.
    """
    folders = {file.parent for file in keeper.results.glob(f"*/{TEACHER.trainer}*__*/fold_*/checkpoint_*.pth")}
    runs = []
    for folder in sorted(folders):
        with suppress(ValueError):  # a backup of another name is no training's
            runs.append(FoldRun.parse(folder))
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

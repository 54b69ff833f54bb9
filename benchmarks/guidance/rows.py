"""What is compared: one `Row` per training, of teacher and keeper on pairs, and of segmentations on other cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

KEEPER = "keeper"  # in `Row.keeper`: the row that the benchmark names
Data = Literal["pairs", "source", "privileged", "both", "synthesised", "everyone"]

# Plans beside the preset's: what each has in its `guidance` block instead.
PLANS: dict[str, Mapping[str, Any]] = {
    "": {},
    "kernel7": {"keeper": {"kernel": 7}},
    "direct": {"keeper": {"residual": False}},
    "width16": {"base_features": 16},
    "distill1": {"keeper": {"distillation_weight": 1.0}},
    "distill30": {"keeper": {"distillation_weight": 30.0}},
    "polynomial": {"schedule": "polynomial"},
    "scratch": {"from_baseline": False, "fusion": {"start": "identity"}},
    "paperFusion": {"from_baseline": False, "fusion": {"hidden": 1.0, "start": "paper"}},
    "onecycle": {"schedule": "one_cycle"},
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One training, by nnU-Net's own command.

    Attributes:
        key: how it is named in options.
        title: as printed; of teachers and keepers without their settings.
        trainer: class name without a length.
        data: dataset that it is trained on, see `benchmark.SUFFIXES`.
        epochs: which of the benchmark's numbers; "both": the baseline's and the continued ones'.
        plans: key of `PLANS`.
        teacher: key of the row that teaches it, or whose features its images are compared in.
        keeper: `KEEPER` if one guides it or synthesises its second channel.
        start: key of the row of nnU-Net that it goes on from, if any.
        seeded: whether it is trained for every seed; else for the first alone, and all seeds build on that.
    """

    key: str
    title: str
    trainer: str
    data: Data
    epochs: Literal["teacher", "keeper", "baseline", "continued", "both"]
    plans: str = ""
    teacher: str = ""
    keeper: str = ""
    start: str = ""
    seeded: bool = False

    @property
    def synthesises(self) -> bool:
        """Whether it gives images, not segmentations."""
        return self.data == "pairs"

    @property
    def rival(self) -> str:
        """Key of nnU-Net on the scan alone, for as many epochs and from the same start."""
        return "in_one_go" if self.epochs == "both" else "continued"

    @property
    def control(self) -> str:
        """Key of the same training with a random keeper, if it has a taught one."""
        return f"{self.key}_randomKeeper" if f"{self.key}_randomKeeper" in ROWS else ""

    @property
    def before(self) -> list[str]:
        """Keys of the rows that must be trained before, but for the keeper."""
        return [key for key in (self.start, self.teacher) if key]


def _teacher(plans: str = "") -> Row:
    key = "_".join(filter(None, ["teacher", plans]))
    return Row(key=key, title="teacher", trainer="GuidanceTeacherTrainer", data="pairs", epochs="teacher", plans=plans)


def _keeper(plans: str = "", variant: str = "", *, teacher: str = "teacher") -> Row:
    key = "_".join(filter(None, ["keeper", plans, variant]))
    trainer = "_".join(filter(None, ["KnowledgeKeeperTrainer", variant]))
    return Row(key=key, title="keeper", trainer=trainer, data="pairs", epochs="keeper", plans=plans, teacher=teacher)


def _guided(key: str, title: str, variant: str = "", *, data: Data = "source", **how: Any) -> Row:
    trainer = "_".join(filter(None, ["GuidedTrainer", variant]))
    from_baseline: dict[str, Any] = {"epochs": "continued", "start": "baseline"}
    return Row(key=key, title=title, trainer=trainer, data=data, keeper=KEEPER, seeded=True, **(from_baseline | how))


def _from_scratch(key: str, title: str, variant: str = "", *, data: Data = "source", plans: str = "scratch") -> Row:
    """Guided from the first step, for as many epochs as baseline and continued together."""
    return _guided(key, title, variant, data=data, plans=plans, epochs="both", start="")


def _plain(key: str, title: str, data: Data, epochs: Literal["baseline", "both"], **how: Any) -> Row:
    trainer = "nnUNetTrainer" if epochs == "baseline" else "SafeTrainer"  # nnU-Net has trainers of some lengths only
    return Row(key=key, title=title, trainer=trainer, data=data, epochs=epochs, **how)


def _continued(key: str, title: str, data: Data, *, start: str) -> Row:
    trainer = "ContinuedBaselineTrainer"
    return Row(key=key, title=title, trainer=trainer, data=data, epochs="continued", start=start, seeded=True)


ROWS = {
    row.key: row
    for row in (
        _teacher(),
        Row(key="l1_unet", title="plain U-Net, L1", trainer="L1UNetTrainer", data="pairs", epochs="keeper"),
        _keeper(),
        _keeper("", "noAdversary"),
        _keeper("kernel7"),
        _keeper("kernel7", "noAdversary"),
        _keeper("direct"),
        _keeper("direct", "noAdversary"),
        _keeper("distill1"),
        _keeper("distill30"),
        _keeper("polynomial"),
        _keeper("polynomial", "noAdversary"),
        _teacher("onecycle"),
        _keeper("onecycle", teacher="teacher_onecycle"),
        _teacher("width16"),
        _keeper("width16", teacher="teacher_width16"),
        _keeper("width16", "noAdversary", teacher="teacher_width16"),
        _plain("baseline", "nnU-Net on the scan (baseline)", "source", "baseline"),
        _continued("continued", "baseline continued", "source", start="baseline"),
        _guided("guided", "guided"),
        _guided("guided_randomKeeper", "guided by a random keeper", "randomKeeper"),
        _guided("guided_untaughtKeeper", "guided, keeper trained along without pairs", "untaughtKeeper"),
        _plain("in_one_go", "nnU-Net on the scan, in one go", "source", "both", seeded=True),
        _plain("all_labels", "nnU-Net on the scan, the pairs labelled too", "everyone", "both", seeded=True),
        _from_scratch("guided_scratch", "guided from scratch, identity start"),
        _from_scratch(
            "guided_scratch_randomKeeper", "guided from scratch by a random keeper, identity start", "randomKeeper"
        ),
        _from_scratch("guided_scratch_paperFusion", "guided from scratch, fusion as in the paper", plans="paperFusion"),
        _from_scratch(
            "guided_scratch_paperFusion_randomKeeper",
            "guided from scratch by a random keeper, fusion as in the paper",
            "randomKeeper",
            plans="paperFusion",
        ),
        _from_scratch(
            "true_guides_scratch",
            "guided from scratch by guides of the true better scan, identity start",
            "trueGuides",
            data="both",
        ),
        _from_scratch(
            "true_guides_scratch_paperFusion",
            "guided from scratch by guides of the true better scan, fusion as in the paper",
            "trueGuides",
            data="both",
            plans="paperFusion",
        ),
        _plain(
            "synthesised",
            "nnU-Net on the scan and the synthesised one",
            "synthesised",
            "both",
            keeper=KEEPER,
            seeded=True,
        ),
        _guided("true_guides", "guided by guides of the true better scan", "trueGuides", data="both"),
        _plain("better_baseline", "nnU-Net on the better scan, not continued", "privileged", "baseline"),
        _continued("better", "nnU-Net on the better scan, continued", "privileged", start="better_baseline"),
    )
}

KEEPERS = tuple(key for key, row in ROWS.items() if row.trainer.startswith("KnowledgeKeeperTrainer"))
PARTS: dict[str, tuple[str, ...]] = {
    "pairs": tuple(key for key, row in ROWS.items() if row.synthesises),
    "segmentation": tuple(key for key, row in ROWS.items() if not row.synthesises),
}


def in_order(keys: Sequence[str], *, keeper: str) -> list[Row]:
    """The rows and all that they build on, each once, in an order in which they can be trained.

    Args:
        keys: of rows.
        keeper: key of the row that guides.

    Raises:
        ValueError: an unknown key.
    """
    ordered: dict[str, Row] = {}

    def add(key: str) -> None:
        if key not in ROWS:
            raise ValueError(f"--rows must be among {', '.join(ROWS)}, got {key}")
        for other in [*ROWS[key].before, *([keeper] if ROWS[key].keeper else [])]:
            add(other)
        ordered.setdefault(key, ROWS[key])

    for key in keys:
        add(key)
    return list(ordered.values())

"""One training as nnU-Net keeps it: see `FoldRun`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep, time
from typing import Any, Literal

from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.dataset_json import read_plans
from rehrseg_nnunet.nnunet.weights import hash_weights, read_weights

FINAL_CHECKPOINT, BEST_CHECKPOINT = "checkpoint_final.pth", "checkpoint_best.pth"
LENGTH_SUFFIX = re.compile(r"_\d+epochs?$")
FOLD_FOLDER = re.compile(r"fold_(all|\d+)")
LOOKS, PAUSE_S = 5, 0.2  # at plans that do not parse: nnU-Net writes them in place whenever a fold begins
SETTLED_S = 10  # nobody is still writing an older file


@dataclass(frozen=True)
class FoldRun:
    """The training of one fold, `<results>/<dataset>/<trainer>__<plans>__<configuration>/fold_<fold>`.

    Attributes:
        dataset: nnU-Net's dataset name, e.g. Dataset509_Knee.
        trainer: class name.
        plans: plans identifier.
        configuration: configuration of the plans.
        fold: number, or "all".
        results: folder that nnUNet_results names.
    """

    dataset: str
    trainer: str
    plans: str
    configuration: str
    fold: int | Literal["all"]
    results: Path

    @classmethod
    def parse(cls, folder: str | os.PathLike[str]) -> FoldRun:
        """The run whose fold folder this is, whether it exists or not.

        Raises:
            ValueError: the folder's name does not say what it is of.
        """
        path = Path(os.path.abspath(folder))  # without .., which is no name
        fold = FOLD_FOLDER.fullmatch(path.name)
        trainer, _, rest = path.parent.name.partition("__")
        plans, _, configuration = rest.rpartition("__")  # names of plans may have double underscores
        if not (trainer and plans and configuration) or fold is None:
            raise ValueError(
                f"a training's folder must be named <trainer>__<plans>__<configuration>/fold_<fold>, got {path}"
            )
        return cls(
            dataset=path.parents[1].name,
            trainer=trainer,
            plans=plans,
            configuration=configuration,
            fold="all" if fold[1] == "all" else int(fold[1]),
            results=path.parents[2],
        )

    @classmethod
    def of_trainer(cls, trainer: Any) -> FoldRun:
        """The run that an nnU-Net trainer makes."""
        return cls.parse(trainer.output_folder)

    @property
    def folder(self) -> Path:
        """nnU-Net's output folder."""
        model = convert_trainer_plans_config_to_identifier(self.trainer, self.plans, self.configuration)
        return self.results / self.dataset / model / f"fold_{self.fold}"

    @property
    def final_checkpoint(self) -> Path:
        """What a finished training leaves."""
        return self.folder / FINAL_CHECKPOINT

    @property
    def best_checkpoint(self) -> Path:
        """Of the epoch with the best pseudo Dice."""
        return self.folder / BEST_CHECKPOINT

    def chosen_checkpoint(self, which: str) -> Path:
        """The "final" or the "best" checkpoint, as `guidance.checkpoint` says.

        Raises:
            FileNotFoundError: there is no best one.
        """
        if which != "best":
            return self.final_checkpoint
        if not self.best_checkpoint.is_file():
            raise FileNotFoundError(
                f"{self.best_checkpoint} is missing, which guidance.checkpoint best stands for; set it to final, "
                f"or run: {self.command}"
            )
        return self.best_checkpoint

    @property
    def plans_file(self) -> Path:
        """Plans that nnU-Net keeps with the model: those of the fold that was the last to begin."""
        return self.folder.parent / "plans.json"

    def kept_plans(self, *, remedy: str) -> PlansManager:
        """The plans of `plans_file`; waits a moment for a fold that is just writing them.

        Args:
            remedy: end of the message.

        Raises:
            FileNotFoundError: the file is missing.
            ValueError: it stays damaged, or does not have this run's configuration.
        """
        plans = self._plans_at_rest(remedy)
        found = plans["configurations"]
        if self.configuration not in found:
            raise ValueError(
                f"{self.plans_file} must have the configuration {self.configuration} of its folder's name, got "
                f"{', '.join(found)}; name the folder as before if it was renamed, else {remedy}"
            )
        try:
            manager = PlansManager(plans)
            planned = manager.get_configuration(self.configuration)
            [float(number) for number in (*planned.patch_size, *planned.spacing)]
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{self.plans_file} must have a whole configuration {self.configuration}, got a {type(error).__name__} "
                f"({error}); {remedy}"
            ) from None
        return manager

    def _plans_at_rest(self, remedy: str) -> dict[str, Any]:
        for _ in range(LOOKS):
            with suppress(ValueError):
                return read_plans(self.plans_file, remedy=remedy)
            if time() - self.plans_file.stat().st_mtime > SETTLED_S:
                break
            sleep(PAUSE_S)
        try:
            return read_plans(self.plans_file, remedy=remedy)
        except ValueError as error:  # not all of its messages have the remedy
            raise ValueError(f"{str(error).removesuffix(f'; {remedy}')}; {remedy}") from None

    @property
    def is_finished(self) -> bool:
        """Whether the final checkpoint is there."""
        return self.final_checkpoint.is_file()

    @property
    def command(self) -> str:
        """The `nnUNetv2_train` command of this run, without further options."""
        return f"nnUNetv2_train {self.dataset} {self.configuration} {self.fold} -tr {self.trainer} -p {self.plans}"

    def sibling(self, trainer: str) -> FoldRun:
        """The run of another trainer: same dataset, plans, configuration and fold."""
        return replace(self, trainer=trainer)

    def siblings(self, base: str) -> list[FoldRun]:
        """Sibling runs to look for, best first: `base` with the length suffix of this trainer, then `base`."""
        suffix = LENGTH_SUFFIX.search(self.trainer)
        return [self.sibling(name) for name in ([base + suffix.group(), base] if suffix else [base])]

    def finished_sibling(self, base: str) -> FoldRun | None:
        """The first of `siblings` that is finished, None if there is none."""
        return next((run for run in self.siblings(base) if run.is_finished), None)

    def checkpoint_with(self, weights_sha256: str, *, remedy: str) -> Path | None:
        """The final or else the best checkpoint, whichever holds the weights with this hash, None if neither does.

        Args:
            weights_sha256: see `hash_weights`.
            remedy: end of the message for an unreadable checkpoint.

        Raises:
            ValueError: a checkpoint is unreadable.
        """
        saved = (file for file in (self.final_checkpoint, self.best_checkpoint) if file.is_file())
        return next((f for f in saved if hash_weights(read_weights(f, remedy=remedy)) == weights_sha256), None)

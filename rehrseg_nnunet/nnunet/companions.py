"""Finished runs that a training builds on, such as the baseline of its fold: found, or named with their command."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FoldRun


@dataclass(frozen=True)
class Companion:
    """A kind of run of the same dataset, plans, configuration and fold.

    A training of a length (`_10epochs`) takes the companion of the same length if it is finished, else the one without.

    Attributes:
        trainer: name of its trainer, without a length.
        role: what it is to the training, in messages.
        variable: environment variable by which the user may choose another run; None: there is none.
    """

    trainer: str
    role: str
    variable: str | None = None

    def find(self, own: FoldRun) -> FoldRun | None:
        """The finished companion of a training, None if there is none.

        Raises:
            FileNotFoundError: the variable names a run that is not finished.
            ValueError: the variable names a folder that is no run's.
        """
        return self.chosen() or own.finished_sibling(self.trainer)

    def require(self, own: FoldRun) -> FoldRun:
        """The finished companion of a training.

        Raises:
            FileNotFoundError: there is none; the message ends with the command that trains it.
            ValueError: the variable names a folder that is no run's.
        """
        run = self.find(own)
        if run is None:
            missing = own.sibling(self.trainer)
            raise FileNotFoundError(
                f"{missing.final_checkpoint} is missing: {self.role} is not finished; run: {missing.command}"
            )
        return run

    def chosen(self) -> FoldRun | None:
        """The run that the user chose by the environment variable, None if it is not set.

        Raises:
            FileNotFoundError: that run is not finished.
            ValueError: the folder is no run's.
        """
        value = os.environ.get(self.variable) if self.variable else None
        if not value:
            return None
        folder = Path(value).absolute()
        if not (folder / FINAL_CHECKPOINT).is_file():
            raise FileNotFoundError(
                f"{self.variable} must name a finished fold folder of {self.trainer}, but "
                f"{folder / FINAL_CHECKPOINT} is missing"
            )
        try:
            return FoldRun.parse(folder)
        except ValueError as error:
            raise ValueError(f"{self.variable}: {error}") from None

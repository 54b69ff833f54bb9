"""What a page is made of: see `Material`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.report.cases import CaseFiles
from rehrseg_nnunet.report.stage_1 import Stage1
from rehrseg_nnunet.report.training_log import TrainingLog


@dataclass(frozen=True)
class Material:
    """Everything that was found, before cases are read.

    Attributes:
        title: of the page.
        facts: head of the page, name to value.
        dataset_json: of the cases.
        reader: for their files.
        cases: what is judged; may be empty for stage 1 alone.
        model: what the predictions are called.
        baseline: what those they are compared with are called; None without.
        main_summary: of `evaluate_folders` on the main grid; None without reference.
        acquired_summary: the same on the acquired slices.
        trainings: title and log of each.
        stage_1: title and report of each.
        notes: what the reader should know.
    """

    title: str
    facts: Mapping[str, str]
    dataset_json: Mapping[str, Any]
    reader: WholeFiles | None
    cases: Sequence[CaseFiles]
    model: str = "model"
    baseline: str | None = None
    main_summary: Mapping[str, Any] | None = None
    acquired_summary: Mapping[str, Any] | None = None
    trainings: Sequence[tuple[str, TrainingLog]] = ()
    stage_1: Sequence[tuple[str, Stage1]] = ()
    notes: Sequence[str] = ()

    @property
    def ranking_summary(self) -> Mapping[str, Any] | None:
        """Of the grid whose reference is known, the main one first."""
        return self.main_summary or self.acquired_summary

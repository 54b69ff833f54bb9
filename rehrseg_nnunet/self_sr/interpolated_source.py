"""Where stage 1's near-isotropic cases come from: B-splines, or SMORE where this fold has it.

A training chooses its source once, by `choose_source`, and asks it for everything: the cases, whether they can be used,
and what they make of a manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from pydantic import JsonValue

from rehrseg_nnunet.cases.case_checks import check_cases
from rehrseg_nnunet.cases.case_dataset import PreprocessedCases
from rehrseg_nnunet.cases.interpolated import write_interpolated_cases
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.smore.export import SMORE, smore_cases, smore_weights


class InterpolatedSource(Protocol):
    """A source of cases (C, r*D, H, W) with labels (1, r*D, H, W), interpolated from the preprocessed LR cases.

    Attributes:
        title: what logs call it.
    """

    title: ClassVar[str]

    def check(self, identifiers: Sequence[str]) -> None:
        """Refuse cases that cannot be had.

        Raises:
            FileNotFoundError: a case is missing and cannot be made here.
            ValueError: a case cannot be used.
        """
        ...

    def cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The cases, checked, and written first where that is possible."""
        ...

    def fingerprint(self) -> dict[str, JsonValue]:
        """What else the cases depend on than the preprocessed ones, for a manifest."""
        ...


@dataclass(frozen=True)
class SplineCases:
    """Images by cubic B-spline, labels by signed distance; all folds share them.

    Attributes:
        dataset: nnU-Net's, of the preprocessed LR cases.
        planned: the dataset under its plans.
    """

    dataset: PreprocessedCases
    planned: PlannedDataset
    title: ClassVar[str] = "B-spline, labels by signed distance"

    def check(self, identifiers: Sequence[str]) -> None:
        """Refuse cases that nothing can be trained on, see `check_cases`."""
        planned = self.planned
        check_cases(self.dataset, identifiers, label_manager=planned.label_manager, raw_folder=planned.raw_folder)

    def cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The cases, written if missing.

        Of DDP ranks one writes and the others wait for its lock, longer than a barrier's timeout if need be.
        """
        return write_interpolated_cases(self.dataset, identifiers, self.planned)

    def fingerprint(self) -> dict[str, JsonValue]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class SMORECases:
    """What SMORE made of the fold's cases.

    Attributes:
        run: of SMORETrainer, finished.
        dataset: nnU-Net's, of the preprocessed LR cases.
        planned: the dataset under its plans.
    """

    run: FoldRun
    dataset: PreprocessedCases
    planned: PlannedDataset
    title: ClassVar[str] = "SMORE"

    def check(self, identifiers: Sequence[str]) -> None:
        """Refuse cases that are missing, damaged, or of other weights or data."""
        self.cases(identifiers)

    def cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The cases, checked."""
        return smore_cases(self.run, self.dataset, identifiers, factor=self.planned.factor)

    def fingerprint(self) -> dict[str, JsonValue]:
        """The network that made them."""
        return {"smore_weights_sha256": smore_weights(self.run)}


def choose_source(
    own: FoldRun,
    dataset: PreprocessedCases,
    identifiers: Sequence[str],
    planned: PlannedDataset,
    *,
    smore_required: bool,
    log: Callable[[str], None],
) -> InterpolatedSource:
    """SMORE's cases if this fold has them and they can be used, else B-splines.

    Args:
        own: the training that asks.
        dataset: nnU-Net's, of the preprocessed LR cases.
        identifiers: all cases that will be needed.
        planned: the dataset under its plans.
        smore_required: refuse to do without SMORE.
        log: takes lines for the training's log.

    Raises:
        FileNotFoundError: SMORE is required, and missing or without some cases.
        ValueError: SMORE is required, and its cases cannot be used.
    """
    run = SMORE.require(own) if smore_required else SMORE.find(own)
    if run is not None:
        source = SMORECases(run, dataset, planned)
        try:
            source.check(identifiers)
        except (FileNotFoundError, ValueError) as error:
            if smore_required:
                raise
            log(f"WARNING: SMORE's cases are not used: {error}")
        else:
            return source
    return SplineCases(dataset, planned)

"""The true HR volumes that `rehrseg simulate` kept, as cases that the stages can be trained on: for upper bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from pydantic import JsonValue
from scipy import ndimage

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.cases.source_files import derived_properties
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.report import true_hr_case

STORE_NAME = "true_hr"


@dataclass(frozen=True)
class TrueHRCases:
    """The true HR volumes of a fold's cases in the frame of the preprocessed ones, stored in the fold folder.

    Attributes:
        trainer: of the fold.
    """

    trainer: nnUNetTrainer
    title: ClassVar[str] = "true HR volumes"

    def check(self, identifiers: Sequence[str]) -> None:
        """Writing them is the check."""
        self.cases(identifiers)

    def fingerprint(self) -> dict[str, JsonValue]:
        """What they are."""
        return {"source": self.title}

    def cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The cases, written if missing.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        trainer, planned = self.trainer, PlannedDataset.of_trainer(self.trainer)
        store = CaseStore(trainer.output_folder, STORE_NAME)
        manifest = CaseManifest.of_run(FoldRun.of_trainer(trainer), weights_sha256="", made_with=self.fingerprint())
        store.open_or_create(manifest)
        lr = trainer.dataset_class(trainer.preprocessed_dataset_folder, identifiers)
        for identifier in identifiers:
            if not store.is_current(identifier, trainer.preprocessed_dataset_folder):
                _write_case(store, lr, identifier, planned)
        return nnUNetDatasetBlosc2(str(store.folder), identifiers)


def _write_case(store: CaseStore, lr: nnUNetBaseDataset, identifier: str, planned: PlannedDataset) -> None:
    data, labels, _, properties = lr.load_case(identifier)
    image = np.asarray(data[:], dtype=np.float32)
    truth = true_hr_case(planned, identifier, image, properties)
    if truth is None:
        raise ValueError(f"{identifier} must have its true HR volumes in the raw dataset (imagesTrHR, labelsTrHR)")
    outside = np.repeat(np.asarray(labels[:]) == -1, planned.factor, axis=1)
    store.write_case(
        identifier,
        truth[0],
        np.where(outside, np.int16(-1), truth[1]),
        derived_properties(lr.source_folder, identifier, image, properties),
        planned,
    )


# pseudo labels and true ones, both (r*D, H, W), and r; where to do something, (r*D, H, W) bool
Where = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def everywhere(pseudo: np.ndarray, truth: np.ndarray, factor: int) -> np.ndarray:
    """All voxels."""
    return np.ones(pseudo.shape, dtype=bool)


def between_slices(pseudo: np.ndarray, truth: np.ndarray, factor: int) -> np.ndarray:
    """All HR slices but those at an acquired slice's centre: the middle one, for even r the middle two."""
    phase = np.arange(len(pseudo)) % factor
    away = ~np.isin(phase, ((factor - 1) // 2, factor // 2))
    return np.broadcast_to(away[:, None, None], pseudo.shape)


def at_boundaries(pseudo: np.ndarray, truth: np.ndarray, factor: int) -> np.ndarray:
    """Voxels of which a face neighbour has another pseudo label."""
    faces = ndimage.generate_binary_structure(3, 1)
    lowest, highest = (
        change(pseudo, footprint=faces, mode="nearest") for change in (ndimage.minimum_filter, ndimage.maximum_filter)
    )
    return lowest != highest


@dataclass(frozen=True)
class CasesWithTruth:
    """Pseudo-HR cases with something of the truth: voxels of the labels, or where these are wrong as U.

    Attributes:
        pseudo: data (C + 1, r*D, H, W) with U last, labels (1, r*D, H, W).
        truth: the same cases' true volumes, data (C, r*D, H, W), labels (1, r*D, H, W).
        factor: r.
        replaced: where the true labels stand in for the pseudo labels; None: nowhere.
        uncertainty: U is 1 where the pseudo label is wrong and else 0, in place of the cases' own.
    """

    pseudo: Cases
    truth: Cases
    factor: int
    replaced: Where | None = None
    uncertainty: bool = False

    @property
    def identifiers(self) -> list[str]:
        """Names of the cases."""
        return self.pseudo.identifiers

    @cache  # noqa: B019 (as many cases as there are, for as long as the training)
    def load_case(self, identifier: str) -> tuple[np.ndarray, np.ndarray, None, dict[str, Any]]:
        """As the pseudo-HR cases', but read at once."""
        data, labels, _, properties = self.pseudo.load_case(identifier)
        data, labels = (np.array(array[:, :, :, :]) for array in (data, labels))
        true_labels = np.asarray(self.truth.load_case(identifier)[1][:])
        if self.uncertainty:
            data[-1] = labels[0] != true_labels[0]
        if self.replaced is not None:
            there = self.replaced(labels[0], true_labels[0], self.factor) & (labels[0] >= 0)
            labels[0][there] = true_labels[0][there]
        return data, labels, None, properties

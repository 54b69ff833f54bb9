"""What stage 1 and stage 2 can give at best: both trained on the true HR volumes that `rehrseg simulate` kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from pydantic import JsonValue

from rehrseg_nnunet.cases.source_files import derived_properties
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.restoration.report import true_hr_case
from rehrseg_nnunet.segmentation.certain_cases import CertainCases
from rehrseg_nnunet.trainers import rehrseg_self_sr_trainer, rehrseg_trainer  # nnU-Net must find those elsewhere

STORE_NAME = "true_hr"


class SelfSRTrainer_trueHRData(rehrseg_self_sr_trainer.SelfSRTrainer):
    """Stage 1 taught by the truth: pairs along the real slice axis, from true HR volumes of its training cases."""

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Simulate along the real slice axis."""
        super().read_settings(configuration)
        self.settings = self.settings.model_copy(update={"simulated_axes": ("z",)})

    @cached_property
    def interpolated(self) -> TrueHRCases:
        """The true HR cases in place of interpolated ones."""
        return TrueHRCases(self)


class REHRSegTrainer_trueHRData(rehrseg_trainer.REHRSegTrainer):
    """Stage 2 as it is, teacher and all, on the true HR volumes in place of pseudo-HR cases, with U = 0."""

    def open_pseudo_hr(self) -> None:
        """Find stage 1 for its teacher, then write the true HR cases that are missing.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        super().open_pseudo_hr()
        self.pseudo_hr_folder = TrueHRCases(self).cases(self.do_split()[0]).source_folder

    def pseudo_hr_cases(self, identifiers: Sequence[str]) -> CertainCases:
        """The true HR cases, with U = 0."""
        return CertainCases(super().pseudo_hr_cases(identifiers))


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


TRAINERS = {trainer.__name__: trainer for trainer in (SelfSRTrainer_trueHRData, REHRSegTrainer_trueHRData)}


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, TRAINERS, module=__name__)

"""What stage 1 and stage 2 can give at best: both trained on the true HR volumes that `rehrseg simulate` kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rehrseg_nnunet.trainers import rehrseg_self_sr_trainer, rehrseg_trainer  # nnU-Net must find those elsewhere

from rehrseg_nnunet.cases.source_files import SOURCE, source_state
from rehrseg_nnunet.cases.store import PseudoHRManifest, PseudoHRStore
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.restoration.report import true_hr_case
from rehrseg_nnunet.segmentation.certain_cases import CertainCases
from rehrseg_nnunet.slices.geometry import hr_patch_size

STORE_NAME = "true_hr"


class SelfSRTrainer_trueHRData(rehrseg_self_sr_trainer.SelfSRTrainer):
    """Stage 1 taught by the truth: pairs along the real slice axis, from true HR volumes of its training cases."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.settings = self.settings.model_copy(update={"simulated_axes": ("z",)})

    def interpolated_cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The true HR cases, written if missing."""
        return nnUNetDatasetBlosc2(str(write_true_hr_cases(self, identifiers)), identifiers)


class REHRSegTrainer_trueHRData(rehrseg_trainer.REHRSegTrainer):
    """Stage 2 as it is, teacher and all, on the true HR volumes in place of pseudo-HR cases, with U = 0."""

    def open_pseudo_hr(self) -> None:
        """Find stage 1 for its teacher, then write the true HR cases that are missing.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        super().open_pseudo_hr()
        self.true_hr_folder = write_true_hr_cases(self, self.do_split()[0])

    def pseudo_hr_cases(self, identifiers: Sequence[str]) -> nnUNetBaseDataset:
        """The true HR cases, with U = 0."""
        return CertainCases(nnUNetDatasetBlosc2(str(self.true_hr_folder), identifiers))


def write_true_hr_cases(trainer: nnUNetTrainer, identifiers: Sequence[str]) -> Path:
    """Write the true HR cases that are missing into the fold folder; returns their folder.

    Raises:
        ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
    """
    store = PseudoHRStore(trainer.output_folder, name=STORE_NAME)
    store.open_or_create(PseudoHRManifest.of_trainer(trainer, weights_sha256=""))
    lr = trainer.dataset_class(trainer.preprocessed_dataset_folder, identifiers)
    for identifier in identifiers:
        if not store.is_current(identifier, trainer.preprocessed_dataset_folder):
            _write_case(trainer, store, lr, identifier)
    return store.folder


def _write_case(trainer: nnUNetTrainer, store: PseudoHRStore, lr: nnUNetBaseDataset, identifier: str) -> None:
    data, labels, _, properties = lr.load_case(identifier)
    factor = trainer.config.factor
    truth = true_hr_case(
        Path(nnUNet_raw, trainer.plans_manager.dataset_name),
        identifier,
        np.asarray(data[:], dtype=np.float32),
        properties,
        plans_manager=trainer.plans_manager,
        dataset_json=trainer.dataset_json,
        factor=factor,
    )
    if truth is None:
        raise ValueError(f"{identifier} must have its true HR volumes in the raw dataset (imagesTrHR, labelsTrHR)")
    outside = np.repeat(np.asarray(labels[:]) == -1, factor, axis=1)
    store.write_case(
        identifier,
        truth[0],
        None,
        np.where(outside, np.int16(-1), truth[1]),
        {**properties, SOURCE: source_state(trainer.preprocessed_dataset_folder, identifier)},
        label_manager=trainer.label_manager,
        hr_patch_size=hr_patch_size(trainer.configuration_manager.patch_size, factor),
    )


TRAINERS = {trainer.__name__: trainer for trainer in (SelfSRTrainer_trueHRData, REHRSegTrainer_trueHRData)}


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, TRAINERS, module=__name__)

"""What thick-slice input can give at best: stage 2 trained on the true HR volumes instead of pseudo-HR cases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer as Base  # nnU-Net must find that one elsewhere

from rehrseg_nnunet.data.certain_cases import CertainCases
from rehrseg_nnunet.data.pseudo_hr import PseudoHRManifest, PseudoHRStore
from rehrseg_nnunet.data.source_files import SOURCE, source_state
from rehrseg_nnunet.evaluation.restoration import true_hr_case
from rehrseg_nnunet.training_lengths import trainer_of_length

STORE_NAME = "true_hr"


class REHRSegTrainer_trueHRData(Base):
    """Stage 2 as it is, teacher and all, on the volumes that `rehrseg simulate` kept, with U = 0."""

    def open_pseudo_hr(self) -> None:
        """Find stage 1 for its teacher, then write the true HR cases that are missing.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        super().open_pseudo_hr()
        identifiers, _ = self.do_split()
        self.true_hr = PseudoHRStore(self.output_folder, name=STORE_NAME)
        self.true_hr.open_or_create(PseudoHRManifest.of_trainer(self, weights_sha256=""))
        lr = self.dataset_class(self.preprocessed_dataset_folder, identifiers)
        for identifier in identifiers:
            if not self.true_hr.is_current(identifier, self.preprocessed_dataset_folder):
                self._write(lr, identifier)

    def _write(self, lr: nnUNetBaseDataset, identifier: str) -> None:
        data, labels, _, properties = lr.load_case(identifier)
        truth = true_hr_case(
            Path(nnUNet_raw, self.plans_manager.dataset_name),
            identifier,
            np.asarray(data[:], dtype=np.float32),
            properties,
            plans_manager=self.plans_manager,
            dataset_json=self.dataset_json,
            factor=self.config.factor,
        )
        if truth is None:
            raise ValueError(f"{identifier} must have its true HR volumes in the raw dataset (imagesTrHR, labelsTrHR)")
        slices, *in_plane = self.configuration_manager.patch_size
        outside = np.repeat(np.asarray(labels[:]) == -1, self.config.factor, axis=1)
        self.true_hr.write_case(
            identifier,
            truth[0],
            None,
            np.where(outside, np.int16(-1), truth[1]),
            {**properties, SOURCE: source_state(self.preprocessed_dataset_folder, identifier)},
            label_manager=self.label_manager,
            hr_patch_size=(slices * self.config.factor, *in_plane),
        )

    def pseudo_hr_cases(self, identifiers: Sequence[str]) -> nnUNetBaseDataset:
        """The true HR cases, with U = 0."""
        return CertainCases(nnUNetDatasetBlosc2(str(self.true_hr.folder), identifiers))


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, {REHRSegTrainer_trueHRData.__name__: REHRSegTrainer_trueHRData}, module=__name__)

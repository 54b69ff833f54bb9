"""Variants of stage 2 for the paper's ablations (Tables 4, 5 and 6), one class per row.

A variant has the settings that it names, everything else from the plans, and builds on the same runs of its fold as
REHRSegTrainer. With a length suffix it trains as long: `REHRSegTrainer_MIMIC_100epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset, nnUNetDatasetBlosc2
from rehrseg_nnunet.trainers import rehrseg_trainer  # nnU-Net takes the first file in which it sees a trainer's name

from rehrseg_nnunet.cases.interpolated import write_interpolated_cases
from rehrseg_nnunet.cases.store import PseudoHRManifest
from rehrseg_nnunet.nnunet.fold_run import (
    FINAL_CHECKPOINT,
    candidate_trainers,
    find_finished_run,
    raw_folder,
    sibling_run,
    training_command,
)
from rehrseg_nnunet.segmentation.certain_cases import CertainCases
from rehrseg_nnunet.slices.geometry import hr_patch_size
from rehrseg_nnunet.smore.export import smore_cases


class REHRSegTrainer_pseudoDataOnly(rehrseg_trainer.REHRSegTrainer):
    """Table 4, "+ pseudo SR data": neither uncertainty nor distillation."""

    changes: ClassVar[Mapping[str, Any]] = {"uncertainty_weighting": False, "distillation_weight": 0.0}


class REHRSegTrainer_withUncertainty(rehrseg_trainer.REHRSegTrainer):
    """Table 4, "+ uncertainty guidance": pseudo-HR data and uncertainty, no distillation."""

    changes: ClassVar[Mapping[str, Any]] = {"uncertainty_weighting": True, "distillation_weight": 0.0}


class REHRSegTrainer_withDistillation(rehrseg_trainer.REHRSegTrainer):
    """Pseudo-HR data and distillation, no uncertainty; not in Table 4, whose last row has both."""

    changes: ClassVar[Mapping[str, Any]] = {"uncertainty_weighting": False}


class REHRSegTrainer_MIMIC(rehrseg_trainer.REHRSegTrainer):
    """Table 6: the mean squared difference between the adapted features and the teacher's."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation": "mimic"}


class REHRSegTrainer_IFVD(rehrseg_trainer.REHRSegTrainer):
    """Table 6: how features vary inside each class."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation": "ifvd"}


class REHRSegTrainer_correlationOnly(rehrseg_trainer.REHRSegTrainer):
    """Table 6: Eq. 9 without Eq. 10."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation": "correlation"}


class REHRSegTrainer_spatialOnly(rehrseg_trainer.REHRSegTrainer):
    """Eq. 10 without Eq. 9; not in Table 6."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation": "spatial"}


class REHRSegTrainer_lambda0_01(rehrseg_trainer.REHRSegTrainer):
    """Table 6: lambda = 0.01 in Eq. 11."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation_weight": 0.01}


class REHRSegTrainer_lambda0_1(rehrseg_trainer.REHRSegTrainer):
    """Table 6: lambda = 0.1 in Eq. 11."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation_weight": 0.1}


class REHRSegTrainer_lambda1(rehrseg_trainer.REHRSegTrainer):
    """Table 6: lambda = 1 in Eq. 11."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation_weight": 1.0}


class REHRSegTrainer_lambda10(rehrseg_trainer.REHRSegTrainer):
    """Table 6: lambda = 10 in Eq. 11."""

    changes: ClassVar[Mapping[str, Any]] = {"distillation_weight": 10.0}


class REHRSegTrainer_pseudoDataBSpline(REHRSegTrainer_pseudoDataOnly):
    """Table 5: images by B-spline and labels by signed distance as pseudo-HR data; needs no stage 1."""

    def open_pseudo_hr(self) -> None:
        """Write the interpolated cases that are missing."""
        identifiers, _ = self.do_split()
        self.interpolated_folder = write_interpolated_cases(
            self.dataset_class(self.preprocessed_dataset_folder, identifiers),
            identifiers,
            factor=self.config.factor,
            spacing_mm=self.configuration_manager.spacing,
            label_manager=self.label_manager,
            patch_size=hr_patch_size(self.configuration_manager.patch_size, self.config.factor),
            raw_folder=raw_folder(self.plans_manager.dataset_name),
        )
        self.print_to_log_file(f"pseudo-HR data: {self.interpolated_folder} (B-spline, labels by signed distance)")

    def pseudo_hr_cases(self, identifiers: Sequence[str]) -> nnUNetBaseDataset:
        """The interpolated cases, with U = 0."""
        return CertainCases(nnUNetDatasetBlosc2(str(self.interpolated_folder), identifiers))


class REHRSegTrainer_pseudoDataSMORE(REHRSegTrainer_pseudoDataBSpline):
    """Table 5: the cases that SMORETrainer interpolated as pseudo-HR data; needs SMORETrainer instead of stage 1."""

    def open_pseudo_hr(self) -> None:
        """Find and check SMORE's cases of this fold.

        Raises:
            FileNotFoundError: SMORE is not trained, or cases are missing.
            ValueError: its cases do not fit.
        """
        trainers = candidate_trainers("SMORETrainer", type(self).__name__)
        run = find_finished_run(self.output_folder, trainers)
        if run is None:
            missing = sibling_run(self.output_folder, trainers[-1])
            command = training_command(missing, self.plans_manager.dataset_name)
            raise FileNotFoundError(f"{missing / FINAL_CHECKPOINT} is missing; run: {command}")
        identifiers, _ = self.do_split()
        self.interpolated_folder = smore_cases(
            run,
            PseudoHRManifest.of_trainer(self, weights_sha256=""),  # smore_cases takes the checkpoint's
            self.dataset_class(self.preprocessed_dataset_folder, identifiers),
            identifiers,
        )
        self.print_to_log_file(f"pseudo-HR data: {self.interpolated_folder} (SMORE)")


VARIANTS = (
    REHRSegTrainer_pseudoDataOnly,
    REHRSegTrainer_withUncertainty,
    REHRSegTrainer_withDistillation,
    REHRSegTrainer_pseudoDataBSpline,
    REHRSegTrainer_pseudoDataSMORE,
    REHRSegTrainer_MIMIC,
    REHRSegTrainer_IFVD,
    REHRSegTrainer_correlationOnly,
    REHRSegTrainer_spatialOnly,
    REHRSegTrainer_lambda0_01,
    REHRSegTrainer_lambda0_1,
    REHRSegTrainer_lambda1,
    REHRSegTrainer_lambda10,
)

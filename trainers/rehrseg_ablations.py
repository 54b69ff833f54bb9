"""Variants of stage 2 for the paper's ablations (Tables 4, 5 and 6), one class per row.

A variant has the settings that it names, everything else from the plans, and builds on the same runs of its fold as
REHRSegTrainer. With a length suffix it trains as long: `REHRSegTrainer_MIMIC_100epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rehrseg_nnunet.cases.interpolated import write_interpolated_cases
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.segmentation.certain_cases import CertainCases
from rehrseg_nnunet.smore.export import SMORE, smore_cases
from rehrseg_nnunet.trainers import rehrseg_trainer  # nnU-Net takes the first file in which it sees a trainer's name


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
        planned = PlannedDataset.of_trainer(self)
        dataset = self.dataset_class(self.preprocessed_dataset_folder, identifiers)
        self.pseudo_hr_folder = write_interpolated_cases(dataset, identifiers, planned).source_folder
        self.print_to_log_file(f"pseudo-HR data: {self.pseudo_hr_folder} (B-spline, labels by signed distance)")

    def pseudo_hr_cases(self, identifiers: list[str]) -> CertainCases:
        """The interpolated cases, with U = 0."""
        return CertainCases(super().pseudo_hr_cases(identifiers))


class REHRSegTrainer_pseudoDataSMORE(REHRSegTrainer_pseudoDataBSpline):
    """Table 5: the cases that SMORETrainer interpolated as pseudo-HR data; needs SMORETrainer instead of stage 1."""

    def open_pseudo_hr(self) -> None:
        """Find and check SMORE's cases of this fold.

        Raises:
            FileNotFoundError: SMORE is not trained, or cases are missing.
            ValueError: its cases do not fit.
        """
        run = SMORE.require(FoldRun.of_trainer(self))
        identifiers, _ = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, identifiers)
        self.pseudo_hr_folder = smore_cases(run, dataset, identifiers, factor=self.config.factor).source_folder
        self.print_to_log_file(f"pseudo-HR data: {self.pseudo_hr_folder} (SMORE)")


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

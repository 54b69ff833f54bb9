"""What stage 1 and stage 2 can give at best, taught by the true HR volumes that `rehrseg simulate` kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from benchmarks.quality.truth import CasesWithTruth, TrueHRCases, Where, at_boundaries, between_slices, everywhere
from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.segmentation.certain_cases import CertainCases

# nnU-Net must find those elsewhere
from rehrseg_nnunet.trainers import rehrseg_ablations, rehrseg_self_sr_trainer, rehrseg_trainer


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


class REHRSegTrainer_trueHRDataOnly(rehrseg_ablations.REHRSegTrainer_pseudoDataOnly):
    """The true HR volumes in place of pseudo-HR cases, without U, distillation and stage 1."""

    def open_pseudo_hr(self) -> None:
        """Write the true HR cases that are missing.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        self.pseudo_hr_folder = TrueHRCases(self).cases(self.do_split()[0]).source_folder

    def pseudo_hr_cases(self, identifiers: list[str]) -> CertainCases:
        """The true HR cases, with U = 0."""
        return CertainCases(super().pseudo_hr_cases(identifiers))


class _WithTruth(rehrseg_trainer.REHRSegTrainer):
    """Stage 2 on pseudo-HR cases with something of the truth.

    Attributes:
        replaced: where the true labels stand in for the pseudo labels; None: nowhere.
        uncertainty: U is 1 where the pseudo label is wrong and else 0.
    """

    replaced: ClassVar[Where | None] = None
    uncertainty: ClassVar[bool] = False

    def pseudo_hr_cases(self, identifiers: list[str]) -> Cases:
        """The cases, with the truth in them.

        Raises:
            ValueError: a case has no true HR volumes in the frame of its preprocessed LR image.
        """
        truth = TrueHRCases(self).cases(identifiers)
        return CasesWithTruth(
            super().pseudo_hr_cases(identifiers),
            truth,
            self.config.factor,
            replaced=type(self).replaced,
            uncertainty=self.uncertainty,
        )


class REHRSegTrainer_truthEverywhere(_WithTruth):
    """REHRSeg with stage 1's images and U and the true labels."""

    replaced = staticmethod(everywhere)


class REHRSegTrainer_truthBetweenSlices(_WithTruth):
    """REHRSeg with the true labels on all HR slices but those at a slice's centre."""

    replaced = staticmethod(between_slices)


class REHRSegTrainer_truthAtBoundaries(_WithTruth):
    """REHRSeg with the true labels at the boundaries of the pseudo labels."""

    replaced = staticmethod(at_boundaries)


class REHRSegTrainer_trueUncertainty(_WithTruth):
    """REHRSeg with w = [the pseudo label is right] in Eq. 7, but for its floor."""

    uncertainty = True

    def open_pseudo_hr(self) -> None:
        """Find stage 1; U means something as it is."""
        super().open_pseudo_hr()
        self.normalises_uncertainty = False


class REHRSegTrainer_trueLabels(_WithTruth, rehrseg_ablations.REHRSegTrainer_pseudoDataBSpline):
    """Interpolated images with the true labels, without U, distillation and stage 1."""

    replaced = staticmethod(everywhere)


TRAINERS = {
    trainer.__name__: trainer
    for trainer in (
        SelfSRTrainer_trueHRData,
        REHRSegTrainer_trueHRData,
        REHRSegTrainer_trueHRDataOnly,
        REHRSegTrainer_truthEverywhere,
        REHRSegTrainer_truthBetweenSlices,
        REHRSegTrainer_truthAtBoundaries,
        REHRSegTrainer_trueUncertainty,
        REHRSegTrainer_trueLabels,
    )
}


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, TRAINERS, module=__name__)

"""Variants of the guidance's teacher and keeper, each without one of their parts.

A variant has the settings that it names, everything else from the plans. A keeper, variant or not, is taught by
GuidanceTeacherTrainer of its fold, or by the run that REHRSEG_TEACHER names. With a length suffix it trains as long:
`KnowledgeKeeperTrainer_noAdversary_50epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

# nnU-Net takes the first file in which it sees a trainer's name
from rehrseg_nnunet.trainers import rehrseg_guidance_teacher_trainer, rehrseg_knowledge_keeper_trainer


class GuidanceTeacherTrainer_noNoise(rehrseg_guidance_teacher_trainer.GuidanceTeacherTrainer):
    """A teacher whose decoder may rest on its finest features."""

    changes: ClassVar[Mapping[str, Any]] = {"teacher": {"noise_std": 0.0}}


class GuidanceTeacherTrainer_noFeatureReconstruction(rehrseg_guidance_teacher_trainer.GuidanceTeacherTrainer):
    """A teacher whose features need not be told by those of the level below."""

    changes: ClassVar[Mapping[str, Any]] = {"teacher": {"feature_weight": 0.0}}


class KnowledgeKeeperTrainer_noMatching(rehrseg_knowledge_keeper_trainer.KnowledgeKeeperTrainer):
    """A keeper without the distance of means and standard deviations over the channels."""

    changes: ClassVar[Mapping[str, Any]] = {"keeper": {"matching_weight": 0.0}}


class KnowledgeKeeperTrainer_noFeatures(rehrseg_knowledge_keeper_trainer.KnowledgeKeeperTrainer):
    """A keeper that never sees the teacher's features, only what its decoder makes of the guides."""

    changes: ClassVar[Mapping[str, Any]] = {
        "keeper": {"distillation_weight": 0.0, "matching_weight": 0.0, "residual": False}
    }


class KnowledgeKeeperTrainer_noAdversary(rehrseg_knowledge_keeper_trainer.KnowledgeKeeperTrainer):
    """A keeper without adversary."""

    changes: ClassVar[Mapping[str, Any]] = {"keeper": {"adversarial_weight": 0.0}}


class KnowledgeKeeperTrainer_noRecalibration(rehrseg_knowledge_keeper_trainer.KnowledgeKeeperTrainer):
    """A keeper without position-aware recalibration."""

    changes: ClassVar[Mapping[str, Any]] = {"keeper": {"recalibration": False}}


class KnowledgeKeeperTrainer_noResidual(rehrseg_knowledge_keeper_trainer.KnowledgeKeeperTrainer):
    """A keeper that learns all of the teacher's features from the source, as in the paper."""

    changes: ClassVar[Mapping[str, Any]] = {"keeper": {"residual": False}}


VARIANTS = (
    GuidanceTeacherTrainer_noNoise,
    GuidanceTeacherTrainer_noFeatureReconstruction,
    KnowledgeKeeperTrainer_noMatching,
    KnowledgeKeeperTrainer_noFeatures,
    KnowledgeKeeperTrainer_noAdversary,
    KnowledgeKeeperTrainer_noRecalibration,
    KnowledgeKeeperTrainer_noResidual,
)

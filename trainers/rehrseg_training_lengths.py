"""Every trainer in any length, named as nnU-Net names its own: `REHRSegTrainer_1epoch`, `SelfSRTrainer_100epochs`, ...

nnU-Net asks each module for an attribute of the trainer's name. This one makes the class when it is asked for it.
"""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.trainers import rehrseg_ablations, rehrseg_guidance_ablations, rehrseg_guided_ablations
from rehrseg_nnunet.trainers.rehrseg_continued_baseline import ContinuedBaselineTrainer
from rehrseg_nnunet.trainers.rehrseg_guidance_teacher_trainer import GuidanceTeacherTrainer
from rehrseg_nnunet.trainers.rehrseg_guided_rehrseg_trainer import GuidedREHRSegTrainer
from rehrseg_nnunet.trainers.rehrseg_guided_trainer import GuidedTrainer
from rehrseg_nnunet.trainers.rehrseg_knowledge_keeper_trainer import KnowledgeKeeperTrainer
from rehrseg_nnunet.trainers.rehrseg_self_sr_trainer import SelfSRTrainer
from rehrseg_nnunet.trainers.rehrseg_smore_trainer import SMORETrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

TRAINERS = {
    trainer.__name__: trainer
    for trainer in (
        SMORETrainer,
        SelfSRTrainer,
        REHRSegTrainer,
        ContinuedBaselineTrainer,
        GuidanceTeacherTrainer,
        KnowledgeKeeperTrainer,
        GuidedTrainer,
        GuidedREHRSegTrainer,
        *rehrseg_ablations.VARIANTS,
        *rehrseg_guidance_ablations.VARIANTS,
        *rehrseg_guided_ablations.VARIANTS,
    )
}


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, TRAINERS, module=__name__)

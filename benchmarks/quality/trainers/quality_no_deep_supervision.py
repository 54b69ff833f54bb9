"""Stage 2 without deep supervision."""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer as Base  # nnU-Net must find that one elsewhere

from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length


class REHRSegTrainer_noDeepSupervision(Base):
    """Only the full-resolution output of the LR head has a loss, as in the paper's released code."""

    def configure(self) -> None:
        """Turn deep supervision off."""
        super().configure()
        self.enable_deep_supervision = False


TRAINERS = {REHRSegTrainer_noDeepSupervision.__name__: REHRSegTrainer_noDeepSupervision}


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, TRAINERS, module=__name__)

"""nnU-Net's own trainer for the long rows: at any length, and resumable after a tenth of it instead of 50 epochs."""

from __future__ import annotations

from functools import cache

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length


class SafeTrainer(PluginTrainer, nnUNetTrainer):
    """nnU-Net's data, network, loss and schedule; only its checkpoints are saved more often."""


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, {"SafeTrainer": SafeTrainer}, module=__name__)

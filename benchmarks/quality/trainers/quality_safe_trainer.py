"""nnU-Net's own trainer for the long rows: at any length, and resumable after a tenth of it instead of 50 epochs."""

from __future__ import annotations

from functools import cache

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length


class SafeTrainer(SafeCheckpoints, nnUNetTrainer):
    """nnU-Net's data, network, loss and schedule; only its checkpoints are saved more often."""

    length: int | None = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.length or self.num_epochs


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, {"SafeTrainer": SafeTrainer}, module=__name__)

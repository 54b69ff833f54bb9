"""The fair comparison with stage 2: nnU-Net itself, trained on for as many more epochs from the same checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.config.rehrseg import BLOCK, parse_block, upgraded_plans
from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.fold_run import (
    FINAL_CHECKPOINT,
    candidate_trainers,
    find_finished_run,
    sibling_run,
    training_command,
)
from rehrseg_nnunet.nnunet.training_start import BaselineStart


class ContinuedBaselineTrainer(SafeCheckpoints, BaselineStart, nnUNetTrainer):
    """nnU-Net's data, network and loss from the fold's finished baseline on, at REHRSegTrainer's learning rate."""

    length: int | None = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(upgraded_plans(plans), configuration, fold, dataset_json, device)
        self.num_epochs = self.length or self.num_epochs
        config = parse_block(self.configuration_manager.configuration.get(BLOCK, {}))
        self.learning_rate_from_trained = config.segmentation.learning_rate_from_trained

    def baseline_checkpoint(self) -> Path:
        """The fold's finished nnUNetTrainer run, of the same length if there is one.

        Raises:
            FileNotFoundError: there is none.
        """
        trainers = candidate_trainers("nnUNetTrainer", type(self).__name__)
        run = find_finished_run(self.output_folder, trainers)
        if run is None:
            missing = sibling_run(self.output_folder, trainers[-1])
            command = training_command(missing, self.plans_manager.dataset_name)
            raise FileNotFoundError(
                f"{missing / FINAL_CHECKPOINT} is missing: there is no baseline to continue; run: {command}"
            )
        return run / FINAL_CHECKPOINT

    def on_train_start(self) -> None:
        """Start from the baseline, then as in nnU-Net."""
        self.start_from_trained()
        super().on_train_start()

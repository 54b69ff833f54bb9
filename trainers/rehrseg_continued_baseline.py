"""The fair comparison: nnU-Net itself, trained on for as many more epochs from the same checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.config.blocks import learning_rate_from_trained
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BASELINE, BaselineStart


class ContinuedBaselineTrainer(PluginTrainer, BaselineStart, nnUNetTrainer):
    """nnU-Net's data, network and loss from the fold's finished baseline on, at the compared method's learning rate."""

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Take the compared method's learning rate; an invalid block is refused before anything is written."""
        self.learning_rate_from_trained = learning_rate_from_trained(configuration)

    def baseline_checkpoint(self) -> Path:
        """The fold's finished nnUNetTrainer run, of the same length if there is one.

        Raises:
            FileNotFoundError: there is none.
        """
        return BASELINE.require(FoldRun.of_trainer(self)).final_checkpoint

    def on_train_start(self) -> None:
        """Start from the baseline, then as in nnU-Net."""
        self.start_from_trained()
        super().on_train_start()

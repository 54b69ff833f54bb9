"""Training of images in nnU-Net's loop: see `ImageTraining`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import distributed as dist

from rehrseg_nnunet.nnunet.schedules import RatePerStep
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin


class ImageTraining(TrainerMixin):
    """Mixin for nnU-Net trainers whose network gives images.

    Adam, a learning rate per step, a batch size of its own, image metrics in nnU-Net's log, no deep supervision.

    Attributes:
        settings: the part of the plans' block that this training follows: `epochs`, `learning_rate`, `batch_size`.
        extra_metrics: what `validation_step` gives beside nnU-Net's values, each its mean over a batch.
    """

    settings: Any
    lr_scheduler: RatePerStep
    extra_metrics: tuple[str, ...] = ()

    def configure(self) -> None:
        """Take the settings' epochs and learning rate (the hook of `PluginTrainer`)."""
        self.num_epochs = self.settings.epochs
        self.initial_lr = self.settings.learning_rate
        self.weight_decay = 0.0

    def schedule(self, optimizer: torch.optim.Optimizer) -> RatePerStep:
        """The learning rate of every step."""
        raise NotImplementedError

    def initialize(self) -> None:
        """Build everything as nnU-Net does and add the image metrics to its log."""
        super().initialize()
        self._log_extra_metrics()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net; checkpoints of older logs get the image metrics."""
        super().load_checkpoint(filename_or_checkpoint)
        self._log_extra_metrics()

    def _log_extra_metrics(self) -> None:
        for metric in self.extra_metrics:
            self.logger.local_logger.my_fantastic_logging.setdefault(metric, [])

    def _set_batch_size_and_oversample(self) -> None:
        """nnU-Net's rule, for the settings' batch in place of the plan's.

        Ranks get equal shares, rounded down: nnU-Net's batch Dice gathers samples over ranks, which must be as many.
        """
        planned = self.configuration_manager
        world_size = dist.get_world_size() if self.is_ddp else 1
        batch_size = max(1, self.settings.batch_size // world_size) * world_size
        self.configuration_manager = ConfigurationManager({**planned.configuration, "batch_size": batch_size})
        try:
            super()._set_batch_size_and_oversample()
        finally:
            self.configuration_manager = planned

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """These networks have no deep supervision."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, RatePerStep]:
        """Adam and the schedule."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, self.schedule(optimizer)

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net."""
        self._step = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, with a learning rate per step."""
        self.next_rate()
        return super().train_step(batch)

    def next_rate(self) -> None:
        """Set the learning rate of the next step of this epoch."""
        self.lr_scheduler.step(self.current_epoch, self._step)
        self._step += 1

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log nnU-Net's values and the image metrics, their mean over the batches that were scored."""
        collated = collate_outputs(val_outputs)
        for metric in self.extra_metrics:
            self.logger.log(metric, self.mean_over_ranks(float(np.nanmean(collated[metric]))), self.current_epoch)
        super().on_validation_epoch_end(val_outputs)

    def mean_over_ranks(self, value: float) -> float:
        """Mean of a value that every DDP rank has; nan is left out."""
        if not self.is_ddp:
            return value
        values = [value] * dist.get_world_size()
        dist.all_gather_object(values, value)
        return float(np.nanmean(values))

    def on_epoch_end(self) -> None:
        """Print the image metrics beside nnU-Net's."""
        values: dict[str, Any] = {metric: self.logger.get_value(metric, step=-1) for metric in self.extra_metrics}
        self.print_to_log_file(", ".join(f"{metric} {round(value, 4)}" for metric, value in values.items()))
        super().on_epoch_end()


def refuse_prediction(trainer: str, *, enable_deep_supervision: bool, instead: str) -> None:
    """Tell nnU-Net's predictor, the only one that builds a network without deep supervision, that it is no segmenter.

    Args:
        trainer: name of the trainer.
        enable_deep_supervision: as nnU-Net asks for the network.
        instead: what the trainer does, and what to do.

    Raises:
        NotImplementedError: without deep supervision.
    """
    if not enable_deep_supervision:
        raise NotImplementedError(f"{trainer} {instead}")

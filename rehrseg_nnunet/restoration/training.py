"""Training from image to image in nnU-Net's loop: see `ImageToImageTraining`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import autocast
from torch import distributed as dist

from rehrseg_nnunet.nnunet.label_channels import masked_value
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.nnunet.schedules import PhasedOneCycle
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.restoration.validation import IMAGE_METRICS, SCORED_IMAGES, SCORED_STEPS, restoration_metrics


class ImageToImageTraining(TrainerMixin):
    """Mixin for nnU-Net trainers whose network restores images, and labels with them.

    Adam with one cycle per phase, a learning rate per step, a batch size of its own, image metrics in nnU-Net's log.

    Attributes:
        settings: the part of the plans' block that this training follows: `epochs`, `learning_rate`, `batch_size`.
        extra_metrics: what `restoration_metrics` gives for the network's output.
    """

    settings: Any
    lr_scheduler: PhasedOneCycle
    extra_metrics: tuple[str, ...] = IMAGE_METRICS
    _validation_steps: int = 0  # of this epoch, so far

    def configure(self) -> None:
        """Take the settings' epochs and learning rate (the hook of `PluginTrainer`)."""
        self.num_epochs = self.settings.epochs
        self.initial_lr = self.settings.learning_rate
        self.weight_decay = 0.0

    @property
    def phase_epochs(self) -> Sequence[int]:
        """Epochs of each phase of the training."""
        return (self.num_epochs,)

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
        world_size = dist.get_world_size() if self.is_ddp else 1
        batch_size = max(1, self.settings.batch_size // world_size) * world_size
        planned = self.configuration_manager
        self.configuration_manager = ConfigurationManager({**planned.configuration, "batch_size": batch_size})
        try:
            super()._set_batch_size_and_oversample()
        finally:
            self.configuration_manager = planned

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """These networks have no deep supervision."""

    def label_loss(self) -> DC_and_CE_loss | DC_and_BCE_loss:
        """nnU-Net's label loss, which leaves out what lies outside the volume."""
        return build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=masked_value(self.label_manager),
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PhasedOneCycle]:
        """Adam with one cycle per phase."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = PhasedOneCycle(
            optimizer,
            peak=self.initial_lr,
            phase_epochs=self.phase_epochs,
            steps_per_epoch=self.num_iterations_per_epoch,
        )
        return optimizer, schedule

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net."""
        self._step = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, with a learning rate per step."""
        self.lr_scheduler.step(self.current_epoch, self._step)
        self._step += 1
        return super().train_step(batch)

    def on_validation_epoch_start(self) -> None:
        """As in nnU-Net."""
        self._validation_steps = 0
        super().on_validation_epoch_start()

    def validation_step(self, batch: dict) -> dict:
        """Loss, label overlap for nnU-Net's pseudo Dice, and the image metrics, which few batches of an epoch have."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = [t.to(self.device, non_blocking=True) for t in batch["target"]]
        with autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        metrics = restoration_metrics(
            output,
            target,
            regions=self.label_manager.has_regions,
            masked=masked_value(self.label_manager),
            images=SCORED_IMAGES if self._validation_steps < SCORED_STEPS else 0,
        )
        self._validation_steps += 1
        return {"loss": loss.detach().cpu().numpy(), **metrics}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log nnU-Net's values and the image metrics, their mean over the batches that were scored."""
        collated = collate_outputs(val_outputs)
        for metric in self.extra_metrics:
            value = float(np.nanmean(collated[metric]))
            if self.is_ddp:
                values = [value] * dist.get_world_size()
                dist.all_gather_object(values, value)
                value = float(np.nanmean(values))
            self.logger.log(metric, value, self.current_epoch)
        super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        """Print the image metrics beside nnU-Net's."""
        values: dict[str, Any] = {metric: self.logger.get_value(metric, step=-1) for metric in self.extra_metrics}
        self.print_to_log_file(", ".join(f"{metric} {round(value, 4)}" for metric, value in values.items()))
        super().on_epoch_end()


def refuse_prediction(trainer: str, *, enable_deep_supervision: bool) -> None:
    """Tell nnU-Net's predictor, the only one that builds a network without deep supervision, that it is no segmenter.

    Raises:
        NotImplementedError: without deep supervision.
    """
    if not enable_deep_supervision:
        raise NotImplementedError(
            f"{trainer} makes training data, it does not segment: predict with -tr REHRSegTrainer"
        )

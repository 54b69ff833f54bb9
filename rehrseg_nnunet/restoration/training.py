"""Training of images and labels in nnU-Net's loop: see `ImageToImageTraining`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.helpers import dummy_context
from torch import autocast

from rehrseg_nnunet.nnunet.label_channels import masked_value
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.nnunet.schedules import PhasedOneCycle
from rehrseg_nnunet.restoration.image_training import ImageTraining
from rehrseg_nnunet.restoration.validation import IMAGE_METRICS, SCORED_IMAGES, SCORED_STEPS, restoration_metrics


class ImageToImageTraining(ImageTraining):
    """Mixin for nnU-Net trainers whose network restores images, and labels with them: one cycle per phase.

    Attributes:
        extra_metrics: what `restoration_metrics` gives for the network's output.
    """

    extra_metrics: tuple[str, ...] = IMAGE_METRICS
    _validation_steps: int = 0  # of this epoch, so far

    @property
    def phase_epochs(self) -> Sequence[int]:
        """Epochs of each phase of the training."""
        return (self.num_epochs,)

    def schedule(self, optimizer: torch.optim.Optimizer) -> PhasedOneCycle:
        """One cycle per phase."""
        return PhasedOneCycle(
            optimizer,
            peak=self.initial_lr,
            phase_epochs=self.phase_epochs,
            steps_per_epoch=self.num_iterations_per_epoch,
        )

    def label_loss(self) -> DC_and_CE_loss | DC_and_BCE_loss:
        """nnU-Net's label loss, which leaves out what lies outside the volume."""
        return build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=masked_value(self.label_manager),
        )

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

"""The keeper's plain rival: nnU-Net's own U-Net taught by L1 to give the better scan."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from rehrseg_nnunet.config.guidance import load_config
from rehrseg_nnunet.guided.adversary import descend
from rehrseg_nnunet.guided.level_restoration import PatchLevelMap, patch_level, restore, standardise
from rehrseg_nnunet.guided.losses import image_error
from rehrseg_nnunet.guided.networks import stored_channels
from rehrseg_nnunet.guided.report import report_keeper
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.precision import mixed_precision
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.restoration.image_training import refuse_prediction


class Synthesised(NamedTuple):
    """What the network makes of a source patch.

    Attributes:
        image: (B, privileged_channels, *size).
    """

    image: Tensor


class SynthesisingUNet(nn.Module):
    """A U-Net with the keeper's treatment of a patch's level; `image_range` (P,) goes with its weights.

    Args:
        unet: (B, source_channels, *size) to (B, privileged_channels, *size).
        source_channels: channels in.
        privileged_channels: channels out.
        level_restoration: whether patches are standardised first and get the level that `PatchLevelMap` says.
    """

    def __init__(
        self, unet: nn.Module, *, source_channels: int, privileged_channels: int, level_restoration: bool
    ) -> None:
        super().__init__()
        self.unet = unet
        self.level = PatchLevelMap(source_channels, privileged_channels) if level_restoration else None
        self.register_buffer("image_range", torch.ones(privileged_channels))

    def forward(self, source: Tensor) -> Synthesised:
        """(B, source_channels, *size) to the synthesised image."""
        if self.level is None:
            return Synthesised(self.unet(source))
        own = patch_level(source)
        return Synthesised(restore(self.unet(standardise(source, own)), self.level(own)))


class ImageLoss(nn.Module):
    """The image term of the keeper's loss alone.

    Args:
        image_range: (P,) width of the robust intensity range of each privileged channel.
        weight: lambda_vox.
    """

    def __init__(self, image_range: Tensor, weight: float) -> None:
        super().__init__()
        self.image_range: Tensor
        self.register_buffer("image_range", image_range.clone(), persistent=False)
        self.weight = weight

    def forward(self, image: Tensor, privileged: Tensor) -> Tensor:
        """Scalar loss of (B, P, *size)."""
        return self.weight * image_error(image, privileged, self.image_range)


class L1UNetTrainer(PairedTraining, PluginTrainer, nnUNetTrainer):
    """The plans' own network, one output for each privileged channel, in the keeper's training.

    Epochs, batch, Adam and its rate, augmentation, level restoration and the weight of the image loss are the keeper's
    settings, so that only the network and the other losses differ. It needs no teacher.
    """

    stage = "keeper"
    loss: ImageLoss

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> SynthesisingUNet:
        """nnU-Net's network without deep supervision; nnU-Net's predictor is refused."""
        refuse_prediction(
            "L1UNetTrainer", enable_deep_supervision=enable_deep_supervision, instead="gives images, not segmentations"
        )
        configuration = configuration_manager.configuration
        channels = stored_channels(configuration)
        sizes = {"source_channels": len(channels.source), "privileged_channels": len(channels.privileged)}
        unet = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, *sizes.values(), enable_deep_supervision=False
        )
        restored = load_config(configuration).level_restoration
        return SynthesisingUNet(unet, **sizes, level_restoration=restored)

    @property
    def augments_intensities(self) -> bool:
        """As the keeper's settings say."""
        return self.config.keeper.source_augmentation == "full"

    def _build_loss(self) -> ImageLoss:
        return ImageLoss(self.image_range, self.config.keeper.image_weight).to(self.device)

    def on_train_start(self) -> None:
        """Measure the privileged channels' range, then as in nnU-Net."""
        if not self.was_initialized:
            self.initialize()
        if not self._resumed:
            self.measure_image_range()
        super().on_train_start()

    def train_step(self, batch: dict) -> dict:
        """One step of Adam."""
        self.next_rate()
        pairs = self.on_device(batch)
        with mixed_precision(self.device):
            loss = self.loss(self.network(pairs.source).image, pairs.privileged)
        descend(loss, self.optimizer, self.network.parameters(), self.grad_scaler)
        if self.grad_scaler is not None:
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict) -> dict:
        """Loss and image metrics."""
        pairs = self.on_device(batch)
        with mixed_precision(self.device):
            image = self.network(pairs.source).image
            loss = self.loss(image, pairs.privileged)
        return {"loss": loss.cpu().numpy(), **self.score(pairs, image)}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write, draw and score the validation cases as the keeper's training does."""
        report_keeper(self, None)


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, {"L1UNetTrainer": L1UNetTrainer}, module=__name__)

"""Guidance, third training: any segmentation network of nnU-Net's plans, guided by a finished keeper."""

from __future__ import annotations

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.guided.guided_training import GuidedTraining
from rehrseg_nnunet.guided.resolved_keeper import guide_by_plans
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BaselineStart


class GuidedTrainer(GuidedTraining, PluginTrainer, BaselineStart, nnUNetTrainer):
    """nnU-Net's data, loss and network, whose encoder a frozen keeper guides.

    What guides it and how is in `GuidedTraining`. Raises at construction for cascades, before anything is written.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network, guided as the plans say."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return guide_by_plans(network, configuration_manager.configuration)

    def on_train_start(self) -> None:
        """Choose the keeper and the starting weights, then as in nnU-Net."""
        self.start_from_trained()
        super().on_train_start()

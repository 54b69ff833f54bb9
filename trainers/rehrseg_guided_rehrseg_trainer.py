"""Both methods in one network: stage 2 of REHRSeg, guided by a keeper of thin slices or of any other better scan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.config.rehrseg import change_segmentation
from rehrseg_nnunet.guided.guided_training import GuidedTraining
from rehrseg_nnunet.guided.resolved_keeper import guide_by_plans
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.trainers import rehrseg_trainer  # nnU-Net takes the first file in which it sees a trainer's name


class GuidedREHRSegTrainer(GuidedTraining, rehrseg_trainer.REHRSegTrainer):
    """REHRSegTrainer whose encoder a frozen keeper guides; needs stage 1 and a keeper.

    With `segmentation.input: thin` the keeper sees the interpolated slices, as the encoder does: its pairs are thick
    slices interpolated to thin ones, and the thin slices themselves. Settings: the plans' blocks `rehrseg` and
    `guidance`.
    """

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read both blocks.

        Raises:
            ValueError: an invalid block, or two blocks that do not agree.
        """
        super().read_settings(configuration)
        rate = self.guidance.learning_rate_from_trained
        self.config = change_segmentation(self.config, {"learning_rate_from_trained": rate})

    def guidance_block(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """As of any guided training; for thin slices, which no baseline fits, a random start."""
        block = super().guidance_block(configuration)
        fusion = block.get("fusion", {})
        if self.sees_thin_slices and fusion.get("start") is None:
            block["fusion"] = {**fusion, "start": "paper"}
        return block

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """REHRSeg's network, guided as the plans say."""
        network = rehrseg_trainer.REHRSegTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return guide_by_plans(network, configuration_manager.configuration)

    def guided_grid(self) -> PlannedDataset:
        """Thin slices where the network works on these."""
        planned = super().guided_grid()
        return planned.with_thin_slices() if self.sees_thin_slices else planned

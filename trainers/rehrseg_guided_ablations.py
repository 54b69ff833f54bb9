"""Variants of guided trainers: each without a part of the method, or without what the pairs have taught.

A variant has the settings that it names, everything else from the plans. With a length suffix it trains as long:
`GuidedTrainer_sameLevel_50epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.guided.guided_training import RandomKeeper
from rehrseg_nnunet.guided.resolved_keeper import guide_by_plans

# nnU-Net takes the first file in which it sees the name
from rehrseg_nnunet.trainers import rehrseg_guided_rehrseg_trainer, rehrseg_guided_trainer


class GuidedTrainer_scalarFusion(rehrseg_guided_trainer.GuidedTrainer):
    """Two trained numbers a stage weigh guide and features (the method's MICCAI 2022 version)."""

    guidance_changes: ClassVar[Mapping[str, Any]] = {"fusion": {"kind": "scalar"}}


class GuidedTrainer_sameLevel(rehrseg_guided_trainer.GuidedTrainer):
    """Each stage sees the guide of its own level alone."""

    guidance_changes: ClassVar[Mapping[str, Any]] = {"fusion": {"guides": "same_level"}}


class GuidedTrainer_noRefinement(rehrseg_guided_trainer.GuidedTrainer):
    """What fusion adds is not weighed by channel."""

    guidance_changes: ClassVar[Mapping[str, Any]] = {"fusion": {"refinement": False}}


class GuidedTrainer_decoderOnly(rehrseg_guided_trainer.GuidedTrainer):
    """The guides in the encoder's place."""

    guidance_changes: ClassVar[Mapping[str, Any]] = {"fusion": {"kind": "decoder_only", "stages": None}}


class GuidedTrainer_randomKeeper(RandomKeeper, rehrseg_guided_trainer.GuidedTrainer):
    """Control: a frozen keeper that has learnt nothing. Needs no keeper, and is built like the one that there is."""


class GuidedTrainer_untaughtKeeper(GuidedTrainer_randomKeeper):
    """Control: the keeper learns along with the segmentation, without pairs. Is built as the random one."""

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network, guided as the plans say, by a keeper that learns."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        return guide_by_plans(network, configuration_manager.configuration, learns=True)


class GuidedREHRSegTrainer_randomKeeper(RandomKeeper, rehrseg_guided_rehrseg_trainer.GuidedREHRSegTrainer):
    """Control: a frozen keeper that has learnt nothing. Needs no keeper, and is built like the one that there is."""


VARIANTS = (
    GuidedTrainer_scalarFusion,
    GuidedTrainer_sameLevel,
    GuidedTrainer_noRefinement,
    GuidedTrainer_decoderOnly,
    GuidedTrainer_randomKeeper,
    GuidedTrainer_untaughtKeeper,
    GuidedREHRSegTrainer_randomKeeper,
)

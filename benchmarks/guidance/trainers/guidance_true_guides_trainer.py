"""What guidance can give at best: guides of the true better scan, which test cases must have too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn

from rehrseg_nnunet.config.guidance import load_config
from rehrseg_nnunet.guided.frozen import open_teacher
from rehrseg_nnunet.guided.frozen_keeper import FrozenKeeper
from rehrseg_nnunet.guided.guided_network import add_guidance
from rehrseg_nnunet.guided.keeper_run import find_keeper
from rehrseg_nnunet.guided.networks import planned_shape
from rehrseg_nnunet.guided.resolved_keeper import ResolvedKeeper
from rehrseg_nnunet.guided.shape import GuidanceShape
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.guided.teacher import Features, Teacher
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.training_lengths import trainer_of_length
from rehrseg_nnunet.trainers import rehrseg_guided_trainer  # nnU-Net takes the first file in which it sees the name


class TrueGuides(Teacher):
    """A teacher's encoder in the keeper's place: from the better scan, which it sees instead, the guides.

    Args:
        shape: levels, widths and channels; its source channels are the privileged ones.
        level_restoration: as in the teacher's training.
    """

    def __init__(self, shape: GuidanceShape, *, level_restoration: bool) -> None:
        super().__init__(shape, noise_std=0, feature_reconstruction=False, level_restoration=level_restoration)
        self.shape = shape
        del self.decoder

    def forward(self, privileged: Tensor) -> Features:
        """(B, privileged_channels, *size) to c_1..c_L."""
        return self.features(privileged)


class GuidedTrainer_trueGuides(rehrseg_guided_trainer.GuidedTrainer):
    """GuidedTrainer whose guides are the teacher's features of the true better scan.

    The dataset has the channels of the scan first and then those of the better one, which the network itself does not
    see. The teacher is that of the keeper that GuidedTrainer would take.
    """

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network for the scan's channels, guided by what the teacher sees in the others."""
        configuration = configuration_manager.configuration
        resolved = ResolvedKeeper.of(configuration)
        own_channels = num_input_channels - len(resolved.view.channels)
        network: Any = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, own_channels, num_output_channels, enable_deep_supervision
        )
        guides: Any = TrueGuides(resolved.shape, level_restoration=resolved.level_restoration)
        add_guidance(network, guides, view=resolved.view, fusion=load_config(configuration).fusion)
        first = getattr(network.encoder, "stem", None) or network.encoder.stages[0]
        first.register_forward_pre_hook(partial(_first_channels, own_channels))
        return network

    def choose_keeper(self) -> ResolvedKeeper:
        """The teacher of the keeper that there is, in the keeper's place."""
        keeper = find_keeper(FoldRun.of_trainer(self), self.guidance.keeper.dataset, dimension=self.dimension)
        teacher = open_teacher(keeper.run, keeper.configuration, checkpoint=self.guidance.checkpoint)
        channels = len(keeper.channels.privileged)
        first = len(self.dataset_json["channel_names"]) - channels
        resolved = ResolvedKeeper(
            shape=replace(planned_shape(keeper.configuration), source_channels=channels),
            kernel=1,  # there is none
            recalibration=False,
            level_restoration=teacher.network.level_restoration,
            residual=False,
            view=SourceView(channels=tuple(range(first, first + channels))),
            run=str(teacher.checkpoint.parent),
            sha256=teacher.sha256,
        )
        guides: Any = TrueGuides(resolved.shape, level_restoration=resolved.level_restoration)
        guides.encoder.load_state_dict(teacher.network.encoder.state_dict())
        self.keeper = FrozenKeeper(teacher.checkpoint, guides, resolved)
        self.print_to_log_file(f"guides of the true better scan, by {teacher.checkpoint}")
        return resolved


def _first_channels(number: int, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Input of the encoder: the first channels alone."""
    return (inputs[0][:, :number],)


@cache
def __getattr__(name: str) -> type[nnUNetTrainer]:
    return trainer_of_length(name, {"GuidedTrainer_trueGuides": GuidedTrainer_trueGuides}, module=__name__)

"""Guidance, third training: any segmentation network of nnU-Net's plans, guided by a finished keeper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.config.guidance import BLOCK, change_config, load_config
from rehrseg_nnunet.guided.frozen_keeper import FrozenKeeper, open_keeper
from rehrseg_nnunet.guided.guided_network import guidance_of
from rehrseg_nnunet.guided.keeper_cases import check_leak, check_teachers_leak, orientation_doubts
from rehrseg_nnunet.guided.keeper_run import KeeperRun, find_keeper
from rehrseg_nnunet.guided.keeper_view import doubts_of, view_of
from rehrseg_nnunet.guided.resolved_keeper import KEEPER_KEY, ResolvedKeeper, check_other_folds, guide_by_plans
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.checkpoints import DAMAGED
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BASELINE, BaselineStart
from rehrseg_nnunet.nnunet.weights import read_checkpoint


class GuidedTrainer(PluginTrainer, BaselineStart, nnUNetTrainer):
    """nnU-Net's data, loss and network, whose encoder a frozen keeper guides.

    Needs a keeper (KnowledgeKeeperTrainer) of any dataset of pairs, which is looked for and checked when training
    starts; its architecture then is in the plans beside the model and its weights are in the checkpoint, so nothing
    else needs it. Settings: the plans' `guidance` block. Raises at construction for cascades, before anything is
    written.

    Attributes:
        changes: settings that a variant has instead of the plans', nested as in the block.
        resolved: how the keeper is built; None until it is known.
        keeper: that the network is filled with; None if a checkpoint is continued.
    """

    changes: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    resolved: ResolvedKeeper | None = None
    keeper: FrozenKeeper | None = None

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block, with the variant's changes."""
        self.config = change_config(load_config(configuration), self.changes)

    def change_plans(
        self, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the settings into the plans: networks are built from these alone."""
        plans["configurations"][configuration][BLOCK] = self.config.model_dump(mode="json")
        return plans

    def configure(self) -> None:
        """Take the settings' learning rate."""
        self.learning_rate_from_trained = self.config.learning_rate_from_trained
        if not self.config.from_baseline:
            self.without_baseline = "guidance.from_baseline is false: training starts from scratch"

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

    def initialize(self) -> None:
        """Choose the keeper, unless a checkpoint has said which, then as in nnU-Net."""
        if self.resolved is None:
            self.guide_by(self.choose_keeper())
        super().initialize()

    def choose_keeper(self) -> ResolvedKeeper:
        """Find the keeper, check that it fits, and load it."""
        run = find_keeper(FoldRun.of_trainer(self), self.config.keeper.dataset, dimension=self.dimension)
        self.keeper = open_keeper(run, self.seen_by(run), checkpoint=self.config.checkpoint)
        if not (self.config.keeper.other_subjects or self.fold == "all"):
            validation = self.do_split()[1]
            self.warn(check_leak(run, validation))
            self.warn(check_teachers_leak(run, self.keeper.teacher_sha256, validation))
        self.warn(orientation_doubts(Path(self.preprocessed_dataset_folder), run))
        self.print_to_log_file(f"keeper: {self.keeper.checkpoint} (weights {self.keeper.resolved.sha256[:12]})")
        return self.keeper.resolved

    def seen_by(self, keeper: KeeperRun) -> SourceView:
        """What a keeper sees of this training's patches."""
        own = PlannedDataset.of_trainer(self)
        view = view_of(own, keeper, names=self.config.channels)
        self.warn(doubts_of(own, keeper, view))
        return view

    @property
    def dimension(self) -> int:
        """2 or 3."""
        return len(self.configuration_manager.patch_size)

    def warn(self, doubts: list[str]) -> None:
        """Print warnings to the log."""
        for doubt in doubts:
            self.print_to_log_file(f"WARNING: {doubt}")

    def guide_by(self, resolved: ResolvedKeeper) -> None:
        """Put a keeper into the plans, which nnU-Net saves beside the model and in the checkpoint.

        Raises:
            ValueError: other folds of the model have networks that are built in another way.
        """
        check_other_folds(Path(self.output_folder), self.configuration_name, resolved, self.config.fusion)
        self.resolved, plans = resolved, self.plans_manager.plans
        plans["configurations"][self.configuration_name][KEEPER_KEY] = resolved.as_json()
        self.plans_manager = PlansManager(plans)  # the former one has kept the configuration as it was
        self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)

    def fill_network(self) -> None:
        """The keeper's weights; those of a checkpoint come with it."""
        if self.keeper is not None:
            guidance_of(self.network).keeper.load_state_dict(self.keeper.network.state_dict())

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net, with the keeper that the checkpoint has.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.was_initialized:
            checkpoint = filename_or_checkpoint
            if isinstance(checkpoint, str):
                checkpoint = read_checkpoint(Path(checkpoint), remedy=DAMAGED)
            stored = PlansManager(checkpoint["init_args"]["plans"]).get_configuration(self.configuration_name)
            self.guide_by(ResolvedKeeper.of(stored.configuration))
        super().load_checkpoint(filename_or_checkpoint)

    def baseline_checkpoint(self) -> Path | None:
        """The fold's finished nnUNetTrainer run, of the same length if there is one; None from scratch."""
        run = BASELINE.find(FoldRun.of_trainer(self)) if self.config.from_baseline else None
        return None if run is None else run.final_checkpoint

    def on_train_start(self) -> None:
        """Choose the keeper and the starting weights, then as in nnU-Net."""
        self.start_from_trained()
        super().on_train_start()

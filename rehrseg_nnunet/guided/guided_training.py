"""What all trainings of guided segmentation networks have in common: see `GuidedTraining`, and `RandomKeeper`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.config.blocks import learning_rate_from_trained
from rehrseg_nnunet.config.guidance import BLOCK, ResolvedGuidance, change_config, load_config
from rehrseg_nnunet.guided.frozen_keeper import FrozenKeeper, open_keeper, own_keeper, resolve
from rehrseg_nnunet.guided.guided_network import guidance_of
from rehrseg_nnunet.guided.keeper_cases import check_leak, check_teachers_leak, orientation_doubts
from rehrseg_nnunet.guided.keeper_run import KeeperRun, NoKeeperError, find_keeper
from rehrseg_nnunet.guided.keeper_view import doubts_of, view_of
from rehrseg_nnunet.guided.resolved_keeper import KEEPER_KEY, ResolvedKeeper, check_other_folds, check_own_plans
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.checkpoints import DAMAGED
from rehrseg_nnunet.nnunet.dataset_json import check_keys
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BaselineStart
from rehrseg_nnunet.nnunet.weights import read_checkpoint

if TYPE_CHECKING:

    class _Trainer(PluginTrainer, BaselineStart):
        """What this mixin stands before."""

else:
    _Trainer = object


class GuidedTraining(_Trainer):
    """Mixin before a trainer that is a `PluginTrainer` and has a `BaselineStart`: a frozen keeper guides its network.

    The keeper (KnowledgeKeeperTrainer, of any dataset of pairs) is looked for and checked when training starts. Its
    architecture then is in the plans beside the model and its weights are in the checkpoint, so nothing else needs it.
    Settings: the plans' `guidance` block. The trainer's own `build_network_architecture`, which nnU-Net wants static,
    must guide what it builds (`guide_by_plans`).

    Attributes:
        guidance_changes: settings that a variant has instead of the plans', nested as in the block.
        guidance: the block, with these.
        resolved: how the keeper is built; None until it is known.
        keeper: that the network is filled with; None if a checkpoint is continued.
    """

    guidance_changes: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    guidance: ResolvedGuidance
    resolved: ResolvedKeeper | None = None
    keeper: FrozenKeeper | None = None

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block, with the variant's changes, beside what the trainer reads without guidance."""
        super().read_settings(configuration)
        block = self.guidance_block(configuration)
        self.guidance = change_config(load_config({**configuration, BLOCK: block}), self.guidance_changes)

    def guidance_block(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """The block that is read, with the learning rate that ContinuedBaselineTrainer takes, the fair rival.

        Raises:
            ValueError: two blocks that do not agree.
        """
        rate = learning_rate_from_trained(configuration)
        return {**configuration.get(BLOCK, {}), "learning_rate_from_trained": rate}

    def change_plans(
        self, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the settings into the plans: networks are built from these alone."""
        plans = super().change_plans(plans, configuration, dataset_json)
        plans["configurations"][configuration][BLOCK] = self.guidance.model_dump(mode="json")
        return plans

    def configure(self) -> None:
        """Take the settings' learning rate."""
        super().configure()
        self.learning_rate_from_trained = self.guidance.learning_rate_from_trained
        if not self.guidance.from_baseline:
            self.without_baseline = "guidance.from_baseline is false: training starts from scratch"
        elif self.guidance.fusion.start == "identity":
            self.without_baseline += "; guidance.fusion.start paper learns faster from there"

    def baseline_checkpoint(self) -> Path | None:
        """As without guidance; None if the settings want a training from scratch."""
        return super().baseline_checkpoint() if self.guidance.from_baseline else None

    def initialize(self) -> None:
        """Choose the keeper, unless a checkpoint has said which, then as without guidance.

        Raises:
            ValueError: a dataset.json without names of channels, which the keeper's are matched with.
        """
        if self.resolved is None:
            check_keys(self.dataset_json, required=("channel_names",))
            self.guide_by(self.choose_keeper())
        super().initialize()

    def choose_keeper(self) -> ResolvedKeeper:
        """Find the keeper, check that it fits, and load it."""
        settings = self.guidance.keeper
        run = find_keeper(FoldRun.of_trainer(self), settings.dataset, dimension=self.dimension, warn=self.warn)
        self.keeper = open_keeper(run, self.seen_by(run), checkpoint=self.guidance.checkpoint)
        if not (settings.other_subjects or self.fold == "all"):
            validation = self.do_split()[1]
            self.warn(check_leak(run, validation))
            self.warn(check_teachers_leak(run, self.keeper.teacher_sha256, validation))
        self.warn(orientation_doubts(Path(self.preprocessed_dataset_folder), run))
        self.print_to_log_file(f"keeper: {self.keeper.checkpoint} (weights {self.keeper.resolved.sha256[:12]})")
        return self.keeper.resolved

    def seen_by(self, keeper: KeeperRun) -> SourceView:
        """What a keeper sees of the patches that the network's encoder gets."""
        own = self.guided_grid()
        view = view_of(own, keeper, names=self.guidance.channels)
        self.warn(doubts_of(own, keeper, view))
        return view

    def guided_grid(self) -> PlannedDataset:
        """Spacing and patch of what the encoder gets."""
        return PlannedDataset.of_trainer(self)

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
        check_other_folds(Path(self.output_folder), self.configuration_name, resolved, self.guidance.fusion)
        self.resolved, plans = resolved, self.plans_manager.plans
        plans["configurations"][self.configuration_name][KEEPER_KEY] = resolved.as_json()
        self.plans_manager = PlansManager(plans)  # the former one has kept the configuration as it was
        self.configuration_manager = self.plans_manager.get_configuration(self.configuration_name)

    def fill_network(self) -> None:
        """The keeper's weights; those of a checkpoint come with it."""
        super().fill_network()
        if self.keeper is not None:
            guidance_of(self.network).keeper.load_state_dict(self.keeper.network.state_dict())

    def start_from_trained(self) -> None:
        """As without guidance; says that fusion and keeper are not among the weights that it starts from."""
        super().start_from_trained()
        if not self._resumed:
            self.print_to_log_file("fusion starts anew, with the keeper above, whatever else has been trained")

    def save_checkpoint(self, filename: str) -> None:
        """As in nnU-Net, beside the plans that the network is built from.

        Raises:
            ValueError: another fold, which began at the same time with a keeper of another kind, has replaced these.
        """
        if self.local_rank == 0 and not self.disable_checkpointing:
            assert self.resolved is not None  # since `initialize`
            check_own_plans(Path(self.output_folder), self.configuration_name, self.resolved, self.guidance.fusion)
        super().save_checkpoint(filename)

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


class RandomKeeper(GuidedTraining):
    """Mixin before a guided trainer, a control: a frozen keeper that has learnt nothing.

    Needs no keeper, and is built like the one that there is. A residual one gets a teacher's encoder with random
    weights, and what it adds to these features counts from the first step as it is.
    """

    def choose_keeper(self) -> ResolvedKeeper:
        """Built as above; without a finished keeper as the plans of this dataset would build it."""
        try:
            dataset = self.guidance.keeper.dataset
            run = find_keeper(FoldRun.of_trainer(self), dataset, dimension=self.dimension, warn=self.warn)
        except NoKeeperError:
            self.print_to_log_file("keeper: with random weights, built by this dataset's plans")
            return own_keeper(self.guided_grid())
        self.print_to_log_file(f"keeper: with random weights, built like {run.run.final_checkpoint}")
        return resolve(run, self.seen_by(run))

    def fill_network(self) -> None:
        """Random weights; 0, where a keeper's training has gamma begin, would leave most of them without effect."""
        super().fill_network()
        keeper = guidance_of(self.network).keeper
        if keeper.source_features is not None:
            for gamma in keeper.gamma:
                nn.init.ones_(gamma)

"""Stage 2: segmentation with an HR head, guided by the self-SR (paper sections 3.3 to 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.cases.turned import TurnedCases
from rehrseg_nnunet.config.rehrseg import BLOCK, ResolvedConfig, change_segmentation, load_config, with_thin_network
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.nnunet.other_loggers import log_elsewhere
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BaselineStart
from rehrseg_nnunet.prediction.fold_validation import predict_hr_validation
from rehrseg_nnunet.report.after_training import report_when_all_are_done
from rehrseg_nnunet.segmentation.distillation import Distillation
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.segmentation.hr_network import output_mode, set_output_mode
from rehrseg_nnunet.segmentation.loader import ExactPairs, HRPatchLoader, initial_lr_patch_size
from rehrseg_nnunet.segmentation.loss import REHRSegLoss
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher
from rehrseg_nnunet.segmentation.thin_input import add_thin_input, pads_as_background, thin_slices_seen
from rehrseg_nnunet.segmentation.transforms import ThinScales, build_training_transforms
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss
from rehrseg_nnunet.self_sr.frozen import SELF_SR, open_self_sr
from rehrseg_nnunet.slices.geometry import hr_patch_size


class REHRSegTrainer(PluginTrainer, BaselineStart, nnUNetTrainer):
    """nnU-Net with an HR head, trained on pseudo-HR cases; validation is nnU-Net's own, on the real thick slices.

    Settings: `segmentation` of the plans' `rehrseg` block. Needs stage 1 (SelfSRTrainer) of the same dataset, plans,
    configuration and fold, which is checked when training starts. Raises at construction for 2d, cascaded and
    isotropic configurations, before anything is written.

    With `input: thin` the network is one of thin slices behind an interpolation, planned for them (`ThinInput`); to
    nnU-Net it looks like one of thick slices.

    Attributes:
        changes: settings of `segmentation` (not `hr_head`) that a variant has instead of the plans'; all others are
            the plans'.
        normalises_uncertainty: U is brought to [0, 1] by each case's own extremes, as in Eq. 7; False for a U that
            means something as it is. Known when training starts.
    """

    loss: REHRSegLoss
    normalises_uncertainty: bool = True
    changes: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block, with the variant's changes."""
        self.config = change_segmentation(load_config(configuration), self.changes)

    def change_plans(
        self, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the network of thin slices in the place of that of thick ones, if the settings ask for it."""
        return with_thin_network(plans, configuration, self.config) if self.sees_thin_slices else plans

    @property
    def sees_thin_slices(self) -> bool:
        """Whether the network works on thin slices."""
        return self.config.segmentation.input == "thin"

    def configure(self) -> None:
        """Take the settings' learning rate."""
        self.learning_rate_from_trained = self.config.segmentation.learning_rate_from_trained
        if self.sees_thin_slices:
            self.without_baseline = (
                "no baseline fits thin slices (see -pretrained_weights): training starts from scratch"
            )

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plans' network; it returns what the stock network returns until its output mode is changed."""
        config = load_config(configuration_manager.configuration, purpose="prediction")
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        sizes = {"factor": config.factor, "teacher_channels": config.self_sr.base_features}
        if config.segmentation.input == "thin":
            return add_thin_input(
                network,
                **sizes,
                interpolation=config.segmentation.interpolation,
                interpolates_padding=pads_as_background(configuration_manager.configuration),
            )
        return add_hr_head(network, **sizes, config=config.segmentation.hr_head)

    def _build_loss(self) -> nn.Module:
        settings = self.config.segmentation
        stock = super()._build_loss()
        scales = getattr(stock, "weight_factors", None)
        hr_loss = build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=self.unlabelled,
        )
        if self._do_i_compile():  # as nnU-Net does with its own
            hr_loss.dc = cast("Any", torch.compile(hr_loss.dc))  # still a module
        lr_loss = self._weighted_loss(
            hr_loss.dc if settings.lr_dice_weight > 0 else None,
            weight_factors=None if self.sees_thin_slices else scales,
            dice_weight=settings.lr_dice_weight,
        )
        hr_scales = scales if self.sees_thin_slices else None
        return REHRSegLoss(
            lr_loss,
            hr_loss if hr_scales is None else DeepSupervisionWrapper(hr_loss, hr_scales),
            stock if hr_scales is None else DeepSupervisionWrapper(stock.loss, [1.0]),
            distillation=None,  # comes with stage 1, when training starts
            distillation_weight=settings.distillation_weight,
            lr_weight=self.config.lr_weight,
            uncertainty_strength=settings.uncertainty_strength if settings.uncertainty_weighting else 0.0,
            weighted_hr_loss=self._weighted_loss(hr_loss.dc, weight_factors=hr_scales) if self._weights_hr else None,
        )

    @property
    def _weights_hr(self) -> bool:
        settings = self.config.segmentation
        return settings.uncertainty_weighting and settings.hr_uncertainty_weighting

    def _weighted_loss(
        self, dice: nn.Module | None, *, weight_factors: Sequence[float] | None = None, dice_weight: float = 1.0
    ) -> UncertaintyWeightedLoss:
        return UncertaintyWeightedLoss(
            weight_factors,
            regions=self.label_manager.has_regions,
            ignore_label=self.unlabelled,
            dice=dice,
            dice_weight=dice_weight,
        )

    def baseline_checkpoint(self) -> Path | None:
        """The fold's finished baseline; none fits thin slices."""
        return None if self.sees_thin_slices else super().baseline_checkpoint()

    def on_train_start(self) -> None:
        """Check stage 1, choose the starting weights, then as in nnU-Net."""
        if self.changes:
            settings = ", ".join(f"{key} {getattr(self.config.segmentation, key)}" for key in self.changes)
            self.print_to_log_file(f"{type(self).__name__} sets, whatever the plans have: {settings}")
        self.open_pseudo_hr()
        self.start_from_trained()
        # nnU-Net saves the plans beside the model: they say how to build its HR head, whatever the defaults become
        configurations = self.plans_manager.plans["configurations"]
        block = change_segmentation(self.config, {"lr_weight": self.config.lr_weight}).model_dump(mode="json")
        configurations[self.configuration_name][BLOCK] = block
        super().on_train_start()

    def open_pseudo_hr(self) -> None:
        """Find and check this fold's stage 1: its cases, and its network, which becomes the teacher."""
        SELF_SR.require(FoldRun.of_trainer(self))  # before the network is built
        if not self.was_initialized:
            self.initialize()
        stage_1 = open_self_sr(
            FoldRun.of_trainer(self),
            self.config,
            self.do_split()[0],
            image_channels=self.num_input_channels,
            label_channels=self.label_manager.num_segmentation_heads,
            source_folder=self.preprocessed_dataset_folder,
        )
        self.pseudo_hr_folder = stage_1.cases_folder
        self.normalises_uncertainty = not stage_1.is_calibrated
        self.print_to_log_file(f"stage 1: {stage_1.checkpoint}")
        settings = self.config.segmentation
        if settings.distillation_weight > 0:
            self.loss.distillation = Distillation(
                SelfSRTeacher(stage_1.network.to(self.device), self.label_manager),
                kind=settings.distillation,
                pool=settings.affinity_pool,
                centre=settings.centre_features,
                label_manager=self.label_manager,
            )

    def pseudo_hr_cases(self, identifiers: list[str]) -> Cases:
        """The cases that are trained on: image (C + 1, r*D, H, W) with U in [0, 1] last, labels (1, r*D, H, W)."""
        return nnUNetDatasetBlosc2(str(self.pseudo_hr_folder), identifiers)

    def get_dataloaders(self) -> tuple:
        """Training patches from pseudo-HR cases at every phase; validation patches are nnU-Net's."""
        tr_keys, val_keys = self.do_split()
        return (
            start_augmenter(self._training_loader(tr_keys), device=self.device),
            start_augmenter(self._validation_loader(val_keys), device=self.device, validation=True),
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple:  # noqa: N802 (nnU-Net's name)
        """As in nnU-Net; a network of thin slices has the augmentation of its own patch."""
        if not self.sees_thin_slices:
            return super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        thick = self.configuration_manager
        patch_size = hr_patch_size(thick.patch_size, self.config.factor)
        self.configuration_manager = ConfigurationManager({**thick.configuration, "patch_size": patch_size})
        try:
            return super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        finally:
            self.configuration_manager = thick

    def _training_loader(self, keys: list[str]) -> HRPatchLoader:
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial_patch_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        initial_patch_size = initial_lr_patch_size(
            patch_size,
            self.config.factor,
            rotation=rotation,
            dummy_2d=dummy_2d,
            stock_initial_patch_size=(patch_size[0], *initial_patch_size[1:]),
        )
        return HRPatchLoader(
            self.pseudo_hr_cases(keys),
            self.batch_size,
            initial_patch_size,
            patch_size,
            self.label_manager,
            factor=self.config.factor,
            lr_dataset=self.dataset_class(self.preprocessed_dataset_folder, keys),
            true_lr_probability=self.config.segmentation.true_lr_probability,
            exact_pairs=self._exact_pairs(keys),
            normalise_uncertainty=self.normalises_uncertainty,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=self._training_transforms(rotation, dummy_2d, mirror_axes),
        )

    def _validation_loader(self, keys: list[str]) -> nnUNetDataLoader:
        return nnUNetDataLoader(
            self.dataset_class(self.preprocessed_dataset_folder, keys),
            self.batch_size,
            self.configuration_manager.patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=self.get_validation_transforms(
                self._lr_scales, regions=self._regions, ignore_label=self.label_manager.ignore_label
            ),
        )

    def _exact_pairs(self, keys: list[str]) -> ExactPairs | None:
        probability = self.config.segmentation.exact_pair_probability
        if probability == 0 or self.unlabelled is None:
            return None
        turned = TurnedCases(
            self.dataset_class(self.preprocessed_dataset_folder, keys),
            factor=self.config.factor,
            unlabelled=self.unlabelled,
        )
        return ExactPairs(turned, probability)

    @property
    def unlabelled(self) -> int | None:
        """The value of voxels without a label in training targets: the ignore label, or one more for exact pairs."""
        if self.label_manager.has_ignore_label or self.config.segmentation.exact_pair_probability == 0:
            return self.label_manager.ignore_label
        return max(self.label_manager.all_labels) + 1

    @property
    def _lr_scales(self) -> list[list[float]] | None:
        """Scales of what nnU-Net's validation and Eq. 7 compare: all outputs of thick slices."""
        scales = self._get_deep_supervision_scales()
        return [[1, 1, 1]] if self.sees_thin_slices and scales is not None else scales

    @property
    def _thin_scales(self) -> ThinScales | None:
        scales = self._get_deep_supervision_scales()
        if not self.sees_thin_slices or scales is None:
            return None
        slices = self.config.factor * self.configuration_manager.patch_size[0]
        return ThinScales(scales, thin_slices_seen(self.network, slices))

    @property
    def _regions(self) -> list | None:
        return self.label_manager.foreground_regions if self.label_manager.has_regions else None

    def _training_transforms(
        self, rotation: tuple[float, float], dummy_2d: bool, mirror_axes: tuple[int, ...]
    ) -> ComposeTransforms:
        stock = self.get_training_transforms(
            self.configuration_manager.patch_size,
            rotation,
            None,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm,
        )
        return build_training_transforms(
            stock,
            factor=self.config.factor,
            highest_label=max([*self.label_manager.all_labels, self.unlabelled or 0]),
            regions=self._regions,
            ignore_label=self.unlabelled,
            deep_supervision_scales=self._lr_scales,
            thin=self._thin_scales,
            sparse_labels=self.config.segmentation.exact_pair_probability > 0,
            hr_uncertainty=self._weights_hr,
            sees_thin_slices=self.sees_thin_slices,
            keeps_padding=self.sees_thin_slices and not pads_as_background(self.configuration_manager.configuration),
        )

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net, with the HR head on."""
        super().on_train_epoch_start()
        set_output_mode(self.network, "training")

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As in nnU-Net; the terms of the last step's loss are printed, and logged where nnU-Net logs to others."""
        super().on_train_epoch_end(train_outputs)
        terms = {name: float(value) for name, value in self.loss.components.items()}
        listed = ", ".join(f"{name} {value:.4f}" for name, value in terms.items())
        self.print_to_log_file(f"loss terms of the last step: {listed}")
        log_elsewhere(self.logger, {f"loss/{name}": value for name, value in terms.items()}, step=self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """As in nnU-Net, with the stock network's output."""
        super().on_validation_epoch_start()
        set_output_mode(self.network, "lr")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation on the thick slices, then the HR predictions of the same cases in `validation_hr`."""
        if isinstance(self.network, DistributedDataParallel):
            # no exchange of the HR head's buffer: a rank may have fewer cases than others, or none
            self.network.require_forward_param_sync = False
        with output_mode(self.network, "lr"):
            super().perform_actual_validation(save_probabilities)
        predict_hr_validation(self, hr_from=self._stored_config().segmentation.hr_source)
        report_when_all_are_done(self)

    def _stored_config(self) -> ResolvedConfig:
        """The settings that `rehrseg predict` reads: a model of an earlier version may lack some of today's keys."""
        file = Path(self.output_folder).parent / "plans.json"
        if not file.is_file():
            return self.config
        configuration = PlansManager(str(file)).get_configuration(self.configuration_name).configuration
        return load_config(configuration, purpose="prediction")

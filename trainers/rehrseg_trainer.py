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
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.config.rehrseg import BLOCK, change_segmentation, load_config
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.training_start import BASELINE, BaselineStart
from rehrseg_nnunet.prediction.fold_validation import predict_hr_validation
from rehrseg_nnunet.segmentation.distillation import Distillation
from rehrseg_nnunet.segmentation.hr_head import add_hr_head, output_mode, set_output_mode
from rehrseg_nnunet.segmentation.loader import HRPatchLoader, initial_lr_patch_size
from rehrseg_nnunet.segmentation.loss import REHRSegLoss
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher
from rehrseg_nnunet.segmentation.transforms import build_training_transforms
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss
from rehrseg_nnunet.self_sr.frozen import SELF_SR, open_self_sr


class REHRSegTrainer(PluginTrainer, BaselineStart, nnUNetTrainer):
    """nnU-Net with an HR head, trained on pseudo-HR cases; validation is nnU-Net's own, on the real thick slices.

    Settings: `segmentation` of the plans' `rehrseg` block. Needs stage 1 (SelfSRTrainer) of the same dataset, plans,
    configuration and fold, which is checked when training starts. Raises at construction for 2d, cascaded and
    isotropic configurations, before anything is written.

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

    def configure(self) -> None:
        """Take the settings' learning rate."""
        self.learning_rate_from_trained = self.config.segmentation.learning_rate_from_trained

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
        return add_hr_head(
            network,
            factor=config.factor,
            teacher_channels=config.self_sr.base_features,
            config=config.segmentation.hr_head,
        )

    def _build_loss(self) -> nn.Module:
        settings = self.config.segmentation
        stock = super()._build_loss()
        hr_loss = build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=self.label_manager.ignore_label,
        )
        if self._do_i_compile():  # as nnU-Net does with its own
            hr_loss.dc = cast("Any", torch.compile(hr_loss.dc))  # still a module
        lr_loss = self._weighted_loss(
            hr_loss.dc if settings.lr_dice_weight > 0 else None,
            weight_factors=getattr(stock, "weight_factors", None),
            dice_weight=settings.lr_dice_weight,
        )
        return REHRSegLoss(
            lr_loss,
            hr_loss,
            stock,
            distillation=None,  # comes with stage 1, when training starts
            distillation_weight=settings.distillation_weight,
            uncertainty_strength=settings.uncertainty_strength if settings.uncertainty_weighting else 0.0,
            weighted_hr_loss=self._weighted_loss(hr_loss.dc) if self._weights_hr else None,
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
            ignore_label=self.label_manager.ignore_label,
            dice=dice,
            dice_weight=dice_weight,
        )

    def baseline_checkpoint(self) -> Path | None:
        """The fold's finished nnUNetTrainer run, of the same length if there is one."""
        run = BASELINE.find(FoldRun.of_trainer(self))
        return None if run is None else run.final_checkpoint

    def on_train_start(self) -> None:
        """Check stage 1, choose the starting weights, then as in nnU-Net."""
        if self.changes:
            settings = ", ".join(f"{key} {getattr(self.config.segmentation, key)}" for key in self.changes)
            self.print_to_log_file(f"{type(self).__name__} sets, whatever the plans have: {settings}")
        self.open_pseudo_hr()
        self.start_from_trained()
        # nnU-Net saves the plans beside the model: they say how to build its HR head, whatever the defaults become
        configurations = self.plans_manager.plans["configurations"]
        configurations[self.configuration_name][BLOCK] = self.config.model_dump(mode="json")
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
            stock_initial_patch_size=initial_patch_size,
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
                self._get_deep_supervision_scales(), regions=self._regions, ignore_label=self.label_manager.ignore_label
            ),
        )

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
            highest_label=max([*self.label_manager.all_labels, self.label_manager.ignore_label or 0]),
            regions=self._regions,
            ignore_label=self.label_manager.ignore_label,
            deep_supervision_scales=self._get_deep_supervision_scales(),
            hr_uncertainty=self._weights_hr,
        )

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net, with the HR head on."""
        super().on_train_epoch_start()
        set_output_mode(self.network, "training")

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As in nnU-Net; the terms of the last step's loss are printed."""
        super().on_train_epoch_end(train_outputs)
        terms = ", ".join(f"{name} {float(value):.4f}" for name, value in self.loss.components.items())
        self.print_to_log_file(f"loss terms of the last step: {terms}")

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
        predict_hr_validation(self, hr_from=self.config.segmentation.hr_from)

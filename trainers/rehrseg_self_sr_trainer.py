"""Stage 1: self-supervised super-resolution of annotated thick-slice cases (paper sections 3.2 and 3.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn
from torch import distributed as dist

from rehrseg_nnunet.config import load_config
from rehrseg_nnunet.data.augmenters import start_augmenter
from rehrseg_nnunet.data.interpolated import write_interpolated_cases
from rehrseg_nnunet.data.label_channels import masked_value
from rehrseg_nnunet.data.pseudo_hr import PseudoHRManifest, PseudoHRStore, hash_weights
from rehrseg_nnunet.data.self_sr_loader import SelfSRLoader, intensity_transforms
from rehrseg_nnunet.evaluation.self_sr_report import report_self_sr
from rehrseg_nnunet.evaluation.self_sr_validation import EXTRA_METRICS, window_metrics
from rehrseg_nnunet.inference.pseudo_hr_export import MIN_LABEL_DICE, export_pseudo_hr
from rehrseg_nnunet.losses.self_sr import SelfSRLoss, build_label_loss
from rehrseg_nnunet.networks.hr_head import unwrap
from rehrseg_nnunet.networks.self_sr import build_self_sr_network
from rehrseg_nnunet.schedules import PhasedOneCycle

SPACING_TOLERANCE = 0.05


class SelfSRTrainer(nnUNetTrainer):
    """Learns to restore thin slices from pairs simulated in plane, then writes one pseudo-HR case per training case.

    Settings: `self_sr` of the plans' `rehrseg` block. Raises at construction for 2d, cascaded and isotropic
    configurations, before anything is written.
    """

    length: int | None = None

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        self.config = load_config(PlansManager(plans).get_configuration(configuration).configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.length or self.config.self_sr.epochs
        self.initial_lr = self.config.self_sr.learning_rate
        self.weight_decay = 0.0

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The self-SR network; nnU-Net's predictor (the only caller without deep supervision) is refused."""
        if not enable_deep_supervision:
            raise NotImplementedError(
                "SelfSRTrainer makes training data, it does not segment: predict with -tr REHRSegTrainer"
            )
        config = load_config(configuration_manager.configuration)
        return build_self_sr_network(config, num_input_channels, num_output_channels)

    @property
    def uncertainty_epochs(self) -> int:
        """Epochs of the second phase, the plans' share of however long this training is."""
        share = self.config.self_sr.uncertainty_epochs / self.config.self_sr.epochs
        return min(self.num_epochs - 1, max(round(share * self.num_epochs), int(share > 0)))

    def initialize(self) -> None:
        """Build everything as nnU-Net does and add this trainer's metrics to its log."""
        super().initialize()
        self._log_extra_metrics()

    def _log_extra_metrics(self) -> None:
        for metric in EXTRA_METRICS:
            self.logger.local_logger.my_fantastic_logging.setdefault(metric, [])

    def _set_batch_size_and_oversample(self) -> None:
        super()._set_batch_size_and_oversample()
        world_size = dist.get_world_size() if self.is_ddp else 1
        self.batch_size = max(1, self.config.self_sr.batch_size // world_size)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """The self-SR network has no deep supervision."""

    def _build_loss(self) -> nn.Module:
        label_loss = build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=masked_value(self.label_manager),
        )
        return SelfSRLoss(label_loss)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PhasedOneCycle]:
        """Adam with one cycle per phase."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = PhasedOneCycle(
            optimizer,
            peak=self.initial_lr,
            phase_epochs=(self.num_epochs - self.uncertainty_epochs, self.uncertainty_epochs),
            steps_per_epoch=self.num_iterations_per_epoch,
        )
        return optimizer, schedule

    def get_dataloaders(self) -> tuple:
        """Loaders of windows from interpolated cases, which are written first where they are missing."""
        tr_keys, val_keys = self.do_split()
        if self.local_rank == 0:
            self._write_interpolated([*tr_keys, *val_keys])
        if self.is_ddp:
            dist.barrier()
        folder = str(self._write_interpolated([]))
        tone, noise = intensity_transforms(self._stock_training_transforms())
        axes = self.config.self_sr.simulated_axes
        held_out = tuple({"x", "y"} - set(axes)) or axes  # a held-out axis shows when the anatomy is learnt by heart
        common = {
            "config": self.config.self_sr,
            "factor": self.config.factor,
            "label_manager": self.label_manager,
            "oversample_foreground_percent": self.oversample_foreground_percent,
        }
        train = SelfSRLoader(
            self.dataset_class(folder, tr_keys),
            self.batch_size,
            axes=axes,
            augment=True,
            tone=tone,
            noise=noise,
            **common,
        )
        val = SelfSRLoader(
            self.dataset_class(folder, val_keys), self.batch_size, axes=held_out, augment=False, **common
        )
        return (
            start_augmenter(train, device=self.device),
            start_augmenter(val, device=self.device, validation=True),
        )

    def _write_interpolated(self, identifiers: list[str]) -> Path:
        dataset = self.dataset_class(self.preprocessed_dataset_folder, identifiers)
        return write_interpolated_cases(
            dataset,
            identifiers,
            factor=self.config.factor,
            spacing_mm=self.configuration_manager.spacing,
            label_manager=self.label_manager,
            patch_size=self._hr_patch_size,
        )

    @property
    def _hr_patch_size(self) -> tuple[int, int, int]:
        slices, *in_plane = self.configuration_manager.patch_size
        return (slices * self.config.factor, *in_plane)

    def _stock_training_transforms(self) -> ComposeTransforms:
        rotation, dummy_2d, _, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return self.get_training_transforms(
            self.configuration_manager.patch_size, rotation, None, mirror_axes, dummy_2d
        )

    def on_train_start(self) -> None:
        """As in nnU-Net; cases whose slice spacing is not the plans' are named."""
        super().on_train_start()
        self._name_resampled_cases()

    def _name_resampled_cases(self) -> None:
        tr_keys, _ = self.do_split()
        dataset = self.dataset_class(self.preprocessed_dataset_folder, tr_keys)
        z = self.plans_manager.transpose_forward[0]
        planned = self.configuration_manager.spacing[0]
        for key in tr_keys:
            spacing = dataset.load_case(key)[3]["spacing"][z]
            if abs(spacing / planned - 1) > SPACING_TOLERANCE:
                self.print_to_log_file(
                    f"WARNING: {key} has slices of {spacing:.4g} mm, the plans {planned:.4g} mm: nnU-Net's resampling "
                    "copied or dropped slices; rehrseg plan --z-spacing median --order-z 1 avoids it"
                )

    def on_train_epoch_start(self) -> None:
        """Choose the phase, then as in nnU-Net."""
        self.loss.use_uncertainty = self.current_epoch >= self.num_epochs - self.uncertainty_epochs
        self._step = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, with a learning rate per step."""
        self.lr_scheduler.step(self.current_epoch, self._step)
        self._step += 1
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """Loss, label overlap for nnU-Net's pseudo Dice, PSNR, SSIM and Spearman of U with the error."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = [t.to(self.device, non_blocking=True) for t in batch["target"]]
        with autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        metrics = window_metrics(
            output, target, regions=self.label_manager.has_regions, masked=masked_value(self.label_manager)
        )
        return {"loss": loss.detach().cpu().numpy(), **metrics}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log nnU-Net's values and this trainer's own."""
        collated = collate_outputs(val_outputs)
        for metric in EXTRA_METRICS:
            value = float(np.nanmean(collated[metric]))
            if self.is_ddp:
                values = [None] * dist.get_world_size()
                dist.all_gather_object(values, value)
                value = float(np.nanmean(values))
            self.logger.log(metric, value, self.current_epoch)
        super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        """Print this trainer's metrics beside nnU-Net's."""
        values = {metric: round(self.logger.get_value(metric, step=-1), 4) for metric in EXTRA_METRICS}
        self.print_to_log_file(", ".join(f"{metric} {value}" for metric, value in values.items()))
        super().on_epoch_end()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net; checkpoints of older logs get this trainer's metrics."""
        super().load_checkpoint(filename_or_checkpoint)
        self._log_extra_metrics()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the pseudo-HR cases of this fold's training cases, then report on the validation cases."""
        network = unwrap(self.network).eval()
        tr_keys, val_keys = self.do_split()
        store = PseudoHRStore(self.output_folder)
        manifest = self.pseudo_hr_manifest(network)
        if self.local_rank == 0:
            store.open_or_create(manifest)
        if self.is_ddp:
            dist.barrier()
            store.open_or_create(manifest)
        world_size = dist.get_world_size() if self.is_ddp else 1
        agreement = export_pseudo_hr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, tr_keys),
            sorted(tr_keys)[self.local_rank :: world_size],
            store,
            label_manager=self.label_manager,
            label_profile=self.config.self_sr.label_profile,
            hr_patch_size=self._hr_patch_size,
        )
        for key, score in agreement.items():
            if score < MIN_LABEL_DICE:
                self.print_to_log_file(
                    f"WARNING: {key}: its pseudo-HR labels, made thick again, have Dice {score:.3f} with its own labels"
                )
        if self.is_ddp:
            dist.barrier()
        if self.local_rank == 0:
            self.print_to_log_file(f"{len(store.complete_cases())} pseudo-HR cases are in {store.folder}")
            self._report(network, val_keys)

    def pseudo_hr_manifest(self, network: nn.Module) -> PseudoHRManifest:
        """What identifies pseudo-HR cases that this fold's network makes."""
        return PseudoHRManifest(
            factor=self.config.factor,
            dataset_name=self.plans_manager.dataset_name,
            plans_name=self.plans_manager.plans_name,
            configuration=self.configuration_name,
            fold=self.fold,
            trainer=type(self).__name__,
            weights_sha256=hash_weights(network.state_dict()),
        )

    def _report(self, network: nn.Module, val_keys: list[str]) -> None:
        raw = Path(str(nnUNet_raw), self.plans_manager.dataset_name) if nnUNet_raw.is_set() else None
        report = report_self_sr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, val_keys),
            self.dataset_class(str(self._write_interpolated(val_keys)), val_keys),
            plans_manager=self.plans_manager,
            configuration_manager=self.configuration_manager,
            dataset_json=self.dataset_json,
            raw_folder=raw,
            figure_folder=Path(self.output_folder),
            label_profile=self.config.self_sr.label_profile,
        )
        save_json(report.as_dict(), str(Path(self.output_folder) / "self_sr_report.json"))
        self.print_to_log_file(f"\n{report.as_table()}", add_timestamp=False)

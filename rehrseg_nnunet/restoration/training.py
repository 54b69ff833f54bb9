"""What the trainings that restore thin slices have in common: see `RestorationTraining`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import autocast, nn
from torch import distributed as dist

from rehrseg_nnunet.cases.store import PseudoHRManifest, PseudoHRStore, hash_weights
from rehrseg_nnunet.config.rehrseg import RehrsegConfig, SelfSRConfig, SMOREConfig
from rehrseg_nnunet.nnunet.fold_run import is_saved, raw_folder
from rehrseg_nnunet.nnunet.label_channels import masked_value
from rehrseg_nnunet.nnunet.schedules import PhasedOneCycle
from rehrseg_nnunet.restoration.validation import IMAGE_METRICS, restoration_metrics
from rehrseg_nnunet.segmentation.hr_head import unwrap
from rehrseg_nnunet.self_sr.loss import build_label_loss
from rehrseg_nnunet.slices.geometry import hr_patch_size


class RestorationTraining:
    """Mixin for nnU-Net trainers whose network restores thin slices, image and labels, and then writes cases with it.

    Adam with one cycle per phase, a learning rate per step, a batch size of its own, image metrics in nnU-Net's log,
    and the export of cases in place of nnU-Net's validation (`--val` does it again).

    Attributes:
        config: the plans' `rehrseg` block.
        settings: the part of it that this training follows.
        extra_metrics: what `restoration_metrics` gives for the network's output.
        store_name: folder of the fold that the cases are written to.
        stored: the cases, in messages.
        needed_by: who reads them, in messages.
        cases_between_barriers: cases that a rank of a DDP training writes before it waits for the others.
    """

    config: RehrsegConfig
    settings: SelfSRConfig | SMOREConfig
    extra_metrics: tuple[str, ...] = IMAGE_METRICS
    store_name: str
    stored: str
    needed_by: str
    cases_between_barriers: int = 4

    @property
    def phase_epochs(self) -> Sequence[int]:
        """Epochs of each phase of the training."""
        return (self.num_epochs,)

    def cases_to_write(self) -> list[str]:
        """Identifiers of the cases that are written after training."""
        raise NotImplementedError

    def write_cases(self, network: nn.Module, store: PseudoHRStore, identifiers: Sequence[str]) -> None:
        """Write those of some cases that are missing; each rank of a DDP training gets its share."""
        raise NotImplementedError

    def report(self, network: nn.Module) -> None:
        """Say how good the network is."""
        raise NotImplementedError

    def initialize(self) -> None:
        """Build everything as nnU-Net does and add the image metrics to its log."""
        super().initialize()
        self._log_extra_metrics()

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net; checkpoints of older logs get the image metrics."""
        super().load_checkpoint(filename_or_checkpoint)
        self._log_extra_metrics()

    def _log_extra_metrics(self) -> None:
        for metric in self.extra_metrics:
            self.logger.local_logger.my_fantastic_logging.setdefault(metric, [])

    def _set_batch_size_and_oversample(self) -> None:
        """nnU-Net's rule, for the settings' batch in place of the plan's.

        Ranks get equal shares, rounded down: nnU-Net's batch Dice gathers samples over ranks, which must be as many.
        """
        world_size = dist.get_world_size() if self.is_ddp else 1
        batch_size = max(1, self.settings.batch_size // world_size) * world_size
        planned = self.configuration_manager
        self.configuration_manager = ConfigurationManager({**planned.configuration, "batch_size": batch_size})
        try:
            super()._set_batch_size_and_oversample()
        finally:
            self.configuration_manager = planned

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """These networks have no deep supervision."""

    def label_loss(self) -> DC_and_CE_loss | DC_and_BCE_loss:
        """nnU-Net's label loss, which leaves out what lies outside the volume."""
        return build_label_loss(
            self.label_manager,
            batch_dice=self.configuration_manager.batch_dice,
            ddp=self.is_ddp,
            ignore_index=masked_value(self.label_manager),
        )

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PhasedOneCycle]:
        """Adam with one cycle per phase."""
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        schedule = PhasedOneCycle(
            optimizer,
            peak=self.initial_lr,
            phase_epochs=self.phase_epochs,
            steps_per_epoch=self.num_iterations_per_epoch,
        )
        return optimizer, schedule

    @property
    def raw_folder(self) -> Path | None:
        """The dataset's folder in nnUNet_raw, None where that is not set."""
        return raw_folder(self.plans_manager.dataset_name)

    @property
    def hr_patch_size(self) -> tuple[int, int, int]:
        """The plan's patch in HR voxels, by which cases are stored in chunks."""
        return hr_patch_size(self.configuration_manager.patch_size, self.config.factor)

    def on_train_epoch_start(self) -> None:
        """As in nnU-Net."""
        self._step = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """As in nnU-Net, with a learning rate per step."""
        self.lr_scheduler.step(self.current_epoch, self._step)
        self._step += 1
        return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """Loss, label overlap for nnU-Net's pseudo Dice, and the image metrics."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = [t.to(self.device, non_blocking=True) for t in batch["target"]]
        with autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        metrics = restoration_metrics(
            output, target, regions=self.label_manager.has_regions, masked=masked_value(self.label_manager)
        )
        return {"loss": loss.detach().cpu().numpy(), **metrics}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log nnU-Net's values and the image metrics."""
        collated = collate_outputs(val_outputs)
        for metric in self.extra_metrics:
            value = float(np.nanmean(collated[metric]))
            if self.is_ddp:
                values = [None] * dist.get_world_size()
                dist.all_gather_object(values, value)
                value = float(np.nanmean(values))
            self.logger.log(metric, value, self.current_epoch)
        super().on_validation_epoch_end(val_outputs)

    def on_epoch_end(self) -> None:
        """Print the image metrics beside nnU-Net's."""
        values = {metric: round(self.logger.get_value(metric, step=-1), 4) for metric in self.extra_metrics}
        self.print_to_log_file(", ".join(f"{metric} {value}" for metric, value in values.items()))
        super().on_epoch_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the cases, then report."""
        weights = hash_weights(unwrap(self.network).state_dict())
        if self.disable_checkpointing and not is_saved(Path(self.output_folder), weights, remedy="remove it"):
            self.print_to_log_file(
                f"no {self.stored} are written: {self.needed_by} needs the network that made them, which "
                "--disable_checkpointing does not keep"
            )
            return
        store = PseudoHRStore(self.output_folder, name=self.store_name)
        with store.exclusive() if self.local_rank == 0 else nullcontext():
            self._export(store)

    def _export(self, store: PseudoHRStore) -> None:
        network = unwrap(self.network).eval()
        manifest = self.manifest(hash_weights(network.state_dict()))
        if self.local_rank == 0:
            store.open_or_create(manifest)
        if self.is_ddp:
            dist.barrier()
            store.open_created(manifest)
        identifiers = sorted(self.cases_to_write())
        if self.is_ddp:
            self._write_in_turns(network, store, identifiers)
        else:
            self.write_cases(network, store, identifiers)
        if self.local_rank == 0:
            self.print_to_log_file(f"{len(store.complete_cases())} {self.stored} are in {store.folder}")
            self.report(network)

    def _write_in_turns(self, network: nn.Module, store: PseudoHRStore, identifiers: Sequence[str]) -> None:
        """Each rank a share, with barriers between: one that waits longer than the timeout would end the job."""
        world_size = dist.get_world_size()
        together = self.cases_between_barriers * world_size
        for start in range(0, len(identifiers), together):
            self.write_cases(network, store, identifiers[start : start + together][self.local_rank :: world_size])
            dist.barrier()

    def manifest(self, weights_sha256: str) -> PseudoHRManifest:
        """What identifies cases that this fold's network makes."""
        return PseudoHRManifest.of_trainer(self, weights_sha256=weights_sha256)

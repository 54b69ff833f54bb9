"""What the trainings of teacher and keeper have in common: see `PairedTraining`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import distributed as dist

from rehrseg_nnunet.cases.case_checks import RawFiles
from rehrseg_nnunet.config.guidance import BLOCK, change_config, load_config
from rehrseg_nnunet.guided.image_scores import METRICS, SCORED_PATCHES, SCORED_STEPS, batch_scores, mean_of_defined
from rehrseg_nnunet.guided.intensity_range import measure_pairs
from rehrseg_nnunet.guided.networks import CHANNELS_KEY, planned_shape, wanted_levels
from rehrseg_nnunet.guided.pair_checks import registration_doubts
from rehrseg_nnunet.guided.pair_grids import check_grids
from rehrseg_nnunet.guided.pair_transforms import training_transforms, validation_transforms
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.folders import raw_folder
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.schedules import ConstantRate, PhasedOneCycle, PolynomialRate, RatePerStep
from rehrseg_nnunet.restoration.image_training import ImageTraining


@dataclass(frozen=True)
class _Settings:
    epochs: int
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class PairBatch:
    """A batch of pairs on the training's device.

    Attributes:
        source: (B, S, *size).
        privileged: (B, P, *size), with its own intensities.
        inside: (B, 1, *size), true where there is data.
    """

    source: torch.Tensor
    privileged: torch.Tensor
    inside: torch.Tensor


class PairedTraining(ImageTraining):
    """Mixin for nnU-Net trainers of paired datasets, before `PluginTrainer` in a trainer's bases.

    Their networks give images and are trained with Adam; SSIM stands in nnU-Net's log where it has its pseudo Dice, so
    `checkpoint_best.pth` is that of the best SSIM. The network's weights hold `image_range`, the robust range of the
    privileged channels, which losses and scores take for their unit.

    Attributes:
        stage: "teacher" or "keeper", the part of the block that says how long this training is.
        changes: settings that a variant has instead of the plans', nested as in the block.
        augments_intensities: whether the source's intensities are augmented.
    """

    stage: ClassVar[str]
    changes: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    extra_metrics: tuple[str, ...] = METRICS
    augments_intensities: bool = False
    _resumed = False
    _validation_steps: int = 0  # of this epoch, so far

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block, with the variant's changes."""
        self.config = change_config(load_config(configuration), self.changes)
        epochs = getattr(self.config, self.stage).epochs
        self.settings = _Settings(epochs, self.config.learning_rate, self.config.batch_size)

    def change_plans(
        self, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Put the settings and the channels' roles into the plans: networks are built from these alone.

        Raises:
            NotImplementedError: a network without stages.
            ValueError: no privileged channels or none but these, or a patch that is too small.
        """
        self.channels = PairedChannels.of_dataset(dataset_json)
        own = plans["configurations"][configuration]
        own[BLOCK] = self.config.model_dump(mode="json")
        own[CHANNELS_KEY] = {"source": list(self.channels.source), "privileged": list(self.channels.privileged)}
        planned_shape(PlansManager(plans).get_configuration(configuration).configuration)
        return plans

    def schedule(self, optimizer: Any) -> RatePerStep:
        """The settings' schedule."""
        peak, epochs, steps = self.initial_lr, self.num_epochs, self.num_iterations_per_epoch
        if self.config.schedule == "constant":
            return ConstantRate(optimizer, learning_rate=peak)
        if self.config.schedule == "polynomial":
            return PolynomialRate(optimizer, peak=peak, epochs=epochs, steps_per_epoch=steps)
        return PhasedOneCycle(optimizer, peak=peak, phase_epochs=[epochs], steps_per_epoch=steps)

    @property
    def image_range(self) -> torch.Tensor:
        """(P,), the buffer of the network's weights."""
        return unwrap(self.network).get_buffer("image_range")

    def set_image_range(self, widths: Sequence[float] | torch.Tensor) -> None:
        """Set the unit of losses and scores."""
        for buffer in (self.image_range, self.loss.get_buffer("image_range")):
            buffer.copy_(torch.as_tensor(widths))

    def check_grids(self) -> None:
        """Refuse pairs on different grids, as far as the raw dataset is at hand; says what was not compared."""
        folder = raw_folder(self.plans_manager.dataset_name)
        try:
            files = RawFiles.of_dataset(folder).files
        except (OSError, ValueError) as error:  # of raw data, which this training does not need
            self.print_to_log_file(f"WARNING: the grids of the two scans are not compared: {error}")
            return
        cases = [case for part in self.do_split() for case in part]
        images = {case: files[case][:-1] for case in cases if case in files}  # without the label
        reader = self.plans_manager.image_reader_writer_class
        unknown = [case for case in cases if case not in images] + check_grids(images, reader=reader)
        if unknown:
            where = "nnUNet_raw is not set" if folder is None else f"there is no header to read in {folder}"
            self.print_to_log_file(f"WARNING: the grids of the two scans are not compared: {listed(unknown)} ({where})")

    def measure_image_range(self) -> None:
        """Measure the range on the training cases, and name those that cannot teach anything or may teach wrong things.

        All DDP ranks must ask.
        """
        found: list[Any] = [None]
        if self.local_rank == 0:
            tr_keys, _ = self.do_split()
            dataset = self.dataset_class(self.preprocessed_dataset_folder, tr_keys)
            measured = measure_pairs(dataset, tr_keys, self.channels)
            found = [measured.widths]
            for key in measured.constant:
                self.print_to_log_file(f"WARNING: {key} has a constant channel, nothing can be learnt from it")
            for doubt in registration_doubts(measured.correlations):
                self.print_to_log_file(f"WARNING: {doubt}")
        if self.is_ddp:
            dist.broadcast_object_list(found)
        self.set_image_range(found[0])
        self.print_to_log_file(f"range of the privileged channels: {', '.join(f'{width:.4g}' for width in found[0])}")

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net."""
        super().load_checkpoint(filename_or_checkpoint)
        self._resumed = True
        self.set_image_range(self.image_range)

    def on_train_start(self) -> None:
        """As in nnU-Net; says what stands in its log for the Dice."""
        self.print_to_log_file("this network gives images: where nnU-Net says pseudo Dice, here it is their SSIM")
        self._say_levels()
        super().on_train_start()

    def _say_levels(self) -> None:
        configuration = self.configuration_manager.configuration
        levels, wanted = planned_shape(configuration).levels, wanted_levels(configuration)
        if levels < wanted:
            self.print_to_log_file(
                f"patches of {list(configuration['patch_size'])} have room for {levels} of the {wanted} levels that "
                "teacher and keeper would have"
            )

    def get_dataloaders(self) -> tuple:
        """nnU-Net's loaders, with the privileged channels among the targets."""
        tr_keys, val_keys = self.do_split()
        patch_size = self.configuration_manager.patch_size
        rotation, dummy_2d, initial, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        masked = self.configuration_manager.use_mask_for_norm
        stock = self.get_training_transforms(
            patch_size,
            rotation,
            None,
            mirror_axes,
            dummy_2d,
            use_mask_for_norm=[masked[channel] for channel in self.channels.source],
        )
        augment = training_transforms(stock, self.channels, masked=masked, intensities=self.augments_intensities)
        train = self._loader(tr_keys, initial, augment)
        val = self._loader(val_keys, patch_size, validation_transforms(self.channels, masked=masked))
        return (
            start_augmenter(train, device=self.device),
            start_augmenter(val, device=self.device, validation=True),
        )

    def _loader(self, keys: list[str], initial_patch_size: Any, transforms: Any) -> nnUNetDataLoader:
        return nnUNetDataLoader(
            self.dataset_class(self.preprocessed_dataset_folder, keys),
            self.batch_size,
            initial_patch_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            probabilistic_oversampling=self.probabilistic_oversampling,
            transforms=transforms,
        )

    def on_device(self, batch: Mapping[str, Any]) -> PairBatch:
        """A batch of the loaders on the training's device."""
        tensors = (batch["data"], *batch["target"])
        return PairBatch(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))

    def on_validation_epoch_start(self) -> None:
        """As in nnU-Net."""
        self._validation_steps = 0
        super().on_validation_epoch_start()

    def score(self, pairs: PairBatch, image: torch.Tensor) -> dict[str, np.ndarray]:
        """PSNR and SSIM of a validation step, for the first steps of an epoch."""
        patches = SCORED_PATCHES if self._validation_steps < SCORED_STEPS else 0
        self._validation_steps += 1
        return batch_scores(pairs.privileged, image, pairs.inside, self.image_range, patches=patches)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """Log loss and image metrics, SSIM in place of nnU-Net's pseudo Dice."""
        collated = collate_outputs(val_outputs)
        means = {name: self.mean_over_ranks(mean_of_defined(collated[name])) for name in ("loss", *self.extra_metrics)}
        similarity = float(np.nan_to_num(means["ssim"]))  # nan, of constant patches, would be the best for ever
        self.logger.log("mean_fg_dice", similarity, self.current_epoch)
        self.logger.log("dice_per_class_or_region", [similarity], self.current_epoch)
        self.logger.log("val_losses", means.pop("loss"), self.current_epoch)
        for metric, value in means.items():
            self.logger.log(metric, value, self.current_epoch)

"""Stage 1: self-supervised super-resolution of annotated thick-slice cases (paper sections 3.2 and 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import JsonValue
from torch import distributed as dist
from torch import nn

from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.checkpoints import DAMAGED
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.other_loggers import summarise_elsewhere
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.report.after_training import report_fold
from rehrseg_nnunet.restoration.export import CaseExport, refuse_segmenting
from rehrseg_nnunet.restoration.training import ImageToImageTraining
from rehrseg_nnunet.restoration.validation import UNCERTAIN_IMAGE_METRICS
from rehrseg_nnunet.self_sr.calibrate import calibrate, stored_calibration
from rehrseg_nnunet.self_sr.calibration import Calibration
from rehrseg_nnunet.self_sr.export import MIN_LABEL_DICE, STORE_NAME, ExportOptions, export_pseudo_hr
from rehrseg_nnunet.self_sr.frozen import check_version
from rehrseg_nnunet.self_sr.interpolated_source import InterpolatedSource, choose_source
from rehrseg_nnunet.self_sr.loader import SelfSRLoader, intensity_transforms
from rehrseg_nnunet.self_sr.loss import SelfSRLoss
from rehrseg_nnunet.self_sr.network import METHOD_VERSION, SelfSRNetwork, build_self_sr_network
from rehrseg_nnunet.self_sr.report import report_self_sr

SPACING_TOLERANCE = 0.05


class SelfSRTrainer(CaseExport, ImageToImageTraining, PluginTrainer, nnUNetTrainer):
    """Learns to restore thin slices from pairs simulated in plane, then writes one pseudo-HR case per training case.

    Settings: `self_sr` of the plans' `rehrseg` block. Raises at construction for 2d, cascaded and isotropic
    configurations, before anything is written.
    """

    extra_metrics = UNCERTAIN_IMAGE_METRICS
    store_name = STORE_NAME
    stored = "pseudo-HR cases"
    needed_by = "stage 2"

    _calibrations: Mapping[str, Calibration | None] = MappingProxyType({})  # of U, by the hash of the weights

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block."""
        self.config = load_config(configuration)
        self.settings = self.config.self_sr

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> SelfSRNetwork:
        """The self-SR network; nnU-Net's predictor (the only caller without deep supervision) is refused."""
        refuse_segmenting("SelfSRTrainer", enable_deep_supervision=enable_deep_supervision)
        config = load_config(configuration_manager.configuration, purpose="prediction")
        return build_self_sr_network(config, num_input_channels, num_output_channels)

    def load_checkpoint(self, filename_or_checkpoint: dict | str) -> None:
        """As in nnU-Net.

        Raises:
            ValueError: the file is damaged, or of another version of stage 1.
        """
        if isinstance(filename_or_checkpoint, str):
            run = FoldRun.of_trainer(self)
            check_version(Path(filename_or_checkpoint), command=run.command, damaged=DAMAGED)
        super().load_checkpoint(filename_or_checkpoint)

    @property
    def uncertainty_epochs(self) -> int:
        """Epochs of the second phase, the plans' share of however long this training is."""
        share = self.settings.uncertainty_epochs / self.settings.epochs
        return min(self.num_epochs - 1, max(round(share * self.num_epochs), int(share > 0)))

    @property
    def phase_epochs(self) -> tuple[int, int]:
        """Epochs before Eq. 6 is added, and with it."""
        return self.num_epochs - self.uncertainty_epochs, self.uncertainty_epochs

    def _build_loss(self) -> nn.Module:
        return SelfSRLoss(self.label_loss(), error=self.settings.uncertainty_error)

    def get_dataloaders(self) -> tuple:
        """Loaders of windows from interpolated cases, which are written first where they are missing."""
        tr_keys, val_keys = self.do_split()
        folder = self.interpolated.cases(sorted({*tr_keys, *val_keys})).source_folder
        self.print_to_log_file(f"interpolated cases: {folder} ({self.interpolated.title})")
        tone, noise = intensity_transforms(self._stock_training_transforms())
        axes = self.settings.simulated_axes
        held_out = tuple({"x", "y"} - set(axes)) or axes  # a held-out axis shows when the anatomy is learnt by heart
        common = {
            "config": self.settings,
            "factor": self.config.factor,
            "label_manager": self.label_manager,
            "spacing_mm": PlannedDataset.of_trainer(self).spacing_mm,
            "oversample_foreground_percent": self.oversample_foreground_percent,
        }
        train = SelfSRLoader(
            nnUNetDatasetBlosc2(folder, tr_keys),
            self.batch_size,
            axes=axes,
            augment=True,
            tone=tone,
            noise=noise,
            **common,
        )
        val = SelfSRLoader(
            nnUNetDatasetBlosc2(folder, val_keys), self.batch_size, axes=held_out, augment=False, **common
        )
        return (
            start_augmenter(train, device=self.device),
            start_augmenter(val, device=self.device, validation=True),
        )

    @cached_property
    def interpolated(self) -> InterpolatedSource:
        """Where near-isotropic cases come from: SMORE if this fold has it, which `export.image` smore requires.

        Raises:
            FileNotFoundError: SMORE is required, and missing or without some cases.
            ValueError: SMORE is required, and its cases do not fit.
        """
        identifiers = sorted({key for keys in self.do_split() for key in keys})
        return choose_source(
            FoldRun.of_trainer(self),
            self.dataset_class(self.preprocessed_dataset_folder, identifiers),
            identifiers,
            PlannedDataset.of_trainer(self),
            smore_required=self.settings.export.image == "smore",
            log=self.print_to_log_file,
        )

    def _smore_images(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2 | None:
        """SMORE's cases if pseudo-HR cases take their images, else None."""
        return self.interpolated.cases(identifiers) if self.settings.export.image == "smore" else None

    def _stock_training_transforms(self) -> ComposeTransforms:
        rotation, dummy_2d, _, mirror_axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return self.get_training_transforms(
            self.configuration_manager.patch_size, rotation, None, mirror_axes, dummy_2d
        )

    def on_train_start(self) -> None:
        """As in nnU-Net; checks what the export needs and names cases whose slice spacing is not the plans'."""
        self._smore_images(self.cases_to_write())
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
        super().on_train_epoch_start()

    def cases_to_write(self) -> list[str]:
        """Training cases: stage 2 validates on real ones."""
        return self.do_split()[0]

    def write_cases(self, network: SelfSRNetwork, store: CaseStore, identifiers: Sequence[str]) -> None:
        """Super-resolve the cases; one whose pseudo labels do not agree with its own labels is named."""
        agreement = export_pseudo_hr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, list(identifiers)),
            identifiers,
            store,
            PlannedDataset.of_trainer(self),
            # of all cases on every DDP rank: none may write others than the manifest says
            options=self._export_options(self.cases_to_write()),
        )
        for key, score in agreement.items():
            if score < MIN_LABEL_DICE:
                self.print_to_log_file(
                    f"WARNING: {key}: its pseudo-HR labels, made thick again, have Dice {score:.3f} with its own labels"
                )

    def made_with(self) -> dict[str, JsonValue]:
        """Version, factor, export settings, how U was calibrated, and SMORE's network if its images are taken.

        Raises:
            FileNotFoundError: this fold has no SMORE, or not all of its cases.
            ValueError: its cases do not fit.
        """
        self._smore_images(self.cases_to_write())  # cases of another header are removed, so these must be there
        export = self.settings.export
        smore = self.interpolated.fingerprint() if export.image == "smore" else {}
        made_with: dict[str, JsonValue] = {
            "method_version": METHOD_VERSION,
            "factor": self.config.factor,
            "export": export.model_dump(mode="json"),
            **smore,
        }
        if (calibration := self.calibration()) is not None:
            made_with["calibration"] = calibration.as_json()
        return made_with

    def calibration(self) -> Calibration | None:
        """Of U, measured on the validation cases for the network as it is; None where U is not calibrated.

        All DDP ranks must ask. A method: nnU-Net reads every property when training starts, on the first rank alone.
        """
        if self.settings.export.uncertainty == "normalised":
            return None
        network = unwrap(self.network)
        weights = hash_weights(network.state_dict())
        if weights not in self._calibrations:
            found: list[Calibration | None] = [None]
            if self.local_rank == 0:
                stored = stored_calibration(FoldRun.of_trainer(self), network, self.settings.export)
                found = [stored or self._calibrate(network.eval())]
            if self.is_ddp:
                dist.broadcast_object_list(found)  # ranks may round differently, and one header is for all
            self._calibrations = {weights: found[0]}
        return self._calibrations[weights]

    def _calibrate(self, network: Any) -> Calibration:
        _, val_keys = self.do_split()
        interpolated, planned = self.interpolated.cases(val_keys), PlannedDataset.of_trainer(self)
        return calibrate(network, interpolated, planned, config=self.settings.export)

    def _export_options(self, identifiers: Sequence[str]) -> ExportOptions:
        return ExportOptions(
            self.settings.export, smore=self._smore_images(identifiers), calibration=self.calibration()
        )

    def report(self, network: SelfSRNetwork) -> None:
        """Compare with the truth where it is known, and draw a few validation cases."""
        _, val_keys = self.do_split()
        report = report_self_sr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, val_keys),
            self.interpolated.cases(val_keys),
            PlannedDataset.of_trainer(self),
            figure_folder=Path(self.output_folder),
            options=self._export_options(val_keys),
        )
        save_json(report.as_dict(), str(Path(self.output_folder) / "self_sr_report.json"))
        self.print_to_log_file(f"\n{report.as_table()}", add_timestamp=False)
        summarise_elsewhere(self.logger, report.as_scores())
        report_fold(self)

"""SMORE, the learnt initialisation of stage 1 (paper sections 3.2 and 4.4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from pydantic import JsonValue
from torch import nn

from rehrseg_nnunet.cases.case_checks import check_cases
from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.plugin_trainer import PluginTrainer
from rehrseg_nnunet.restoration.export import CaseExport, refuse_segmenting
from rehrseg_nnunet.restoration.training import ImageToImageTraining
from rehrseg_nnunet.smore.export import STORE_NAME, export_smore
from rehrseg_nnunet.smore.loader import SMORELoader
from rehrseg_nnunet.smore.loss import SMORELoss
from rehrseg_nnunet.smore.network import WDSR, build_wdsr
from rehrseg_nnunet.smore.report import report_smore


class SMORETrainer(CaseExport, ImageToImageTraining, PluginTrainer, nnUNetTrainer):
    """Learns to restore in-plane slices whose rows were made thick, then interpolates every case of the fold with it.

    SelfSRTrainer of the same dataset, plans, configuration and fold is then trained on these cases. Settings: `smore`
    of the plans' `rehrseg` block. Raises at construction for 2d, cascaded and isotropic configurations, before anything
    is written.
    """

    store_name = STORE_NAME
    stored = "cases interpolated by SMORE"
    needed_by = "stage 1"

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the block."""
        self.config = load_config(configuration)
        self.settings = self.config.smore

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> WDSR:
        """SMORE's network; nnU-Net's predictor (the only caller without deep supervision) is refused."""
        refuse_segmenting("SMORETrainer", enable_deep_supervision=enable_deep_supervision)
        return build_wdsr(
            load_config(configuration_manager.configuration, purpose="prediction"),
            num_input_channels,
            num_output_channels,
        )

    def _build_loss(self) -> nn.Module:
        return SMORELoss(self.label_loss())

    def get_dataloaders(self) -> tuple:
        """Loaders of in-plane slices from the preprocessed cases, all of which are checked."""
        tr_keys, val_keys = self.do_split()
        every = self.cases_to_write()
        check_cases(
            self.dataset_class(self.preprocessed_dataset_folder, every),
            every,
            label_manager=self.label_manager,
            raw_folder=PlannedDataset.of_trainer(self).raw_folder,
        )
        train, val = (
            SMORELoader(
                self.dataset_class(self.preprocessed_dataset_folder, keys),
                self.batch_size,
                config=self.settings,
                factor=self.config.factor,
                label_manager=self.label_manager,
                oversample_foreground_percent=self.oversample_foreground_percent,
                augment=augment,
            )
            for keys, augment in ((tr_keys, True), (val_keys, False))
        )
        return (
            start_augmenter(train, device=self.device),
            start_augmenter(val, device=self.device, validation=True),
        )

    def cases_to_write(self) -> list[str]:
        """Training and validation cases: stage 1 needs both."""
        tr_keys, val_keys = self.do_split()
        return sorted({*tr_keys, *val_keys})

    def write_cases(self, network: WDSR, store: CaseStore, identifiers: Sequence[str]) -> None:
        """Interpolate the cases with the trained network."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(identifiers))
        export_smore(network, dataset, identifiers, store, PlannedDataset.of_trainer(self))

    def made_with(self) -> dict[str, JsonValue]:
        """The factor."""
        return {"factor": self.config.factor}

    def report(self, network: WDSR) -> None:
        """Compare with the true HR volumes of the validation cases where there are any."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, self.do_split()[1])
        report = report_smore(network, dataset, PlannedDataset.of_trainer(self))
        save_json(report.as_dict(), str(Path(self.output_folder) / "smore_report.json"))
        self.print_to_log_file(f"\n{report.as_table()}", add_timestamp=False)

"""Stage 1: self-supervised super-resolution of annotated thick-slice cases (paper sections 3.2 and 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.cases.interpolated import write_interpolated_cases
from rehrseg_nnunet.cases.store import PseudoHRManifest, PseudoHRStore
from rehrseg_nnunet.config.rehrseg import load_config, upgraded_plans
from rehrseg_nnunet.nnunet.augmenters import start_augmenter
from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.fold_run import candidate_trainers, find_finished_run, sibling_run, training_command
from rehrseg_nnunet.restoration.training import RestorationTraining
from rehrseg_nnunet.restoration.validation import SELF_SR_METRICS
from rehrseg_nnunet.self_sr.export import MIN_LABEL_DICE, export_pseudo_hr
from rehrseg_nnunet.self_sr.loader import SelfSRLoader, intensity_transforms
from rehrseg_nnunet.self_sr.loss import SelfSRLoss
from rehrseg_nnunet.self_sr.network import build_self_sr_network
from rehrseg_nnunet.self_sr.report import report_self_sr
from rehrseg_nnunet.smore.export import STORE_NAME, smore_cases

SPACING_TOLERANCE = 0.05


class SelfSRTrainer(RestorationTraining, SafeCheckpoints, nnUNetTrainer):
    """Learns to restore thin slices from pairs simulated in plane, then writes one pseudo-HR case per training case.

    Settings: `self_sr` of the plans' `rehrseg` block. Raises at construction for 2d, cascaded and isotropic
    configurations, before anything is written.
    """

    length: int | None = None
    extra_metrics = SELF_SR_METRICS
    store_name = "pseudo_hr"
    stored = "pseudo-HR cases"
    needed_by = "stage 2"

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        plans = upgraded_plans(plans)
        self.config = load_config(PlansManager(plans).get_configuration(configuration).configuration)
        self.settings = self.config.self_sr
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = self.length or self.settings.epochs
        self.initial_lr = self.settings.learning_rate
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
        config = load_config(configuration_manager.configuration, purpose="prediction")
        return build_self_sr_network(config, num_input_channels, num_output_channels)

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
        return SelfSRLoss(self.label_loss())

    def get_dataloaders(self) -> tuple:
        """Loaders of windows from interpolated cases, which are written first where they are missing."""
        tr_keys, val_keys = self.do_split()
        folder = self.interpolated_cases(sorted({*tr_keys, *val_keys})).source_folder
        tone, noise = intensity_transforms(self._stock_training_transforms())
        axes = self.settings.simulated_axes
        held_out = tuple({"x", "y"} - set(axes)) or axes  # a held-out axis shows when the anatomy is learnt by heart
        common = {
            "config": self.settings,
            "factor": self.config.factor,
            "label_manager": self.label_manager,
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

    def _smore_run(self) -> Path | None:
        return find_finished_run(self.output_folder, candidate_trainers("SMORETrainer", type(self).__name__))

    def _smore_cases(self, run: Path, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The cases of a SMORE run, checked; raises if they do not fit."""
        dataset = self.dataset_class(self.preprocessed_dataset_folder, list(identifiers))
        folder = smore_cases(run, super().manifest(weights_sha256=""), dataset, identifiers)
        return nnUNetDatasetBlosc2(str(folder), identifiers)

    def _smore_images(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2 | None:
        """SMORE's cases if the settings take their images, else None.

        Raises:
            FileNotFoundError: this fold has no SMORE, or not all of its cases.
            ValueError: its cases do not fit.
        """
        if self.settings.export.image != "smore":
            return None
        run = self._smore_run()
        if run is None:
            raise FileNotFoundError(
                "export.image smore needs SMORE's cases of this fold; run: "
                + training_command(sibling_run(self.output_folder, "SMORETrainer"), self.plans_manager.dataset_name)
            )
        return self._smore_cases(run, identifiers)

    def interpolated_cases(self, identifiers: Sequence[str]) -> nnUNetDatasetBlosc2:
        """The interpolated cases: SMORE's if this fold has them, else B-spline's, written if missing."""
        run = self._smore_run()
        try:
            smore = None if run is None else self._smore_cases(run, identifiers)
        except (FileNotFoundError, ValueError) as error:
            self.print_to_log_file(f"WARNING: SMORE's cases are not used: {error}")
            smore = None
        if smore is not None:
            self.print_to_log_file(f"interpolated cases: {smore.source_folder} (SMORE)")
            return smore
        # on all DDP ranks: one writes, the others wait for its lock, longer than a barrier's timeout if need be
        folder = write_interpolated_cases(
            self.dataset_class(self.preprocessed_dataset_folder, list(identifiers)),
            identifiers,
            factor=self.config.factor,
            spacing_mm=self.configuration_manager.spacing,
            label_manager=self.label_manager,
            patch_size=self.hr_patch_size,
            raw_folder=self.raw_folder,
        )
        self.print_to_log_file(f"interpolated cases: {folder} (B-spline, labels by signed distance)")
        return nnUNetDatasetBlosc2(str(folder), identifiers)

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

    def write_cases(self, network: nn.Module, store: PseudoHRStore, identifiers: Sequence[str]) -> None:
        """Super-resolve the cases; one whose pseudo labels do not agree with its own labels is named."""
        agreement = export_pseudo_hr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, list(identifiers)),
            identifiers,
            store,
            label_manager=self.label_manager,
            config=self.settings,
            hr_patch_size=self.hr_patch_size,
            # of all cases on every DDP rank: none may write others than the manifest says
            smore=self._smore_images(self.cases_to_write()),
        )
        for key, score in agreement.items():
            if score < MIN_LABEL_DICE:
                self.print_to_log_file(
                    f"WARNING: {key}: its pseudo-HR labels, made thick again, have Dice {score:.3f} with its own labels"
                )

    def manifest(self, weights_sha256: str) -> PseudoHRManifest:
        """With what else pseudo-HR cases are made with: the settings, and SMORE's network if they take its images.

        Raises:
            FileNotFoundError: this fold has no SMORE, or not all of its cases.
            ValueError: its cases do not fit.
        """
        self._smore_images(self.cases_to_write())  # cases of another header are removed, so these must be there
        run = self._smore_run() if self.settings.export.image == "smore" else None
        header = None if run is None else PseudoHRStore(run, name=STORE_NAME).read_manifest()
        made_with = {
            "export": self.settings.export,
            "smore_weights_sha256": None if header is None else header.weights_sha256,
        }
        return super().manifest(weights_sha256).model_copy(update=made_with)

    def report(self, network: nn.Module) -> None:
        """Compare with the truth where it is known, and draw a few validation cases."""
        _, val_keys = self.do_split()
        report = report_self_sr(
            network,
            self.dataset_class(self.preprocessed_dataset_folder, val_keys),
            self.interpolated_cases(val_keys),
            plans_manager=self.plans_manager,
            configuration_manager=self.configuration_manager,
            dataset_json=self.dataset_json,
            raw_folder=self.raw_folder,
            figure_folder=Path(self.output_folder),
            config=self.settings,
            smore=self._smore_images(val_keys),
        )
        save_json(report.as_dict(), str(Path(self.output_folder) / "self_sr_report.json"))
        self.print_to_log_file(f"\n{report.as_table()}", add_timestamp=False)

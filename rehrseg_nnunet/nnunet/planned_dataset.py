"""What nnU-Net knows of a dataset under its plans, as one object: see `PlannedDataset`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.nnunet.folders import raw_folder
from rehrseg_nnunet.slices.geometry import hr_patch_size


@dataclass(frozen=True)
class PlannedDataset:
    """A dataset under one configuration of its plans.

    Attributes:
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's, of the configuration.
        dataset_json: content of dataset.json.
        factor: r, HR slices per LR slice; 1 for a method without thick slices.
        raw_folder: the dataset's folder in nnUNet_raw, None where it is not at hand: training does not need it.
    """

    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: Mapping[str, Any]
    factor: int = 1
    raw_folder: Path | None = None

    @classmethod
    def of_trainer(cls, trainer: Any) -> PlannedDataset:
        """What an nnU-Net trainer trains on; one of thick slices has its block, and in it the factor, as `config`."""
        return cls(
            plans_manager=trainer.plans_manager,
            configuration_manager=trainer.configuration_manager,
            dataset_json=trainer.dataset_json,
            factor=getattr(getattr(trainer, "config", None), "factor", 1),
            raw_folder=raw_folder(trainer.plans_manager.dataset_name),
        )

    def with_thin_slices(self) -> PlannedDataset:
        """The same with the spacing and the patch of the thin slices."""
        own = self.configuration_manager
        spacing = [own.spacing[0] / self.factor, *own.spacing[1:]]
        thin = ConfigurationManager({**own.configuration, "spacing": spacing, "patch_size": list(self.hr_patch_size)})
        return replace(self, configuration_manager=thin, factor=1)

    @cached_property
    def label_manager(self) -> LabelManager:
        """nnU-Net's."""
        return self.plans_manager.get_label_manager(dict(self.dataset_json))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Spacing (c, a_y, a_x) of a preprocessed LR case, mm."""
        return tuple(self.configuration_manager.spacing)

    @property
    def hr_patch_size(self) -> tuple[int, int, int]:
        """The plan's patch in HR voxels (r*D, H, W), by which HR cases are stored in chunks."""
        return hr_patch_size(self.configuration_manager.patch_size, self.factor)

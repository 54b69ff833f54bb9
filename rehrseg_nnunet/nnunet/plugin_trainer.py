"""What every trainer of this package repeats, once: see `PluginTrainer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.config.rehrseg import upgraded_plans
from rehrseg_nnunet.nnunet.checkpoints import SafeCheckpoints
from rehrseg_nnunet.nnunet.compatibility import require_compatible, warn_if_incompatible

warn_if_incompatible()


class PluginTrainer(SafeCheckpoints):
    """Mixin for nnU-Net trainers: the constructor, a length, checkpoints that survive a kill.

    nnU-Net reads the signature of a trainer's constructor and stores its arguments by name, so it must have exactly
    these five. Trainers say what is theirs in three hooks, `read_settings`, `change_plans` and `configure`.

    Attributes:
        length: epochs of a trainer of a length (`_10epochs`); None takes what `configure` left.
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
        require_compatible()
        plans = upgraded_plans(plans)
        self.read_settings(PlansManager(plans).get_configuration(configuration).configuration)
        plans = self.change_plans(plans, configuration, dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.configure()
        self.num_epochs = self.length or self.num_epochs

    def read_settings(self, configuration: Mapping[str, Any]) -> None:
        """Read the plans' configuration, inheritance resolved, and refuse it if it cannot be trained.

        Nothing is built or written yet.
        """

    def change_plans(
        self, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Plans to train with, and to keep with the model, once the settings of the configuration are read."""
        return plans

    def configure(self) -> None:
        """Set attributes of nnU-Net's trainer, which is constructed but not initialised: epochs, learning rate, ..."""

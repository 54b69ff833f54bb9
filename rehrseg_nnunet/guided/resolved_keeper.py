"""The keeper that a plans configuration is guided by, as far as its network must be built again: see `ResolvedKeeper`.

Training writes it beside the `guidance` block into the configuration, and nnU-Net keeps that as `plans.json` with the
model. So prediction builds the guided network from the plans alone, and finds the keeper's weights in the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from rehrseg_nnunet.config.guidance import KEEPER_KEY, FusionConfig, load_config
from rehrseg_nnunet.guided.guided_network import add_guidance
from rehrseg_nnunet.guided.keeper import Keeper
from rehrseg_nnunet.guided.shape import GuidanceShape
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.fold_run import FoldRun

BUILT_FROM = ("shape", "kernel", "recalibration", "level_restoration", "residual", "view")
OTHER_PLANS = "put back the file as it was, or train under plans of another name"


@dataclass(frozen=True, kw_only=True)
class ResolvedKeeper:
    """Architecture of a keeper and how it sees the segmentation's patches.

    Attributes:
        shape: levels, widths and channels.
        kernel: of the keeper.
        recalibration: of the keeper.
        level_restoration: of the keeper.
        view: from the segmentation's patches to the keeper's.
        residual: of the keeper.
        run: folder of the training that it comes from; to be read by people only.
        sha256: of its weights; to be read by people only.
    """

    shape: GuidanceShape
    kernel: int
    recalibration: bool
    level_restoration: bool
    view: SourceView
    residual: bool = False
    run: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> ResolvedKeeper:
        """What a training has written into a configuration.

        Raises:
            ValueError: a configuration without it.
        """
        stored = configuration.get(KEEPER_KEY)
        if stored is None:
            raise ValueError(f"the configuration must have {KEEPER_KEY}, which the training of a guided network writes")
        parts = {"shape": GuidanceShape(**stored["shape"]), "view": SourceView(**stored["view"])}
        return cls(**{**stored, **parts})

    def as_json(self) -> dict[str, Any]:
        """What `of` reads, of JSON's types but for tuples."""
        return asdict(self)

    def is_built_like(self, other: ResolvedKeeper) -> bool:
        """Whether both can share one `plans.json`: weights and runs may differ."""
        return not self.differences(other)

    def differences(self, other: ResolvedKeeper) -> list[str]:
        """Names of what keeps both from sharing one `plans.json`."""
        return [name for name in BUILT_FROM if getattr(self, name) != getattr(other, name)]

    def build(self) -> Keeper:
        """The keeper, untrained."""
        return Keeper(
            self.shape,
            kernel=self.kernel,
            recalibration=self.recalibration,
            level_restoration=self.level_restoration,
            residual=self.residual,
        )


def guide_by_plans(network: nn.Module, configuration: Mapping[str, Any], *, learns: bool = False) -> nn.Module:
    """Guide a network as its plans say; the keeper's weights come with the checkpoint.

    Args:
        network: see `add_guidance`; it is changed in place.
        configuration: of the plans, inheritance resolved, with the block `guidance` and the resolved keeper.
        learns: whether the keeper is trained along.

    Raises:
        NotImplementedError: see `add_guidance`.
        ValueError: no resolved keeper, or see `add_guidance`.
    """
    resolved, fusion = ResolvedKeeper.of(configuration), load_config(configuration).fusion
    return add_guidance(network, resolved.build(), view=resolved.view, fusion=fusion, learns=learns)


def check_other_folds(
    fold_folder: Path, configuration_name: str, resolved: ResolvedKeeper, fusion: FusionConfig
) -> None:
    """Refuse a keeper that the model's finished folds cannot be built with: all folds share one `plans.json`.

    Args:
        fold_folder: nnU-Net's output folder of a training.
        configuration_name: its configuration.
        resolved: its keeper.
        fusion: its settings.

    Raises:
        ValueError: another fold has a checkpoint and other networks, or damaged plans.
    """
    file = fold_folder.parent / "plans.json"
    folds = sorted(
        {path.parent.name for path in fold_folder.parent.glob("fold_*/checkpoint_*.pth")} - {fold_folder.name}
    )
    if folds and file.is_file():
        _check_plans(fold_folder, f"is that of {', '.join(folds)} too", configuration_name, resolved, fusion)


def check_own_plans(fold_folder: Path, configuration_name: str, resolved: ResolvedKeeper, fusion: FusionConfig) -> None:
    """Refuse to save a fold's checkpoint beside plans that its network cannot be built from.

    Folds that begin together do not see each other's checkpoints, and the last to begin writes the `plans.json`.
    Arguments as for `check_other_folds`.

    Raises:
        ValueError: the model's plans are of a network that is built otherwise.
    """
    try:
        json.loads((fold_folder.parent / "plans.json").read_text())
    except (FileNotFoundError, ValueError):
        return  # another fold is writing it; the next checkpoint will tell
    whose = "has been written by another fold since this one began"
    _check_plans(fold_folder, whose, configuration_name, resolved, fusion)


def _check_plans(
    fold_folder: Path, whose: str, configuration_name: str, resolved: ResolvedKeeper, fusion: FusionConfig
) -> None:
    run = FoldRun.parse(fold_folder)
    configuration = run.kept_plans(remedy=OTHER_PLANS).get_configuration(configuration_name).configuration
    stored = ResolvedKeeper.of(configuration)
    differing = stored.differences(resolved)
    if load_config(configuration).fusion != fusion:
        differing.append("fusion")
    if differing:
        raise ValueError(
            f"{run.plans_file} {whose}, so their keepers and fusion must be built alike, but "
            f"{', '.join(differing)} differs; take a keeper of the same settings as {stored.run or 'they have'}, "
            "or train under plans of another name"
        )

"""A finished keeper as a guided training takes it: found, checked, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rehrseg_nnunet.config.guidance import load_config
from rehrseg_nnunet.guided.keeper import Keeper
from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.networks import CHANNELS_KEY, build_keeper, planned_shape
from rehrseg_nnunet.guided.resolved_keeper import ResolvedKeeper
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen


@dataclass(frozen=True)
class FrozenKeeper:
    """A finished keeper.

    Attributes:
        checkpoint: its file.
        network: K alone, in evaluation mode, without gradients, on the CPU.
        resolved: how it is built again.
        teacher_sha256: hash of the teacher that taught it; empty if none did.
    """

    checkpoint: Path
    network: Keeper
    resolved: ResolvedKeeper
    teacher_sha256: str = ""


def open_keeper(keeper: KeeperRun, view: SourceView, *, checkpoint: str) -> FrozenKeeper:
    """Load a finished keeper.

    Args:
        keeper: its training.
        view: what it sees of the patches to be segmented.
        checkpoint: "final" or "best".

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged or is not of the plans beside it.
    """
    run, shape = keeper.run, planned_shape(keeper.configuration)
    file = run.chosen_checkpoint(checkpoint)
    trained = load_frozen(
        build_keeper(keeper.configuration),
        file,
        sizes=f"widths {list(shape.widths)}, {shape.source_channels} source channels",
        remedy=f"train the keeper again: {run.command}",
    )
    sha256 = hash_weights(trained.keeper.state_dict())
    teacher_sha256 = bytes(trained.get_buffer("teacher_sha256").tolist()).hex()
    return FrozenKeeper(file, trained.keeper, resolve(keeper, view, sha256=sha256), teacher_sha256)


def resolve(keeper: KeeperRun, view: SourceView, *, sha256: str = "") -> ResolvedKeeper:
    """How a keeper's network is built again.

    Args:
        keeper: its training.
        view: what it sees of the patches to be segmented.
        sha256: of its weights; empty for a network that is built like it, with other weights.
    """
    run = str(keeper.run.folder.relative_to(keeper.run.results)) if sha256 else ""
    return replace(_built_by(keeper.configuration, view), run=run, sha256=sha256)


def own_keeper(planned: PlannedDataset) -> ResolvedKeeper:
    """How a dataset's own plans would build a keeper of all its channels: for controls without pairs."""
    channels = tuple(range(len(planned.dataset_json["channel_names"])))
    configuration = {
        **planned.configuration_manager.configuration,
        CHANNELS_KEY: {"source": channels, "privileged": (len(channels),)},
    }
    return _built_by(configuration, SourceView(channels=channels))


def _built_by(configuration: Mapping[str, Any], view: SourceView) -> ResolvedKeeper:
    config = load_config(configuration)
    return ResolvedKeeper(
        shape=planned_shape(configuration),
        kernel=config.keeper.kernel,
        recalibration=config.keeper.recalibration,
        level_restoration=config.level_restoration,
        residual=config.keeper.residual,
        view=view,
    )

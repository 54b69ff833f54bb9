"""A finished stage 1 as stage 2 takes it: the pseudo-HR cases, and the frozen network that made them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.config.rehrseg import ResolvedConfig
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen, read_weights
from rehrseg_nnunet.self_sr.export import STORE_NAME
from rehrseg_nnunet.self_sr.network import FIRST_VERSION, METHOD_VERSION, SelfSRNetwork, build_self_sr_network

SELF_SR_VARIABLE = "REHRSEG_SELF_SR"
SELF_SR = Companion("SelfSRTrainer", "stage 1 of this fold", variable=SELF_SR_VARIABLE)


@dataclass(frozen=True)
class FrozenSelfSR:
    """A finished stage 1, checked.

    Attributes:
        checkpoint: of the network that made the cases.
        network: in evaluation mode, without gradients, on the CPU.
        cases_folder: pseudo-HR cases, data (C + 1, r*D, H, W) with U in [0, 1] last, labels (1, r*D, H, W).
        is_calibrated: U is the probability that a label is wrong; else it is between each case's own extremes.
    """

    checkpoint: Path
    network: SelfSRNetwork
    cases_folder: Path
    is_calibrated: bool


def open_self_sr(
    own: FoldRun,
    config: ResolvedConfig,
    identifiers: Iterable[str],
    *,
    image_channels: int,
    label_channels: int,
    source_folder: str,
) -> FrozenSelfSR:
    """Find the stage 1 of a training and check that its cases are those of its network.

    Args:
        own: the stage-2 training.
        config: its block.
        identifiers: cases that will be read.
        image_channels: of the dataset.
        label_channels: segmentation heads.
        source_folder: preprocessed cases that the pseudo-HR ones must have been made from, as they are now. A run that
            the user chose by REHRSEG_SELF_SR may be of other preprocessed data, plans, configuration or fold.

    Raises:
        FileNotFoundError: stage 1 is not finished, or cases are missing; the message ends with the command to run.
        ValueError: checkpoint or cases do not fit, or are damaged; likewise.
    """
    chosen = SELF_SR.chosen()
    run = chosen or SELF_SR.require(own)
    named = replace(run, dataset=own.dataset)  # a chosen run may be a copy in any folder
    checkpoint = exporting_checkpoint(run, command=named.command)
    sizes = (
        f"factor {config.factor}, {image_channels} image and {label_channels} label channels, "
        f"base_features {config.self_sr.base_features}"
    )
    check_version(checkpoint, command=named.command)
    network = load_frozen(
        build_self_sr_network(config, image_channels, label_channels),
        checkpoint,
        sizes=sizes,
        remedy=f"train stage 1 again: {named.command}",
    )
    store = CaseStore(run.folder, STORE_NAME)
    expected = CaseManifest.of_run(
        named,
        weights_sha256=hash_weights(network.state_dict()),
        made_with={"factor": config.factor, "method_version": METHOD_VERSION},
    )
    store.verify(
        identifiers, expected, remedy=f"run: {named.command} --val", source_folder=None if chosen else source_folder
    )
    manifest = store.read_manifest()
    is_calibrated = manifest is not None and "calibration" in manifest.made_with
    return FrozenSelfSR(checkpoint, network, store.folder, is_calibrated)


def check_version(checkpoint: Path, *, command: str, damaged: str | None = None) -> None:
    """Refuse a stage 1 whose weights mean something else than they do now.

    Args:
        checkpoint: one of nnU-Net's.
        command: that trains stage 1 anew, for the message.
        damaged: what to do about a damaged file; None: the same training, continued.

    Raises:
        ValueError: the checkpoint is unreadable, or of another version.
    """
    weights = read_weights(checkpoint, remedy=damaged or f"remove it and run: {command} --c")
    found = int(weights.get("version", FIRST_VERSION))
    if found != METHOD_VERSION:
        raise ValueError(
            f"{checkpoint} must be of version {METHOD_VERSION} of stage 1, got version {found}, which sees images in "
            f"another unit of intensity; train it anew: {command}"
        )


def exporting_checkpoint(run: FoldRun, *, command: str) -> Path:
    """The checkpoint of a stage-1 run that made its pseudo-HR cases: the best if its weights did, else the final one.

    Args:
        run: finished.
        command: that trains it, for the message.

    Raises:
        ValueError: a checkpoint is unreadable; the message ends with the command to run.
    """
    manifest = CaseStore(run.folder, STORE_NAME).read_manifest()
    remedy = f"remove it and run: {command} --c"
    found = None if manifest is None else run.checkpoint_with(manifest.weights_sha256, remedy=remedy)
    return found or run.final_checkpoint

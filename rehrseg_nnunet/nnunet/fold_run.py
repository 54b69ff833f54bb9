"""Where nnU-Net keeps what a training builds on, other runs above all, and how to load them.

Convention:
    A run is a fold folder `<results>/<dataset>/<trainer>__<plans>__<configuration>/fold_<fold>`. Trainers of a length
    suffix (`_10epochs`) look for runs of the same suffix first, then for those of the base class.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_raw

from rehrseg_nnunet.cases.store import PseudoHRManifest, PseudoHRStore, hash_weights
from rehrseg_nnunet.config.rehrseg import RehrsegConfig
from rehrseg_nnunet.self_sr.network import SelfSRNetwork, build_self_sr_network

SELF_SR_VARIABLE = "REHRSEG_SELF_SR"
LENGTH_SUFFIX = re.compile(r"_\d+epochs?$")
FOLD_FOLDER = re.compile(r"fold_(all|\d+)")
# what torch.load raises for damaged files and for files of something else, and indexing for other contents
UNREADABLE = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, pickle.PickleError)
FINAL_CHECKPOINT, BEST_CHECKPOINT = "checkpoint_final.pth", "checkpoint_best.pth"


def raw_folder(dataset_name: str) -> Path | None:
    """A dataset's folder in nnUNet_raw, None where that is not set: training does not need it."""
    return Path(str(nnUNet_raw), dataset_name) if nnUNet_raw.is_set() else None


def candidate_trainers(base: str, trainer: str) -> list[str]:
    """Trainer names to look for, best first: `base` with the length suffix of `trainer`, then `base`."""
    suffix = LENGTH_SUFFIX.search(trainer)
    return [base + suffix.group(), base] if suffix else [base]


def sibling_run(own_fold_folder: str | Path, trainer: str) -> Path:
    """Fold folder of another trainer: same dataset, plans, configuration and fold."""
    own = Path(own_fold_folder)
    _, plans_and_configuration = own.parent.name.split("__", 1)
    return own.parent.with_name(f"{trainer}__{plans_and_configuration}") / own.name


def find_finished_run(own_fold_folder: str | Path, trainers: Sequence[str]) -> Path | None:
    """First of several trainers' sibling runs that has a final checkpoint, None if there is none."""
    runs = (sibling_run(own_fold_folder, trainer) for trainer in trainers)
    return next((run for run in runs if (run / FINAL_CHECKPOINT).is_file()), None)


def find_self_sr_run(own_fold_folder: str | Path, trainers: Sequence[str], *, remedy: str) -> Path:
    """The stage-1 run to build on: the one that REHRSEG_SELF_SR names, else the sibling run.

    Raises:
        FileNotFoundError: there is none; the message ends with `remedy`.
    """
    override = os.environ.get(SELF_SR_VARIABLE)
    if override:
        run = Path(override).absolute()
        if not (run / FINAL_CHECKPOINT).is_file():
            raise FileNotFoundError(
                f"{SELF_SR_VARIABLE} must name a finished stage-1 fold folder, but {run / FINAL_CHECKPOINT} is missing"
            )
        return run
    run = find_finished_run(own_fold_folder, trainers)
    if run is None:
        missing = sibling_run(own_fold_folder, trainers[-1]) / FINAL_CHECKPOINT
        raise FileNotFoundError(f"{missing} is missing: stage 1 of this fold is not finished; {remedy}")
    return run


def read_checkpoint(checkpoint: Path, *, remedy: str) -> dict[str, Any]:
    """One of nnU-Net's checkpoints on the CPU, its tensors mapped from the file.

    Raises:
        ValueError: the file is missing, damaged or no such checkpoint; the message ends with `remedy`.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        return {**content, "network_weights": dict(content["network_weights"])}
    except UNREADABLE as error:
        raise ValueError(
            f"{checkpoint} must be an nnU-Net checkpoint, got an unreadable file ({error}); {remedy}"
        ) from None


def read_weights(checkpoint: Path, *, remedy: str) -> dict[str, Any]:
    """The network's state dict in one of nnU-Net's checkpoints, see `read_checkpoint`."""
    return read_checkpoint(checkpoint, remedy=remedy)["network_weights"]


def training_command(run: Path, dataset_name: str) -> str:
    """The `nnUNetv2_train` command of a run, without further options."""
    trainer, _, plans_and_configuration = run.parent.name.partition("__")
    plans, _, configuration = plans_and_configuration.rpartition("__")
    fold = run.name.removeprefix("fold_")
    return f"nnUNetv2_train {dataset_name} {configuration} {fold} -tr {trainer} -p {plans}"


def exporting_checkpoint(run: Path, *, remedy: str) -> Path:
    """The checkpoint of a stage-1 run that made its pseudo-HR cases: the best if its weights did, else the final one.

    Raises:
        ValueError: a checkpoint is unreadable; the message ends with `remedy`.
    """
    final, best = run / FINAL_CHECKPOINT, run / BEST_CHECKPOINT
    manifest = PseudoHRStore(run).read_manifest()
    if manifest is None or hash_weights(read_weights(final, remedy=remedy)) == manifest.weights_sha256:
        return final
    exported_best = best.is_file() and hash_weights(read_weights(best, remedy=remedy)) == manifest.weights_sha256
    return best if exported_best else final


def is_saved(run: Path, weights_sha256: str, *, remedy: str) -> bool:
    """Whether a run's final or best checkpoint holds the weights with a hash, see `hash_weights`.

    Raises:
        ValueError: a checkpoint is unreadable; the message ends with `remedy`.
    """
    checkpoints = [file for file in (run / FINAL_CHECKPOINT, run / BEST_CHECKPOINT) if file.is_file()]
    return any(hash_weights(read_weights(file, remedy=remedy)) == weights_sha256 for file in checkpoints)


def load_self_sr(
    file: Path, config: RehrsegConfig, *, image_channels: int, label_channels: int, remedy: str
) -> SelfSRNetwork:
    """The trained stage-1 network of a checkpoint, in evaluation mode, without gradients, on the CPU.

    Raises:
        ValueError: the checkpoint is unreadable or belongs to a network of other sizes; names what differs.
    """
    network = build_self_sr_network(config, image_channels, label_channels)
    weights = read_weights(file, remedy=remedy)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        key = differing[0]
        raise ValueError(
            f"{file} must fit the plans (factor {config.factor}, {image_channels} image and {label_channels} label "
            f"channels, base_features {config.self_sr.base_features}), but {key} is {found.get(key, 'missing')} and "
            f"not {expected.get(key, 'expected')}; {remedy}"
        )
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


def expected_manifest(
    run: Path,
    network: SelfSRNetwork,
    *,
    factor: int,
    dataset_name: str,
    plans_name: str,
    configuration: str,
    fold: int | str,
) -> PseudoHRManifest:
    """Header that the pseudo-HR cases of a stage-1 run must have.

    A run chosen through REHRSEG_SELF_SR may be of other plans, another configuration or fold; that is the user's
    decision, so its own are expected.

    Raises:
        ValueError: the name of the chosen run does not say what it is of.
    """
    header = PseudoHRManifest(
        factor=factor,
        dataset_name=dataset_name,
        plans_name=plans_name,
        configuration=configuration,
        fold=fold,
        trainer=run.parent.name.split("__")[0],
        weights_sha256=hash_weights(network.state_dict()),
    )
    if not os.environ.get(SELF_SR_VARIABLE):
        return header
    parts, fold_name = run.parent.name.split("__"), FOLD_FOLDER.fullmatch(run.name)
    if len(parts) != 3 or fold_name is None:
        raise ValueError(
            f"{SELF_SR_VARIABLE} must name a folder <trainer>__<plans>__<configuration>/fold_<fold>, got {run}"
        )
    chosen_fold = "all" if fold_name[1] == "all" else int(fold_name[1])
    return header.model_copy(update={"plans_name": parts[1], "configuration": parts[2], "fold": chosen_fold})

"""Turn a published FLAVR checkpoint into initial weights for stage 1 (SelfSRTrainer).

The result is for `nnUNetv2_train DATASET CONFIGURATION FOLD -tr SelfSRTrainer -pretrained_weights OUT`, which wants
every tensor of the network: those that FLAVR does not have get the network's usual initial values, the same ones each
time the same file is made.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_dataset_json, read_plans
from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.label_values import label_manager_of
from rehrseg_nnunet.nnunet.safe_files import move_into_place, partial_name
from rehrseg_nnunet.self_sr.flavr_checkpoint import load_backbone, read_flavr_checkpoint
from rehrseg_nnunet.self_sr.network import SelfSRNetwork, build_self_sr_network

SEED = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommand's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="FLAVR_4x.pth", help="published FLAVR checkpoint")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT.pth", help="file to write")
    parser.add_argument("-d", dest="dataset", required=True, help="dataset number or name; must be preprocessed")
    parser.add_argument("-c", dest="configuration", required=True, help="configuration of the plans, e.g. 3d_fullres")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans name (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Convert the checkpoint and say what was loaded.

    Raises:
        FileNotFoundError: no checkpoint, dataset, plans or dataset.json.
        ValueError: the file is not a FLAVR checkpoint, or its width is not `self_sr.base_features` of the plans.
        NotImplementedError: a 2d or cascaded configuration.
        RuntimeError: unknown configuration (nnU-Net's message).
    """
    if Path(args.output).resolve() == Path(args.checkpoint).resolve():
        raise ValueError(f"-o must not be {args.output}, which is the checkpoint to convert; choose another file")
    network = _fresh_network(args.dataset, args.configuration, args.plans)
    state_dict = read_flavr_checkpoint(args.checkpoint)
    try:
        lines = load_backbone(network, state_dict)
    except ValueError as error:
        raise ValueError(f"{error}; set rehrseg.self_sr.base_features in {args.plans}, or train from scratch") from None
    _save_atomically({"network_weights": network.state_dict()}, args.output)
    print("\n".join((*lines, f"wrote {args.output}")))


def _fresh_network(dataset: str, configuration: str, plans_identifier: str) -> SelfSRNetwork:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = find_dataset(nnunet_folder("nnUNet_preprocessed"), dataset)
    plans = PlansManager(read_plans(folder / f"{plans_identifier}.json", remedy=PREPROCESS_FIRST))
    resolved = plans.get_configuration(configuration)
    config = load_config(resolved.configuration)
    dataset_json = read_dataset_json(folder / "dataset.json", required=("labels",))
    label_manager_of(dataset_json, source=str(folder / "dataset.json"))  # names the file where nnU-Net's does not
    heads = plans.get_label_manager(dataset_json).num_segmentation_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return build_self_sr_network(config, len(resolved.normalization_schemes), heads)


def _save_atomically(content: dict[str, Any], path: Path) -> None:
    """Write beside the target and rename: an interrupted command leaves no half-written weights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        torch.save(content, partial)
        move_into_place(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise OSError(f"{path} could not be written: {error}; free space there or choose another file") from error
    finally:
        partial.unlink(missing_ok=True)

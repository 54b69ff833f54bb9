"""From a trained SMORE network to the interpolated cases that stage 1 is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.cases.source_files import SOURCE, source_state
from rehrseg_nnunet.cases.store import PseudoHRManifest, PseudoHRStore
from rehrseg_nnunet.nnunet.fold_run import is_saved, training_command
from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.self_sr.export import to_label_map
from rehrseg_nnunet.smore.network import WDSR, WDSROutput

STORE_NAME = "interpolated"

# (C, D, H, W) to slices (S, C, D, columns), and back with r*D rows
_ALONG_X = ((2, 0, 1, 3), (1, 2, 0, 3))
_ALONG_Y = ((3, 0, 1, 2), (1, 2, 3, 0))


@torch.no_grad()
def super_resolve_slices(network: WDSR, volume: torch.Tensor, *, slices_per_batch: int = 16) -> WDSROutput:
    """Super-resolve a case along its slice axis, slice by slice: the mean over its x-z and its y-z slices.

    Args:
        network: trained; its mode and device are left as they are.
        volume: (C + K, D, H, W) float, image channels and label channels.
        slices_per_batch: slices computed at a time.

    Returns:
        image (C, r*D, H, W) and label logits (K, r*D, H, W), float32 on the CPU.
    """
    device = next(network.parameters()).device
    views = []
    for there, back in (_ALONG_X, _ALONG_Y):
        outputs = [
            [tensor.float().cpu() for tensor in network(slices.to(device))]
            for slices in volume.permute(there).split(slices_per_batch)
        ]
        views.append([torch.cat(tensors).permute(back) for tensors in zip(*outputs, strict=True)])
    return WDSROutput(*(torch.stack(pair).mean(dim=0) for pair in zip(*views, strict=True)))


def smore_case(
    network: WDSR, image: np.ndarray, labels: np.ndarray, label_manager: LabelManager
) -> tuple[np.ndarray, np.ndarray]:
    """Super-resolve an annotated LR case.

    Args:
        network: trained.
        image: (C, D, H, W) float.
        labels: (1, D, H, W) label map; ignore label and -1 are stamped back from the nearest LR slice.
        label_manager: nnU-Net's.

    Returns:
        Image (C, r*D, H, W) float32 and labels (1, r*D, H, W) int16.
    """
    channels = to_channels(torch.from_numpy(labels[0].astype(np.int64)), head_labels(label_manager))
    output = super_resolve_slices(network, torch.cat([torch.from_numpy(np.array(image, dtype=np.float32)), channels]))
    return output.image.numpy(), to_label_map(output.labels, labels, network.factor, label_manager)


def export_smore(
    network: WDSR,
    dataset: nnUNetBaseDataset,
    identifiers: Iterable[str],
    store: PseudoHRStore,
    *,
    label_manager: LabelManager,
    patch_size: Sequence[int],
) -> None:
    """Write the interpolated cases that are missing or older than the preprocessed ones, with a progress bar.

    Args:
        network: trained.
        dataset: preprocessed LR cases.
        identifiers: cases to write.
        store: opened for writing.
        label_manager: nnU-Net's.
        patch_size: HR voxels (D, H, W) that stage 1 reads at a time.
    """
    missing = [i for i in identifiers if not store.is_current(i, dataset.source_folder)]
    for identifier in tqdm(missing, desc="SMORE cases", disable=not missing):
        image, labels, _, properties = dataset.load_case(identifier)
        fine = smore_case(network, np.asarray(image[:]), np.asarray(labels[:]), label_manager)
        store.write_case(
            identifier,
            fine[0],
            None,
            fine[1],
            {**properties, SOURCE: source_state(dataset.source_folder, identifier)},
            label_manager=label_manager,
            hr_patch_size=patch_size,
        )


def smore_cases(run: Path, expected: PseudoHRManifest, dataset: nnUNetBaseDataset, identifiers: Iterable[str]) -> Path:
    """The folder of the cases that a finished SMORE run interpolated, which are checked.

    Args:
        run: fold folder.
        expected: header that the cases must have, but for the weights, which must be those of the run's checkpoint.
        dataset: preprocessed LR cases.
        identifiers: cases that are needed.

    Raises:
        FileNotFoundError: cases are missing.
        ValueError: cases are damaged, of other weights or settings, or older than the preprocessed ones.
    """
    identifiers = list(identifiers)
    remedy = f"run: {training_command(run, expected.dataset_name)} --val"
    store = PseudoHRStore(run, name=STORE_NAME)
    header = store.read_manifest()
    if header is not None and is_saved(run, header.weights_sha256, remedy=remedy):
        expected = expected.model_copy(update={"weights_sha256": header.weights_sha256})
    store.verify(identifiers, expected, remedy=remedy, source_folder=dataset.source_folder)
    return store.folder

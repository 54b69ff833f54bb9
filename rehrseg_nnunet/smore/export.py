"""From a trained SMORE network to the interpolated cases that stage 1 is trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.cases.case_dataset import PreprocessedCases
from rehrseg_nnunet.cases.source_files import derived_properties
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.companions import Companion
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.label_channels import head_labels, to_channels
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.batches import Batches
from rehrseg_nnunet.restoration.label_maps import to_label_map
from rehrseg_nnunet.smore.network import WDSR, WDSROutput

SMORE = Companion("SMORETrainer", "SMORE of this fold")
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
        slices_per_batch: slices computed at a time, fewer where the device has no memory for them.

    Returns:
        image (C, r*D, H, W) and label logits (K, r*D, H, W), float32 on the CPU.
    """
    batches = Batches(network, size=slices_per_batch)
    views = []
    for there, back in (_ALONG_X, _ALONG_Y):
        view = volume.permute(there)
        outputs = batches.apply(lambda first, end, view=view: view[first:end], len(view))
        views.append([tensor.permute(back) for tensor in outputs])
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
    dataset: PreprocessedCases,
    identifiers: Iterable[str],
    store: CaseStore,
    planned: PlannedDataset,
) -> None:
    """Write the interpolated cases that are missing or older than the preprocessed ones, with a progress bar.

    Args:
        network: trained.
        dataset: preprocessed LR cases.
        identifiers: cases to write.
        store: opened for writing.
        planned: the dataset under its plans.

    Raises:
        ValueError: a case came out with nan or inf.
    """
    missing = [i for i in identifiers if not store.is_current(i, dataset.source_folder)]
    for identifier in tqdm(missing, desc="SMORE cases", disable=not missing):
        image, labels, _, properties = dataset.load_case(identifier)
        acquired = np.asarray(image[:])
        fine = smore_case(network, acquired, np.asarray(labels[:]), planned.label_manager)
        if not np.isfinite(fine[0]).all():
            raise ValueError(
                f"{identifier}: SMORE's image must be finite, got nan or inf; if the log shows losses of nan, train "
                "SMORE again with a smaller learning_rate"
            )
        derived = derived_properties(dataset.source_folder, identifier, acquired, properties)
        store.write_case(identifier, *fine, derived, planned)


def smore_cases(
    run: FoldRun, dataset: PreprocessedCases, identifiers: Iterable[str], *, factor: int
) -> nnUNetDatasetBlosc2:
    """The cases that a finished SMORE run interpolated, which are checked.

    Args:
        run: of SMORETrainer.
        dataset: preprocessed LR cases.
        identifiers: cases that are needed.
        factor: r that they must have.

    Raises:
        FileNotFoundError: cases are missing.
        ValueError: cases are damaged, of other weights or settings, or older than the preprocessed ones.
    """
    identifiers = list(identifiers)
    remedy = f"run: {run.command} --val"
    store = CaseStore(run.folder, STORE_NAME)
    weights = smore_weights(run)
    if weights is None or run.checkpoint_with(weights, remedy=remedy) is None:
        weights = ""  # of no network: no case fits
    expected = CaseManifest.of_run(run, weights_sha256=weights, made_with={"factor": factor})
    store.verify(identifiers, expected, remedy=remedy, source_folder=dataset.source_folder)
    return nnUNetDatasetBlosc2(str(store.folder), identifiers)


def smore_weights(run: FoldRun) -> str | None:
    """Hash of the network that made a SMORE run's cases, None if it made none."""
    header = CaseStore(run.folder, STORE_NAME).read_manifest()
    return None if header is None else header.weights_sha256

"""From a trained self-SR network to the pseudo-HR cases that stage 2 trains on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.cases.source_files import SOURCE, source_state
from rehrseg_nnunet.cases.store import PseudoHRStore
from rehrseg_nnunet.config.rehrseg import ExportConfig, SelfSRConfig
from rehrseg_nnunet.evaluation.metrics import dice
from rehrseg_nnunet.nnunet.label_channels import LabelGroup, head_labels, to_channels
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.super_resolve import super_resolve
from rehrseg_nnunet.slices.slice_profile import back_project, degrade_labels

MIN_LABEL_DICE = 0.8


@dataclass(frozen=True)
class PseudoHRVolumes:
    """One super-resolved case.

    Attributes:
        image: (C, r*D, H, W) float32.
        uncertainty: (1, r*D, H, W), U of Eq. 5.
        labels: (1, r*D, H, W) int16 label map with nnU-Net's -1 and the ignore label.
    """

    image: np.ndarray
    uncertainty: np.ndarray
    labels: np.ndarray


def super_resolve_case(
    network: SelfSRNetwork,
    image: np.ndarray,
    labels: np.ndarray,
    label_manager: LabelManager,
    *,
    config: ExportConfig,
    smore_image: np.ndarray | None = None,
) -> PseudoHRVolumes:
    """Super-resolve an annotated LR case.

    Args:
        network: trained.
        image: (C, D, H, W) float.
        labels: (1, D, H, W) label map; ignore label and -1 are stamped back from the nearest LR slice.
        label_manager: nnU-Net's.
        config: what is done beyond applying the network.
        smore_image: (C, r*D, H, W), what SMORE made of the case; None: there is no SMORE.
    """
    channels = to_channels(torch.from_numpy(labels[0].astype(np.int64)), head_labels(label_manager))
    acquired = torch.from_numpy(np.ascontiguousarray(image)).float()
    output = super_resolve(network, acquired, channels)
    use_smore = config.image == "smore" and smore_image is not None
    fine = torch.from_numpy(smore_image).float() if use_smore else output.image
    sharp = back_project(fine, acquired, network.factor, 1, steps=config.back_projection_steps)
    return PseudoHRVolumes(
        image=sharp.numpy(),
        uncertainty=output.uncertainty.numpy(),
        labels=to_label_map(output.labels, labels, network.factor, label_manager),
    )


def to_label_map(logits: torch.Tensor, lr_labels: np.ndarray, factor: int, label_manager: LabelManager) -> np.ndarray:
    """HR label map from HR logits; where the nearest LR slice is -1 or ignored, so is the result.

    Args:
        logits: (K, r*D, H, W).
        lr_labels: (1, D, H, W).
        factor: r.
        label_manager: nnU-Net's.

    Returns:
        (1, r*D, H, W) int16.
    """
    nearest = np.repeat(lr_labels, factor, axis=1)
    unknown = nearest == -1
    if label_manager.has_ignore_label:
        unknown |= nearest == label_manager.ignore_label
    predicted = label_manager.convert_logits_to_segmentation(logits).numpy()
    return np.where(unknown, nearest, predicted[None]).astype(np.int16)


def label_agreement(labels: np.ndarray, reference: np.ndarray, groups: Sequence[LabelGroup]) -> float:
    """Mean foreground Dice of two label maps over the classes or regions that occur; nan if none does."""
    scores = [dice(np.isin(reference, group), np.isin(labels, group)) for group in groups if group != (0,)]
    present = [score for score in scores if not np.isnan(score)]
    return float(np.mean(present)) if present else float("nan")


def export_pseudo_hr(
    network: SelfSRNetwork,
    dataset: nnUNetBaseDataset,
    identifiers: Iterable[str],
    store: PseudoHRStore,
    *,
    label_manager: LabelManager,
    config: SelfSRConfig,
    hr_patch_size: Sequence[int],
    smore: nnUNetBaseDataset | None = None,
) -> dict[str, float]:
    """Write the pseudo-HR cases that are missing or older than the preprocessed ones, with a progress bar.

    Args:
        network: trained.
        dataset: preprocessed LR cases.
        identifiers: cases to write.
        store: opened for writing.
        label_manager: nnU-Net's.
        config: stage 1's settings.
        hr_patch_size: (r*p_z, p_y, p_x) that stage 2 reads at a time.
        smore: SMORE's cases, for `config.export.image` "smore".

    Returns:
        Dice of each newly written case's pseudo labels, degraded, with the case's own labels; below
        `MIN_LABEL_DICE` something is wrong with the case or the network.
    """
    missing = [i for i in identifiers if not store.is_current(i, dataset.source_folder)]
    groups = head_labels(label_manager)
    agreement = {}
    for identifier in tqdm(missing, desc="pseudo-HR cases", disable=not missing):
        image, labels, _, properties = dataset.load_case(identifier)
        image, labels = np.asarray(image[:]), np.asarray(labels[:])
        hr = super_resolve_case(
            network,
            image,
            labels,
            label_manager,
            config=config.export,
            smore_image=None if smore is None else np.asarray(smore.load_case(identifier)[0][:]),
        )
        store.write_case(
            identifier,
            hr.image,
            hr.uncertainty,
            hr.labels,
            {**properties, SOURCE: source_state(dataset.source_folder, identifier)},
            label_manager=label_manager,
            hr_patch_size=hr_patch_size,
        )
        degraded = degrade_labels(torch.from_numpy(hr.labels[0]), network.factor, 0).numpy()
        agreement[identifier] = label_agreement(degraded, labels[0], groups)
    return agreement

"""From a trained self-SR network to the pseudo-HR cases that stage 2 trains on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.data.label_channels import LabelGroup, head_labels, to_channels
from rehrseg_nnunet.data.pseudo_hr import PseudoHRStore
from rehrseg_nnunet.inference.super_resolve import super_resolve
from rehrseg_nnunet.metrics import dice
from rehrseg_nnunet.networks.self_sr import SelfSRNetwork
from rehrseg_nnunet.slice_profile import degrade_labels

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
    network: SelfSRNetwork, image: np.ndarray, labels: np.ndarray, label_manager: LabelManager
) -> PseudoHRVolumes:
    """Super-resolve an annotated LR case.

    Args:
        network: trained.
        image: (C, D, H, W) float.
        labels: (1, D, H, W) label map; ignore label and -1 are stamped back from the nearest LR slice.
        label_manager: nnU-Net's.
    """
    channels = to_channels(torch.from_numpy(labels[0].astype(np.int64)), head_labels(label_manager))
    output = super_resolve(network, torch.from_numpy(np.ascontiguousarray(image)).float(), channels)
    predicted = label_manager.convert_logits_to_segmentation(output.labels).numpy().astype(np.int16)
    nearest = np.repeat(labels[0], network.factor, axis=0)
    unknown = nearest == -1
    if label_manager.has_ignore_label:
        unknown |= nearest == label_manager.ignore_label
    return PseudoHRVolumes(
        image=output.image.numpy(),
        uncertainty=output.uncertainty.numpy(),
        labels=np.where(unknown, nearest, predicted)[None].astype(np.int16),
    )


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
    label_profile: str,
    hr_patch_size: Sequence[int],
) -> dict[str, float]:
    """Write the pseudo-HR cases that are not there yet, with a progress bar.

    Args:
        network: trained.
        dataset: preprocessed LR cases.
        identifiers: cases to write.
        store: opened for writing.
        label_manager: nnU-Net's.
        label_profile: mode of `degrade_labels`.
        hr_patch_size: (r*p_z, p_y, p_x) that stage 2 reads at a time.

    Returns:
        Dice of each newly written case's pseudo labels, degraded, with the case's own labels; below
        `MIN_LABEL_DICE` something is wrong with the case or the network.
    """
    missing = [identifier for identifier in identifiers if not store.is_complete(identifier)]
    groups = head_labels(label_manager)
    agreement = {}
    for identifier in tqdm(missing, desc="pseudo-HR cases", disable=not missing):
        image, labels, _, properties = dataset.load_case(identifier)
        image, labels = np.asarray(image[:]), np.asarray(labels[:])
        hr = super_resolve_case(network, image, labels, label_manager)
        store.write_case(
            identifier,
            hr.image,
            hr.uncertainty,
            hr.labels,
            properties,
            label_manager=label_manager,
            hr_patch_size=hr_patch_size,
        )
        degraded = degrade_labels(torch.from_numpy(hr.labels[0]), network.factor, 0, mode=label_profile).numpy()
        agreement[identifier] = label_agreement(degraded, labels[0], groups)
    return agreement

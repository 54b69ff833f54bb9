"""From a trained self-SR network to the pseudo-HR cases that stage 2 trains on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.cases.case_dataset import Cases, PreprocessedCases
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.source_files import derived_properties
from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.evaluation.metrics import dice
from rehrseg_nnunet.nnunet.label_channels import LabelGroup, head_labels, to_channels
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.label_maps import to_label_map
from rehrseg_nnunet.restoration.label_volumes import volume_offsets
from rehrseg_nnunet.self_sr.calibration import Calibration
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.super_resolve import super_resolve
from rehrseg_nnunet.self_sr.uncertainty_quality import label_entropy
from rehrseg_nnunet.slices.slice_profile import back_project, degrade_labels

STORE_NAME = "pseudo_hr"
MIN_LABEL_DICE = 0.8


@dataclass(frozen=True)
class PseudoHRVolumes:
    """One super-resolved case.

    Attributes:
        image: (C, r*D, H, W) float32, in the case's intensities.
        uncertainty: (1, r*D, H, W), what tells wrong labels by `ExportConfig.uncertainty`: the labels' entropy or U.
        network_uncertainty: (1, r*D, H, W), U of Eq. 5.
        labels: (1, r*D, H, W) int16 label map with nnU-Net's -1 and the ignore label.
        logits: (K, r*D, H, W), of the labels, their offsets among them.
    """

    image: np.ndarray
    uncertainty: np.ndarray
    network_uncertainty: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class ExportOptions:
    """How a run makes its pseudo-HR cases of what its network says.

    Attributes:
        config: settings.
        smore: SMORE's cases, for `config.image` "smore".
        calibration: of U, unless `config.uncertainty` is "normalised".
    """

    config: ExportConfig
    smore: Cases | None = None
    calibration: Calibration | None = None

    def smore_image(self, identifier: str) -> np.ndarray | None:
        """SMORE's image (C, r*D, H, W) of a case, None without SMORE."""
        return None if self.smore is None else np.asarray(self.smore.load_case(identifier)[0][:])

    def scale(self, uncertainty: np.ndarray) -> np.ndarray:
        """U of a whole case as it is stored, in [0, 1]: probabilities that labels are wrong, or spread over the case.

        Raises:
            ValueError: values that are not finite.
        """
        return robust_min_max(uncertainty) if self.calibration is None else self.calibration.apply(uncertainty)


def super_resolve_case(
    network: SelfSRNetwork,
    image: np.ndarray,
    labels: np.ndarray,
    label_manager: LabelManager,
    *,
    config: ExportConfig,
    smore_image: np.ndarray | None = None,
    unit: IntensityUnit | None = None,
) -> PseudoHRVolumes:
    """Super-resolve an annotated LR case.

    Args:
        network: trained.
        image: (C, D, H, W) float.
        labels: (1, D, H, W) label map; ignore label and -1 are stamped back from the nearest LR slice.
        label_manager: nnU-Net's.
        config: what is done beyond applying the network.
        smore_image: (C, r*D, H, W), what SMORE made of the case; None: there is no SMORE.
        unit: of the case; None takes it from `image`, which a simulated case is only a part of.
    """
    channels = to_channels(torch.from_numpy(labels[0].astype(np.int64)), head_labels(label_manager))
    acquired = torch.from_numpy(np.ascontiguousarray(image)).float()
    unit = unit or IntensityUnit.of_case(image)
    output = super_resolve(network, unit.apply(acquired), channels)
    use_smore = config.image == "smore" and smore_image is not None
    fine = torch.from_numpy(smore_image).float() if use_smore else unit.undo(output.image)
    sharp = back_project(fine, acquired, network.factor, 1, steps=config.back_projection_steps)
    logits = output.labels
    if config.volume_offsets:
        offsets = volume_offsets(logits, torch.from_numpy(labels[0]), network.factor, label_manager)
        logits = logits + offsets.view(-1, 1, 1, 1)
    by_network = output.uncertainty.numpy()
    by_labels = config.uncertainty == "entropy"
    return PseudoHRVolumes(
        image=sharp.numpy(),
        uncertainty=label_entropy(logits.numpy(), label_manager)[None] if by_labels else by_network,
        network_uncertainty=by_network,
        labels=to_label_map(logits, labels, network.factor, label_manager),
        logits=logits.numpy(),
    )


def robust_min_max(uncertainty: np.ndarray, *, percentiles: tuple[float, float] = (0.5, 99.5)) -> np.ndarray:
    """Scale a map to [0, 1] between two percentiles and clip; a constant map becomes 0 (no voxel is less certain).

    Raises:
        ValueError: values that are not finite.
    """
    if not np.isfinite(uncertainty).all():
        raise ValueError("uncertainty must be finite, got nan or inf")
    low, high = (float(p) for p in np.percentile(uncertainty, percentiles))
    if high <= low:
        return np.zeros(uncertainty.shape, dtype=np.float32)
    return np.clip((uncertainty - low) / (high - low), 0, 1).astype(np.float32)


def label_agreement(labels: np.ndarray, reference: np.ndarray, groups: Sequence[LabelGroup]) -> float:
    """Mean foreground Dice of two label maps over the classes or regions that occur; nan if none does."""
    scores = [dice(np.isin(reference, group), np.isin(labels, group)) for group in groups if group != (0,)]
    present = [score for score in scores if not np.isnan(score)]
    return float(np.mean(present)) if present else float("nan")


def export_pseudo_hr(
    network: SelfSRNetwork,
    dataset: PreprocessedCases,
    identifiers: Iterable[str],
    store: CaseStore,
    planned: PlannedDataset,
    *,
    options: ExportOptions,
) -> dict[str, float]:
    """Write the pseudo-HR cases that are missing or older than the preprocessed ones, with a progress bar.

    A case's data are the image channels and U, brought to [0, 1] by `ExportOptions.scale`.

    Args:
        network: trained.
        dataset: preprocessed LR cases.
        identifiers: cases to write.
        store: opened for writing.
        planned: the dataset under its plans.
        options: how cases are made.

    Returns:
        Dice of each newly written case's pseudo labels, degraded, with the case's own labels; below
        `MIN_LABEL_DICE` something is wrong with the case or the network.

    Raises:
        ValueError: a case came out with nan or inf.
    """
    missing = [i for i in identifiers if not store.is_current(i, dataset.source_folder)]
    agreement = {}
    for identifier in tqdm(missing, desc="pseudo-HR cases", disable=not missing):
        image, labels, _, properties = dataset.load_case(identifier)
        image, labels = np.asarray(image[:]), np.asarray(labels[:])
        label_manager, smore = planned.label_manager, options.smore_image(identifier)
        hr = super_resolve_case(network, image, labels, label_manager, config=options.config, smore_image=smore)
        _check_finite(identifier, hr)
        store.write_case(
            identifier,
            np.concatenate([hr.image, options.scale(hr.uncertainty)]),
            hr.labels,
            derived_properties(dataset.source_folder, identifier, image, properties),
            planned,
        )
        degraded = degrade_labels(torch.from_numpy(hr.labels[0]), network.factor, 0).numpy()
        agreement[identifier] = label_agreement(degraded, labels[0], head_labels(label_manager))
    return agreement


def _check_finite(identifier: str, hr: PseudoHRVolumes) -> None:
    if not all(np.isfinite(a).all() for a in (hr.image, hr.uncertainty, hr.network_uncertainty)):
        raise ValueError(
            f"{identifier}: pseudo-HR image and uncertainty must be finite, got nan or inf; if the log shows losses of "
            "nan, train stage 1 again with a smaller learning_rate"
        )

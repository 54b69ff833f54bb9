"""How good the self-SR is: PSNR, SSIM, label Dice and whether U ranks the error, beside plain interpolation.

Two comparisons: validation cases whose in-plane axis was degraded and restored (needs nothing but LR data), and, where
`imagesTrHR` and `labelsTrHR` lie beside `imagesTr` (`rehrseg simulate` keeps them), the true HR volumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.stats import spearmanr

from rehrseg_nnunet.config.rehrseg import ExportConfig, SelfSRConfig
from rehrseg_nnunet.evaluation.figures import save_case_figure
from rehrseg_nnunet.restoration.report import (
    RestorationReport,
    Row,
    Volumes,
    mean_scores,
    method_scores,
    true_hr_case,
)
from rehrseg_nnunet.self_sr.export import PseudoHRVolumes, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

SELF_SR, WITH_SMORE = "self-SR", "self-SR, image by SMORE"


def restoration_scores(
    network: SelfSRNetwork,
    lr: tuple[np.ndarray, np.ndarray],
    truth: tuple[np.ndarray, np.ndarray],
    label_manager: LabelManager,
    *,
    spacing_mm: Sequence[float],
    config: ExportConfig,
    smore_image: np.ndarray | None = None,
) -> dict[str, Row]:
    """Restore one LR case in three ways and compare with the truth.

    Args:
        network: trained.
        lr: image (C, D, H, W) and labels (1, D, H, W).
        truth: image (C, r*D, H, W) and labels (1, r*D, H, W).
        label_manager: nnU-Net's.
        spacing_mm: LR spacing, for the signed distances.
        config: how pseudo-HR cases are made.
        smore_image: see `super_resolve_case`.

    Returns:
        For each method: psnr (dB), ssim (both over all channels that are not constant, data range: the true channel's
        max - min), dice (mean over the classes or regions that occur) and for the self-SR `spearman` of U with the
        image error. Voxels count for the Dice as in `method_scores`.
    """
    hr = super_resolve_case(network, *lr, label_manager, config=config, smore_image=smore_image)
    method = WITH_SMORE if config.image == "smore" and smore_image is not None else SELF_SR
    rows = method_scores(
        {method: (hr.image, hr.labels)}, lr, truth, label_manager, factor=network.factor, spacing_mm=spacing_mm
    )
    error = np.abs(hr.image - truth[0]).mean(axis=0)
    rows[method]["spearman"] = float(spearmanr(hr.uncertainty.ravel(), error.ravel()).statistic)
    return rows


def simulated_case(
    image: np.ndarray, labels: np.ndarray, factor: int, axis: int, *, upper_ties: bool
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Degrade a near-isotropic case along an in-plane axis.

    Args:
        image: (C, Z, Y, X).
        labels: (1, Z, Y, X).
        factor: r.
        axis: 1 (y) or 2 (x): the axis that plays the slice axis.
        upper_ties: see `degrade_labels`.

    Returns:
        (image, labels) of the thick-slice case and of the truth, slice axis first, cropped to a multiple of r.
    """
    slices = image.shape[1 + axis] // factor * factor
    true_image = np.ascontiguousarray(np.moveaxis(image, 1 + axis, 1)[:, :slices])
    true_labels = np.ascontiguousarray(np.moveaxis(labels, 1 + axis, 1)[:, :slices])
    lr_image = degrade(torch.from_numpy(true_image.astype(np.float32)), factor, 1).numpy()
    labels_there = torch.from_numpy(true_labels.astype(np.int16))
    lr_labels = degrade_labels(labels_there, factor, 1, upper_ties=upper_ties).numpy()
    return (lr_image, lr_labels), (true_image, true_labels)


def report_self_sr(
    network: SelfSRNetwork,
    dataset: nnUNetBaseDataset,
    interpolated: nnUNetBaseDataset,
    *,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    raw_folder: Path | None,
    figure_folder: Path,
    config: SelfSRConfig,
    smore: nnUNetBaseDataset | None = None,
    figures: int = 3,
) -> RestorationReport:
    """Score the validation cases and draw a few of them.

    Args:
        network: trained.
        dataset: preprocessed LR validation cases.
        interpolated: the same cases interpolated to near-isotropic spacing.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's.
        dataset_json: nnU-Net's.
        raw_folder: dataset folder in nnUNet_raw, or None where it is not known.
        figure_folder: where `pseudo_hr_<case>.png` are written.
        config: stage 1's settings.
        smore: SMORE's cases, for `config.export.image` "smore"; simulated cases have none.
        figures: number of cases drawn.
    """
    label_manager = plans_manager.get_label_manager(dataset_json)
    spacing = list(configuration_manager.spacing)
    scores: dict[str, list[dict[str, Row]]] = {}
    for number, identifier in enumerate(sorted(dataset.identifiers)):
        lr, fine = _load(dataset, identifier), _load(interpolated, identifier)
        smore_image = None if smore is None else _load(smore, identifier)[0]
        comparisons = list(_simulated_cases(fine, network.factor, spacing, upper_ties=number % 2 == 1))
        if raw_folder is not None:
            truth = true_hr_case(
                raw_folder,
                identifier,
                lr[0],
                dataset.load_case(identifier)[3],
                plans_manager=plans_manager,
                dataset_json=dataset_json,
                factor=network.factor,
            )
            comparisons += [] if truth is None else [("true HR", lr, truth, spacing)]
        for name, thick, truth, spacing_mm in comparisons:
            row = restoration_scores(
                network,
                thick,
                truth,
                label_manager,
                spacing_mm=spacing_mm,
                config=config.export,
                smore_image=smore_image if thick is lr else None,
            )
            scores.setdefault(name, []).append(row)
        if number < figures:
            hr = super_resolve_case(network, *lr, label_manager, config=config.export, smore_image=smore_image)
            _draw(lr, fine, hr, figure_folder / f"pseudo_hr_{identifier}.png")
    return RestorationReport(
        comparisons={name: mean_scores(rows) for name, rows in scores.items()},
        cases={name: len(rows) for name, rows in scores.items()},
    )


def _simulated_cases(
    fine: Volumes, factor: int, spacing_mm: Sequence[float], *, upper_ties: bool
) -> Iterator[tuple[str, Volumes, Volumes, Sequence[float]]]:
    """Name, thick-slice case, truth and spacing for each in-plane axis that is long enough to play the slice axis."""
    for name, axis in (("simulated along y", 1), ("simulated along x", 2)):
        if fine[0].shape[1 + axis] < factor:
            continue
        simulated, truth = simulated_case(*fine, factor, axis, upper_ties=upper_ties)
        yield name, simulated, truth, (spacing_mm[axis] * factor, spacing_mm[0] / factor, spacing_mm[3 - axis])


def _load(dataset: nnUNetBaseDataset, identifier: str) -> Volumes:
    image, labels, _, _ = dataset.load_case(identifier)
    return np.asarray(image[:], dtype=np.float32), np.asarray(labels[:]).astype(np.int16)


def _draw(lr: Volumes, fine: Volumes, hr: PseudoHRVolumes, file: Path) -> None:
    factor = fine[0].shape[1] // lr[0].shape[1]
    thick = [np.repeat(volume[0], factor, axis=0) for volume in lr]
    images = {"LR": thick[0], "interpolated": fine[0][0], "pseudo-HR": hr.image[0]}
    labels = {"LR": thick[1], "interpolated": fine[1][0], "pseudo-HR": hr.labels[0]}
    save_case_figure(file, images, labels, hr.uncertainty[0])

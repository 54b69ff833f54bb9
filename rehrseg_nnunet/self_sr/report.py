"""How good the self-SR is: PSNR, SSIM, label Dice and whether U ranks the error, beside plain interpolation.

Two comparisons: validation cases whose in-plane axis was degraded and restored (needs nothing but LR data), and, where
`imagesTrHR` and `labelsTrHR` lie beside `imagesTr` (`rehrseg simulate` keeps them), the true HR volumes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.stats import spearmanr
from tqdm import tqdm

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.evaluation.figures import save_case_figure
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.report import (
    Comparison,
    RestorationReport,
    Row,
    Volumes,
    load_volumes,
    method_scores,
    true_hr_case,
)
from rehrseg_nnunet.self_sr.export import PseudoHRVolumes, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

SELF_SR, WITH_SMORE = "self-SR", "self-SR, image by SMORE"
TRUE_HR = "true HR"
RANKED_VOXELS = 200_000


def report_self_sr(
    network: SelfSRNetwork,
    dataset: Cases,
    interpolated: Cases,
    planned: PlannedDataset,
    *,
    figure_folder: Path,
    config: ExportConfig,
    smore: Cases | None = None,
    figures: int = 3,
) -> RestorationReport:
    """Score the validation cases and draw a few of them, with a progress bar; every case is restored once.

    Args:
        network: trained.
        dataset: preprocessed LR validation cases.
        interpolated: the same cases interpolated to near-isotropic spacing.
        planned: the dataset under its plans.
        figure_folder: where `pseudo_hr_<case>.png` are written.
        config: how pseudo-HR cases are made.
        smore: SMORE's cases, for `config.image` "smore"; simulated cases have none.
        figures: number of cases drawn.
    """
    label_manager, factor = planned.label_manager, network.factor
    scores: dict[str, list[dict[str, Row]]] = {}
    for number, identifier in enumerate(tqdm(sorted(dataset.identifiers), desc="report")):
        lr, fine = load_volumes(dataset, identifier), load_volumes(interpolated, identifier)
        for comparison in simulated_cases(fine, factor, planned.spacing_mm, upper_ties=number % 2 == 1):
            hr = super_resolve_case(network, *comparison.lr, label_manager, config=config)
            rows = restoration_scores(comparison, hr, label_manager, method=SELF_SR)
            scores.setdefault(comparison.name, []).append(rows)
        truth = true_hr_case(planned, identifier, lr[0], dataset.load_case(identifier)[3])
        if truth is None and number >= figures:
            continue
        smore_image = None if smore is None else load_volumes(smore, identifier)[0]
        hr = super_resolve_case(network, *lr, label_manager, config=config, smore_image=smore_image)
        if truth is not None:
            method = WITH_SMORE if config.image == "smore" and smore_image is not None else SELF_SR
            comparison = Comparison(TRUE_HR, lr, truth, planned.spacing_mm)
            scores.setdefault(TRUE_HR, []).append(restoration_scores(comparison, hr, label_manager, method=method))
        if number < figures:
            _draw(lr, fine, hr, figure_folder / f"pseudo_hr_{identifier}.png")
    return RestorationReport.of_cases(scores)


def restoration_scores(
    comparison: Comparison, hr: PseudoHRVolumes, label_manager: LabelManager, *, method: str
) -> dict[str, Row]:
    """Score a case as the self-SR restored it beside plain interpolation.

    Args:
        comparison: the case and the truth.
        hr: the restored case.
        label_manager: nnU-Net's.
        method: what the self-SR is called.

    Returns:
        See `method_scores`; for the self-SR also `spearman` of U with the image error.
    """
    rows = method_scores(comparison, {method: (hr.image, hr.labels)}, label_manager)
    error = np.abs(hr.image - comparison.truth[0]).mean(axis=0)
    rows[method]["spearman"] = rank_correlation(hr.uncertainty, error)
    return rows


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two maps of the same shape, from `RANKED_VOXELS` voxels if there are more.

    Ranking all voxels of a case can take minutes. The voxels are drawn with a fixed seed; the standard error is 0.002.
    """
    a, b = a.ravel(), b.ravel()
    if a.size > RANKED_VOXELS:
        chosen = np.random.default_rng(0).integers(a.size, size=RANKED_VOXELS)
        a, b = a[chosen], b[chosen]
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue] # made at run time


def simulated_cases(
    fine: Volumes, factor: int, spacing_mm: Sequence[float], *, upper_ties: bool
) -> Iterator[Comparison]:
    """A near-isotropic case degraded along each in-plane axis that is long enough to play the slice axis.

    Args:
        fine: image (C, Z, Y, X) and labels (1, Z, Y, X).
        factor: r.
        spacing_mm: (c, a_y, a_x) of the LR case.
        upper_ties: see `degrade_labels`.
    """
    for name, axis in (("simulated along y", 1), ("simulated along x", 2)):
        if fine[0].shape[1 + axis] >= factor:
            lr, truth = simulated_case(*fine, factor, axis, upper_ties=upper_ties)
            spacing = (spacing_mm[axis] * factor, spacing_mm[0] / factor, spacing_mm[3 - axis])
            yield Comparison(name, lr, truth, spacing)


def simulated_case(
    image: np.ndarray, labels: np.ndarray, factor: int, axis: int, *, upper_ties: bool
) -> tuple[Volumes, Volumes]:
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


def _draw(lr: Volumes, fine: Volumes, hr: PseudoHRVolumes, file: Path) -> None:
    factor = fine[0].shape[1] // lr[0].shape[1]
    thick = [np.repeat(volume[0], factor, axis=0) for volume in lr]
    images = {"LR": thick[0], "interpolated": fine[0][0], "pseudo-HR": hr.image[0]}
    labels = {"LR": thick[1], "interpolated": fine[1][0], "pseudo-HR": hr.labels[0]}
    save_case_figure(file, images, labels, hr.uncertainty[0])

"""How good the self-SR is: PSNR, SSIM and label Dice beside plain interpolation, and whether U marks what is wrong.

Two comparisons: validation cases whose in-plane axis was degraded and restored (needs nothing but LR data), and, where
`imagesTrHR` and `labelsTrHR` lie beside `imagesTr` (`rehrseg simulate` keeps them), the true HR volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from tqdm import tqdm

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.evaluation.figures import Cut, Overlay, Panel, draw_planes, grey_window, save_figure
from rehrseg_nnunet.evaluation.volumes import Volume, largest_section, window_around
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
from rehrseg_nnunet.self_sr.export import ExportOptions, PseudoHRVolumes, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.simulated_cases import simulated_cases
from rehrseg_nnunet.self_sr.uncertainty_quality import TrueErrors, judge, label_entropy, rank_correlation
from rehrseg_nnunet.slices.grids import Grid
from rehrseg_nnunet.surfaces.colours import colour

SELF_SR, WITH_SMORE = "self-SR", "self-SR, image by SMORE"
TRUE_HR = "true HR"
MARGIN_MM = 8  # around the structures, in pictures


@dataclass(frozen=True)
class SelfSRReport:
    """Scores of the restorations and, against the true errors, of U.

    Attributes:
        restoration: image and labels, beside plain interpolation.
        uncertainty: U, beside the entropy of the labels and what the smoothed true errors reach, see `judge`.
    """

    restoration: RestorationReport
    uncertainty: RestorationReport

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        return {**self.restoration.as_dict(), "uncertainty": self.uncertainty.as_dict()}

    def as_scores(self) -> dict[str, float]:
        """Scores of the self-SR and of U by "stage_1/comparison/score"."""
        return {
            f"stage_1/{comparison}/{prefix}{name}": value
            for report, shown, prefix in (
                (self.restoration, (SELF_SR, WITH_SMORE), ""),
                (self.uncertainty, ("U",), "U "),
            )
            for comparison, methods in report.comparisons.items()
            for method in shown
            for name, value in methods.get(method, {}).items()
        }

    def as_table(self) -> str:
        """Aligned text, one row per comparison and method, then one per comparison and uncertainty map."""
        return f"{self.restoration.as_table()}\n\n{self.uncertainty.as_table()}"


class _Scores:
    """Scores of every case so far."""

    def __init__(self, label_manager: LabelManager, options: ExportOptions):
        self.label_manager, self.options = label_manager, options
        self.restoration: dict[str, list[dict[str, Row]]] = {}
        self.uncertainty: dict[str, list[dict[str, Row]]] = {}

    def add(self, comparison: Comparison, hr: PseudoHRVolumes, *, method: str) -> None:
        """Score a restored case."""
        rows = restoration_scores(comparison, hr, self.label_manager, method=method)
        self.restoration.setdefault(comparison.name, []).append(rows)
        rows = uncertainty_scores(comparison, hr, self.label_manager, self.options)
        self.uncertainty.setdefault(comparison.name, []).append(rows)

    def report(self) -> SelfSRReport:
        """Their means."""
        return SelfSRReport(RestorationReport.of_cases(self.restoration), RestorationReport.of_cases(self.uncertainty))


def report_self_sr(
    network: SelfSRNetwork,
    dataset: Cases,
    interpolated: Cases,
    planned: PlannedDataset,
    *,
    figure_folder: Path,
    options: ExportOptions,
    figures: int = 3,
) -> SelfSRReport:
    """Score the validation cases and draw a few of them, with a progress bar; every case is restored once.

    Args:
        network: trained.
        dataset: preprocessed LR validation cases.
        interpolated: the same cases interpolated to near-isotropic spacing.
        planned: the dataset under its plans.
        figure_folder: where `pseudo_hr_<case>.png` are written.
        options: how pseudo-HR cases are made; simulated cases have no image by SMORE.
        figures: number of cases drawn.
    """
    label_manager, factor, config = planned.label_manager, network.factor, options.config
    scores = _Scores(label_manager, options)
    for number, identifier in enumerate(tqdm(sorted(dataset.identifiers), desc="report")):
        lr, fine = load_volumes(dataset, identifier), load_volumes(interpolated, identifier)
        unit = IntensityUnit.of_case(lr[0])
        for comparison in simulated_cases(fine, factor, planned.spacing_mm, upper_ties=number % 2 == 1):
            hr = super_resolve_case(network, *comparison.lr, label_manager, config=config, unit=unit)
            scores.add(comparison, hr, method=SELF_SR)
        truth = true_hr_case(planned, identifier, lr[0], dataset.load_case(identifier)[3])
        if truth is None and number >= figures:
            continue
        smore_image = options.smore_image(identifier)
        hr = super_resolve_case(network, *lr, label_manager, config=config, smore_image=smore_image)
        if truth is not None:
            method = WITH_SMORE if config.image == "smore" and smore_image is not None else SELF_SR
            scores.add(Comparison(TRUE_HR, lr, truth, planned.spacing_mm), hr, method=method)
        if number < figures:
            images = {"thick slices": lr, "interpolated": fine, "pseudo-HR": (hr.image, hr.labels)}
            images |= {} if truth is None else {"truth": truth}
            file = figure_folder / f"pseudo_hr_{identifier}.png"
            _draw(images, options.scale(hr.uncertainty)[0], planned.spacing_mm, file)
    return scores.report()


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


def uncertainty_scores(
    comparison: Comparison, hr: PseudoHRVolumes, label_manager: LabelManager, options: ExportOptions
) -> dict[str, Row]:
    """Score U as it is stored for a restored case, the network's U and the entropy of its labels, see `judge`."""
    errors = TrueErrors.of_case((hr.image, hr.labels), comparison.truth, label_manager)
    maps = {
        "U": options.scale(hr.uncertainty)[0],
        "network's U": hr.network_uncertainty[0],
        "entropy": label_entropy(hr.logits, label_manager),
    }
    return judge(maps, errors, factor=comparison.factor)


def _draw(images: Mapping[str, Volumes], uncertainty: np.ndarray, spacing_mm: Sequence[float], file: Path) -> None:
    """Write the planes of a case: each volume with its labels, the first thick, then U of the thin grid (D, H, W)."""
    thick, *_ = images.values()
    shown = {
        title: [_volume(values[0], spacing_mm, thick_slices=thick[0].shape[1]) for values in volumes]
        for title, volumes in images.items()
    }
    (scan, labels), *_ = shown.values()
    colours = {value: _rgb(value) for value in range(1, int(max(v.values.max() for _, v in shown.values())) + 1)}
    panels = [Panel(title, image, [Overlay(outlined, colours)]) for title, (image, outlined) in shown.items()]
    mask = _volume(uncertainty, spacing_mm, thick_slices=thick[0].shape[1])
    panels.append(Panel("uncertainty U", mask, limits=(0, float(uncertainty.max()) or 1)))
    titles = ("in plane", "through plane (y)", "through plane (x)")
    cuts = [Cut(title, axis, largest_section(labels, axis)) for axis, title in enumerate(titles)]
    window = window_around([labels], margin_mm=MARGIN_MM, within=scan)
    save_figure(draw_planes(panels, cuts, window, grey=grey_window(scan)), file)


def _volume(values: np.ndarray, spacing_mm: Sequence[float], *, thick_slices: int) -> Volume:
    """Values (D, H, W) over the field of view of thick slices with a spacing."""
    slices = values.shape[0]
    spacing = np.array([spacing_mm[0] * thick_slices / slices, *spacing_mm[1:]])
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = (spacing[0] - spacing_mm[0]) / 2
    return Volume(values, Grid((slices, values.shape[1], values.shape[2]), affine))


def _rgb(label: int) -> tuple[float, float, float]:
    red, green, blue = colour(label - 1)
    return red / 255, green / 255, blue / 255

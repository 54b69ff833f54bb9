"""Measure how often a trained network's pseudo labels are wrong for a given U."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn
from tqdm import tqdm

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.store import CaseStore
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.restoration.report import load_volumes
from rehrseg_nnunet.self_sr.calibration import Calibration
from rehrseg_nnunet.self_sr.export import STORE_NAME, super_resolve_case
from rehrseg_nnunet.self_sr.network import SelfSRNetwork
from rehrseg_nnunet.self_sr.simulated_cases import simulated_cases
from rehrseg_nnunet.self_sr.uncertainty_quality import TrueErrors

CASES = 8
VOXELS = 100_000  # of a case


def stored_calibration(run: FoldRun, network: nn.Module, config: ExportConfig) -> Calibration | None:
    """The calibration in the manifest of a run's cases, None if they are not this network's or of another U.

    Measured anew, it could differ by rounding, and all cases would be made again.
    """
    manifest = CaseStore(run.folder, STORE_NAME).read_manifest()
    if manifest is None or manifest.weights_sha256 != hash_weights(network.state_dict()):
        return None
    export = manifest.made_with.get("export")
    if not isinstance(export, dict) or export.get("uncertainty") != config.uncertainty:
        return None
    content = manifest.made_with.get("calibration")
    return Calibration.of_json(content) if isinstance(content, dict) else None


def calibrate(
    network: SelfSRNetwork, interpolated: Cases, planned: PlannedDataset, *, config: ExportConfig
) -> Calibration:
    """The map from U to the share of wrong pseudo labels, on simulated thick slices; with a progress bar.

    Args:
        network: trained.
        interpolated: validation cases at near-isotropic spacing; the first `CASES` are taken, in turn along y and x.
        planned: the dataset under its plans.
        config: which U.

    Returns:
        The map; where no validation case has a label that is known, U as it is.
    """
    labels_alone = config.model_copy(update={"back_projection_steps": 0})
    identifiers = sorted(interpolated.identifiers)[:CASES]
    samples = []
    for number, identifier in enumerate(tqdm(identifiers, desc="calibrating U")):
        samples.extend(_samples(network, interpolated, identifier, planned, config=labels_alone, number=number))
    if not any(len(uncertainty) for uncertainty, _ in samples):
        return Calibration(uncertainty=(0.0, 1.0), wrong=(0.0, 1.0))
    return Calibration.fit(samples)


def _samples(
    network: SelfSRNetwork,
    interpolated: Cases,
    identifier: str,
    planned: PlannedDataset,
    *,
    config: ExportConfig,
    number: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """U and whether the label is wrong, of voxels drawn from one case made thick along one axis."""
    fine = load_volumes(interpolated, identifier)
    unit = IntensityUnit.of_properties(interpolated.load_case(identifier)[3])
    comparisons = list(simulated_cases(fine, network.factor, planned.spacing_mm, upper_ties=number % 4 > 1))
    for comparison in comparisons[number % max(1, len(comparisons)) :][:1]:
        hr = super_resolve_case(network, *comparison.lr, planned.label_manager, config=config, unit=unit)
        errors = TrueErrors.of_case((hr.image, hr.labels), comparison.truth, planned.label_manager)
        uncertainty, wrong = hr.uncertainty[0][errors.known], errors.wrong[errors.known]
        chosen = np.random.default_rng(number).permutation(len(wrong))[:VOXELS]
        yield uncertainty[chosen], wrong[chosen]

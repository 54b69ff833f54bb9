"""What teacher and keeper make of the validation cases: files, pictures, and scores beside what is to be had without.

The scores of the keeper's image lie between two others: the source after the best line a x + b, which any network must
beat, and the teacher's reconstruction of the privileged image itself, which the decoder cannot beat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import save_json
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import distributed as dist
from torch import nn

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.evaluation.figures import Cut, Panel, draw_planes, grey_window, save_figure
from rehrseg_nnunet.evaluation.tables import format_table
from rehrseg_nnunet.evaluation.volumes import Volume, largest_section
from rehrseg_nnunet.guided.foreground import FOREGROUND
from rehrseg_nnunet.guided.image_scores import as_json, image_scores, mean_of_defined
from rehrseg_nnunet.guided.pair_transforms import split_channels
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.guided.synthesis import file_stems, in_case_grid, planned_spacing, synthesise
from rehrseg_nnunet.guided.training import PairedTraining
from rehrseg_nnunet.guided.validation_summary import write_summary
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.whole_files import whole_files
from rehrseg_nnunet.slices.grids import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE, SYNTHESISED, RECONSTRUCTED = "source, best line", "synthesised", "teacher's reconstruction"
TRUE, DIFFERENCE = "true", "|difference|"
TEACHER_REPORT, SYNTHESIS_REPORT = "teacher_report.json", "synthesis_report.json"
FIGURES = 3
CaseRows = dict[str, dict[str, float]]  # method to scores


@dataclass(frozen=True, eq=False)
class PairedCase:
    """A preprocessed validation case.

    Attributes:
        source: (S, D, H, W).
        privileged: (P, D, H, W).
        inside: (D, H, W), true where images are scored.
        properties: nnU-Net's.
    """

    source: torch.Tensor
    privileged: torch.Tensor
    inside: np.ndarray
    properties: dict[str, Any]


class ValidationReport:
    """Scores images of the validation cases of a fold.

    Args:
        trainer: of teacher or keeper, trained.
    """

    def __init__(self, trainer: PairedTraining) -> None:
        self.trainer = trainer
        self.image_range = trainer.image_range.tolist()
        _, self.identifiers = trainer.do_split()
        self.dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, self.identifiers)

    def own_cases(self) -> list[str]:
        """Those of this DDP rank, or all."""
        identifiers = sorted(self.identifiers)
        return identifiers[self.trainer.local_rank :: dist.get_world_size()] if self.trainer.is_ddp else identifiers

    def load(self, identifier: str) -> PairedCase:
        """A case."""
        return load_pair(self.dataset, identifier, self.trainer.channels, self.trainer.label_manager)

    def image_of(self, network: nn.Module, case: torch.Tensor) -> np.ndarray:
        """A network's image (P, D, H, W) of a whole case."""
        patch_size = self.trainer.configuration_manager.patch_size
        return synthesise(network, case, patch_size=patch_size, device=self.trainer.device)

    def scores(self, case: PairedCase, images: Mapping[str, np.ndarray]) -> CaseRows:
        """Scores of images of a case, by method."""
        truth = case.privileged.numpy()
        return {method: image_scores(truth, image, case.inside, self.image_range) for method, image in images.items()}

    def save(self, own: dict[str, CaseRows], name: str) -> None:
        """Write the report of all ranks' cases, and print its means."""
        parts = [own]
        if self.trainer.is_ddp:
            parts = [own] * dist.get_world_size()
            dist.all_gather_object(parts, own)
        if self.trainer.local_rank != 0:
            return
        cases = {identifier: rows for part in parts for identifier, rows in sorted(part.items())}
        means, missing = mean_rows(cases), left_out(cases)
        content = {"mean": means, "left_out": missing, "cases": cases, "image_range": self.image_range}
        save_json(as_json(content), str(Path(self.trainer.output_folder) / name), sort_keys=False)
        write_summary(Path(self.trainer.output_folder) / name)
        if missing:
            told = "; ".join(f"{case} ({', '.join(scores)})" for case, scores in missing.items())
            self.trainer.print_to_log_file(
                f"WARNING: {len(missing)} of {len(cases)} validation cases are left out of means, as a score of a "
                f"constant, empty or exactly equal image is not defined: {told}"
            )
        rows = [{"image": method, **{k: f"{v:.4f}" for k, v in row.items()}} for method, row in means.items()]
        self.trainer.print_to_log_file(f"\n{format_table(rows)}", add_timestamp=False)


def load_pair(dataset: Cases, identifier: str, channels: PairedChannels, label_manager: LabelManager) -> PairedCase:
    """A preprocessed case of a paired dataset.

    Args:
        dataset: nnU-Net's.
        identifier: of the case.
        channels: which are which.
        label_manager: nnU-Net's.
    """
    image, labels, _, properties = dataset.load_case(identifier)
    source, privileged = split_channels(np.asarray(image), channels)
    inside = scored_voxels(np.asarray(labels)[0], privileged.numpy(), label_manager)
    return PairedCase(source, privileged, inside, properties)


def scored_voxels(labels: np.ndarray, privileged: np.ndarray, label_manager: LabelManager) -> np.ndarray:
    """Where images are scored: in the head, as far as it is known.

    The label that `rehrseg pair` makes where people gave none is the head. Beside labels of structures all counts that
    nnU-Net did not mask, but for the privileged image's least value, which is what skull-stripped scans have outside.

    Args:
        labels: (D, H, W), preprocessed.
        privileged: (P, D, H, W).
        label_manager: nnU-Net's.
    """
    if label_manager.label_dict.keys() == {"background", FOREGROUND} and (labels > 0).any():
        return labels > 0
    least = privileged.min(axis=tuple(range(1, privileged.ndim)), keepdims=True)
    return (labels >= 0) & (privileged > least).any(axis=0)


def mean_rows(cases: Mapping[str, CaseRows]) -> CaseRows:
    """Mean scores of every method, of the same cases for all methods: see `left_out`.

    Args:
        cases: by identifier.
    """
    missing = left_out(cases)
    methods = next(iter(cases.values()), {})

    def mean(method: str, name: str) -> float:
        return mean_of_defined(
            [rows[method][name] for case, rows in cases.items() if name not in missing.get(case, ())]
        )

    return {method: {name: mean(method, name) for name in scores} for method, scores in methods.items()}


def left_out(cases: Mapping[str, CaseRows]) -> dict[str, list[str]]:
    """Which scores of which cases no mean counts, because they are not finite for some method.

    Args:
        cases: by identifier.
    """
    undefined = {
        identifier: sorted({name for row in rows.values() for name, value in row.items() if not np.isfinite(value)})
        for identifier, rows in cases.items()
    }
    return {identifier: names for identifier, names in undefined.items() if names}


def best_line(source: np.ndarray, truth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The source after the line that brings it nearest to the truth: a x + b, a number a for each source channel.

    Args:
        source: (S, *size).
        truth: (P, *size).
        inside: (*size), true where voxels count.

    Returns:
        (P, *size).
    """
    terms = np.concatenate([source, np.ones_like(source[:1])]).astype(np.float64)
    weights = np.linalg.lstsq(terms[:, inside].T, truth[:, inside].T.astype(np.float64), rcond=None)[0]
    return np.tensordot(weights.T, terms, axes=1).astype(np.float32)


def report_teacher(trainer: PairedTraining) -> None:
    """Score the teacher's reconstructions of the validation cases: `teacher_report.json`."""
    report = ValidationReport(trainer)
    network = unwrap(trainer.network)
    rows = {}
    for identifier in report.own_cases():
        case = report.load(identifier)
        rows[identifier] = report.scores(case, {RECONSTRUCTED: report.image_of(network, case.privileged)})
    report.save(rows, TEACHER_REPORT)


def report_keeper(trainer: PairedTraining, teacher: nn.Module | None) -> None:
    """Write the validation cases as the keeper synthesises them, draw some, and score all: `synthesis_report.json`.

    Args:
        trainer: the keeper's.
        teacher: that it was taught by; None: it is not at hand, and the report has no bound.
    """
    report = ValidationReport(trainer)
    network = unwrap(trainer.network)
    drawn = sorted(report.identifiers)[:FIGURES]
    rows = {}
    for identifier in report.own_cases():
        case = report.load(identifier)
        images = {
            SOURCE: best_line(case.source.numpy(), case.privileged.numpy(), case.inside),
            SYNTHESISED: report.image_of(network, case.source),
        }
        if teacher is not None:
            images[RECONSTRUCTED] = report.image_of(teacher, case.privileged)
        rows[identifier] = report.scores(case, images)
        write_case(trainer, identifier, images[SYNTHESISED], case.properties)
        if identifier in drawn:
            draw_case(trainer, identifier, case, images)
    report.save(rows, SYNTHESIS_REPORT)


def write_case(trainer: PairedTraining, identifier: str, image: np.ndarray, properties: dict[str, Any]) -> None:
    """Write `validation/<case>`, one file for each channel, on the grid of the case's file."""
    plans = trainer.plans_manager
    writer = whole_files(plans.image_reader_writer_class)()
    stem = str(Path(trainer.output_folder) / "validation" / identifier)
    configuration, numbers = trainer.configuration_manager, trainer.channels.privileged
    for own, number, channel in zip(file_stems(stem, numbers), numbers, image, strict=True):
        masked = configuration.use_mask_for_norm[number]
        values = in_case_grid(channel, properties, plans, configuration, masked=masked)
        writer.write_image(values, own + trainer.dataset_json["file_ending"], properties)


def draw_case(trainer: PairedTraining, identifier: str, case: PairedCase, images: Mapping[str, np.ndarray]) -> None:
    """Draw `synthesis_<case>.png`, of the first privileged channel."""
    spacing = planned_spacing(case.properties, trainer.plans_manager, trainer.configuration_manager)
    truth, made = case.privileged[0].numpy(), images[SYNTHESISED][0]
    columns = {SOURCE: images[SOURCE][0], SYNTHESISED: made, TRUE: truth}
    figure = draw_images(columns, {DIFFERENCE: np.abs(made - truth)}, case.inside, spacing)
    save_figure(figure, Path(trainer.output_folder) / f"synthesis_{identifier}.png")


def draw_images(
    images: Mapping[str, np.ndarray],
    differences: Mapping[str, np.ndarray],
    inside: np.ndarray,
    spacing: Sequence[float],
) -> Figure:
    """Columns of images with the grey scale of the true one, then of differences with one scale for all of them.

    Args:
        images: (D, H, W) each, by title; one is `TRUE`.
        differences: absolute, likewise.
        inside: (D, H, W), of the head; the largest section of it is drawn along every axis.
        spacing: mm, by axis.
    """
    depth, height, width = inside.shape
    grid = Grid((depth, height, width), np.diag([*spacing, 1.0]))
    volumes = {title: Volume(values, grid) for title, values in {**images, **differences}.items()}
    largest = max((float(np.percentile(values, 99.5)) for values in differences.values()), default=0.0) or 1.0
    panels = [
        Panel(title, volume, limits=(0.0, largest) if title in differences else None)
        for title, volume in volumes.items()
    ]
    head = Volume(inside, grid)
    titles = ("in plane", "through plane (y)", "through plane (x)")[: 1 if depth == 1 else 3]
    cuts = [Cut(title, axis, largest_section(head, axis)) for axis, title in enumerate(titles)]
    return draw_planes(panels, cuts, head.box, grey=grey_window(volumes[TRUE]))

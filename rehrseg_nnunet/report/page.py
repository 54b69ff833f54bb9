"""From material to one HTML file."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tqdm import tqdm

from rehrseg_nnunet.nnunet.label_values import label_manager_of
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.report.browse import viewer_case
from rehrseg_nnunet.report.cases import read_case
from rehrseg_nnunet.report.charts import along_the_stack, curves, paired_dots, volume_differences
from rehrseg_nnunet.report.glance import answers, rounded, why
from rehrseg_nnunet.report.material import Material
from rehrseg_nnunet.report.pictures import as_uri, draw_case, file_uri
from rehrseg_nnunet.report.results import METRICS, CaseResult, case_result, ranked, scores_of
from rehrseg_nnunet.report.viewer import Viewer
from rehrseg_nnunet.surfaces.structures import Structures, structures_of

PICTURES, BROWSED = 20, 10
_PACKAGES = ("rehrseg-nnunet", "nnunetv2", "torch")
_DIGITS = {"Dice": 3, "HD95": 2, "NSD": 3}
_UNITS = {"HD95": " (mm)"}


@dataclass(frozen=True)
class Column:
    """A column of the table of cases: its title, whether it holds numbers, and what it explains."""

    title: str
    numeric: bool = True
    explanation: str = ""


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and the number that sorts it; None sorts by the text."""

    text: str
    number: float | None = None
    title: str = ""


@dataclass(frozen=True)
class ShownCase:
    """A case as the template shows it."""

    anchor: str
    name: str
    cells: Sequence[Cell]
    flags: Sequence[Any]
    why: str
    picture: str | None


def write_page(material: Material, file: Path, *, pictures: int = PICTURES) -> None:
    """Read all cases and write the page.

    Args:
        material: what was found.
        file: HTML file; written whole or not at all.
        pictures: of at most so many cases, the worst.

    Raises:
        OSError: the file could not be written.
        ValueError: a case's file cannot be used.
    """
    structures = structures_of(material.dataset_json)
    cases = _results(material, structures)
    environment = Environment(
        loader=PackageLoader("rehrseg_nnunet.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    drawn, viewer = _looks(material, cases[:pictures], structures)
    html = environment.get_template("page.html").render(
        material=material,
        facts={**material.facts, "report of": date.today().isoformat(), "made with": _made_with()},
        answers=answers(material, cases),
        columns=_columns(material, structures, cases),
        cases=_shown_cases(material, cases, drawn),
        has_reference=material.ranking_summary is not None,
        has_acquired=any(case.files.acquired for case in cases),
        charts=_charts(material, cases, structures),
        legend=[(s.name, "#{:02x}{:02x}{:02x}".format(*structures.colour(s))) for s in structures.all],
        trainings=[(title, curves(log), log.warnings) for title, log in material.trainings],
        stage_1=[
            (title, report, {case: file_uri(picture) for case, picture in report.pictures.items()})
            for title, report in material.stage_1
        ],
        viewer=viewer.html(),
    )
    write_atomically(file, html)


def _made_with() -> str:
    return ", ".join([*(f"{name} {version(name)}" for name in _PACKAGES), f"Python {platform.python_version()}"])


def _results(material: Material, structures: Structures) -> list[CaseResult]:
    if not material.cases or material.reader is None:
        return []
    scores = (
        scores_of(material.main_summary, material.model),
        scores_of(material.acquired_summary, material.model),
        {} if material.baseline is None else scores_of(material.ranking_summary, material.baseline),
    )
    how = {
        "reader": material.reader,
        "structures": structures,
        "ignore_label": label_manager_of(material.dataset_json).ignore_label,
        "scores": scores,
    }
    return ranked([case_result(files, **how) for files in tqdm(material.cases, desc="cases", leave=False)])


def _charts(material: Material, cases: Sequence[CaseResult], structures: Structures) -> list[tuple[str, str]]:
    found = [
        ("Every case against the baseline", paired_dots(cases)),
        ("Along the stack", along_the_stack(cases, model=material.model, baseline=material.baseline)),
        ("Volumes", volume_differences(cases, structures)),
    ]
    return [(title, chart) for title, chart in found if chart is not None]


def _columns(material: Material, structures: Structures, cases: Sequence[CaseResult]) -> list[Column]:
    folds = [Column("fold", numeric=False)] if any(case.files.fold for case in cases) else []
    scored = material.ranking_summary is not None
    metrics = [Column(f"{metric}{_UNITS.get(metric, '')}", explanation="mean over structures") for metric in METRICS]
    both = [Column("Dice, acquired slices")] if material.main_summary and material.acquired_summary else []
    base = [Column("Dice, less baseline's")] if material.baseline is not None and scored else []
    volumes = [Column(f"{structure.name} (ml)") for structure in structures.all]
    unsure = [Column("unsure", explanation="possible but not sure, of the volume")] if _any_unsure(cases) else []
    return [*folds, *(metrics if scored else []), *both, *base, *volumes, *unsure]


def _any_unsure(cases: Sequence[CaseResult]) -> bool:
    return any(not math.isnan(case.unsure_share) for case in cases)


def _cells(material: Material, case: CaseResult, *, folds: bool, unsure: bool) -> list[Cell]:
    cells = [Cell(case.files.fold)] if folds else []
    if material.ranking_summary is not None:
        cells += [_number(case.mean(metric), _DIGITS[metric]) for metric in METRICS]
        if material.main_summary and material.acquired_summary:
            cells.append(_number(case.mean("Dice", case.acquired_scores), 3))
        if material.baseline is not None:
            difference = case.mean("Dice") - case.mean("Dice", case.baseline_scores)
            cells.append(_number(difference, 3, sign="+"))
    for found in case.structures:
        title = "" if found.reference_ml is None else f"reference {found.reference_ml:.2f} ml"
        if found.sure_ml is not None:
            title += f"; {found.sure_ml:.2f} ml sure, {found.possible_ml:.2f} ml possible"
        cells.append(_number(found.volume_ml, 2, title=title.removeprefix("; ")))
    return [*cells, *([_number(100 * case.unsure_share, 0, unit=" %")] if unsure else [])]


def _number(value: float, digits: int, *, sign: str = "", unit: str = "", title: str = "") -> Cell:
    return Cell("-" if math.isnan(value) else f"{rounded(value, digits):{sign}.{digits}f}{unit}", value, title)


def _shown_cases(material: Material, cases: Sequence[CaseResult], pictures: Sequence[str]) -> list[ShownCase]:
    """All cases, the first with their pictures."""
    how = {"folds": any(case.files.fold for case in cases), "unsure": _any_unsure(cases)}
    return [
        ShownCase(f"case-{number}", case.name, _cells(material, case, **how), case.flags, why(case), picture)
        for number, (case, picture) in enumerate(zip_longest(cases, pictures))
    ]


def _looks(material: Material, cases: Sequence[CaseResult], structures: Structures) -> tuple[list[str], Viewer]:
    """Pictures of the cases, and a viewer of the first of them."""
    drawn, viewer = [], Viewer()
    if material.reader is None:
        return drawn, viewer
    how = {"reader": material.reader, "heads": structures.heads}
    for case in tqdm(cases, desc="pictures", leave=False, disable=not cases):
        main = read_case(case.files.main, **how)
        acquired = None if case.files.acquired is None else read_case(case.files.acquired, **how)
        if len(drawn) < BROWSED:
            viewer.add(viewer_case(case.files, main, acquired, structures))
        drawn.append(as_uri(draw_case(main, acquired, structures, axis=case.axis), kind="webp"))
    return drawn, viewer

"""One validation case of the pairs: the source, what was synthesised from it, the true better scan, differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.guidance.image_scores import ImageModel, ValidationCases, images_of
from benchmarks.guidance.runs import Run
from rehrseg_nnunet.evaluation.figures import picture
from rehrseg_nnunet.guided.report import DIFFERENCE, SOURCE, SYNTHESISED, TRUE, draw_images
from rehrseg_nnunet.guided.synthesis import planned_spacing


def write_picture(runs: Sequence[Run], file: Path, *, case: str | None = None) -> None:
    """Draw a validation case with what rival and keeper make of it, on the true image's grey scale.

    Args:
        runs: of the pairs, with the teacher; drawn are the plain U-Net and the keeper that guides, if finished.
        file: PNG.
        case: its name; None: the first by name.

    Raises:
        ValueError: no validation case, or the teacher is not finished.
    """
    models = {run.row.key: ImageModel(run) for run in runs if run.row.synthesises and run.finished}
    if "teacher" not in models:
        raise ValueError("--picture needs a finished teacher; run without --report first")
    cases = ValidationCases(models["teacher"])
    name = case or cases.identifiers[0]
    if name not in cases.identifiers:
        raise ValueError(f"--case must be a validation case, {', '.join(cases.identifiers)}, got {name}")
    pair = cases.load(name)
    truth = pair.privileged[0].numpy()
    drawn = [models[key] for key in ("l1_unet", runs[0].benchmark.keeper) if key in models]
    made = {model.run.row.title: images_of(model, pair)[SYNTHESISED][0] for model in drawn}
    columns = {SOURCE: images_of(models["teacher"], pair)[SOURCE][0], **made, TRUE: truth}
    differences = {f"{DIFFERENCE}\n{title}": np.abs(image - truth) for title, image in made.items()}
    plans, configuration = models["teacher"].plans, models["teacher"].planned
    figure = draw_images(columns, differences, pair.inside, planned_spacing(pair.properties, plans, configuration))
    file.write_bytes(picture(figure))

"""Cases of a raw dataset whose images and labels lie in nnU-Net's folders."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rehrseg_nnunet.nnunet.label_values import describe_unknown, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import image_files, list_cases, listed, say_left_out
from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.slices.grids import check_same_points, grid_from_properties

logger = logging.getLogger(__name__)


class RawCase(NamedTuple):
    """Files of a case; the label is None where a test case has none."""

    images: list[str]
    label: Path | None


def raw_cases(source: Path, part: str, dataset: Mapping[str, Any]) -> list[RawCase]:
    """The cases of imagesTr or imagesTs, in order of their files' names.

    Args:
        source: the dataset's folder.
        part: "Tr" or "Ts".
        dataset: content of dataset.json.

    Raises:
        ValueError: files without nnU-Net's names, or with other channels.
        FileNotFoundError: no images, or training cases without label.
    """
    images, labels, ending = source / f"images{part}", source / f"labels{part}", dataset["file_ending"]
    found = list_cases(images, ending, channels=len(dataset["channel_names"]))
    files = {file.name.removesuffix(ending): file for file in image_files(labels, ending)} if labels.is_dir() else {}
    for folder in (images, labels):
        if folder.is_dir():
            say_left_out(folder, ending)
    missing = [f"{case}{ending}" for case in found if case not in files]
    if missing and part == "Tr":
        raise FileNotFoundError(f"{labels} must have a label for every image, but {listed(missing)} is missing")
    if missing and files:
        logger.warning("%s: %s are missing: their images have no labels", labels, listed(missing))
    unused = [files[case].name for case in sorted(files.keys() - found.keys())]
    if unused:
        logger.warning("%s: %s have no image and are left out", labels, listed(unused))
    if part == "Tr" and dataset.get("numTraining", len(found)) != len(found):
        logger.warning("%s: dataset.json says %r cases, got %d", images, dataset["numTraining"], len(found))
    return [RawCase(found[case], files.get(case)) for case in sorted(found, key=lambda case: f"{case}{ending}")]


def read_labels(
    case: RawCase,
    *,
    reader: WholeFiles,
    shape: tuple[int, ...],
    properties: Mapping[str, Any],
    known: Collection[int] | None = None,
) -> np.ndarray | None:
    """(D, H, W) labels on the grid of their image, None for a case without.

    Args:
        case: files.
        reader: for the label map.
        shape: (D, H, W) of the image.
        properties: the image's, from its reader.
        known: labels of dataset.json; None takes any.

    Raises:
        ValueError: another grid than the image's, or unknown labels.
    """
    if case.label is None:
        return None
    labels, own = reader.read_seg(str(case.label))
    check_same_points(
        grid_from_properties(own, labels.shape[1:]),
        grid_from_properties(properties, shape),
        file=str(case.label),
        reference_file=case.images[0],
        remedy="draw or resample the labels on their image",
    )
    unknown = [] if known is None else unknown_labels(labels, known)
    if unknown:
        raise ValueError(f"{case.label} {describe_unknown(unknown)}; mend the labels, or add it there")
    return labels[0]

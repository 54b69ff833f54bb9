"""Segmentations that exist: label images, and the probabilities that nnU-Net and `rehrseg predict` save."""

from __future__ import annotations

import logging
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.dataset_json import check_keys, read_json
from rehrseg_nnunet.nnunet.folders import check_input
from rehrseg_nnunet.nnunet.label_values import describe_unknown, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import IMAGE_ENDINGS, SLICER_ENDING, image_ending, image_files
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError, whole_files_of
from rehrseg_nnunet.slices.grids import Grid, grid_from_properties
from rehrseg_nnunet.surfaces.structures import Structures, structures_in, structures_of

logger = logging.getLogger(__name__)

PROBABILITIES = ".npz"
STORED_LABELS = "rehrseg_labels"  # key of the pkl file beside probabilities: what dataset.json says of labels
_SMALLEST_PROBABILITY = 1e-7


@dataclass(frozen=True)
class StoredCase:
    """A case's label image, or its probabilities.

    Attributes:
        name: the file's, without its ending.
        file: of which the structures are read.
    """

    name: str
    file: Path

    @property
    def has_probabilities(self) -> bool:
        """Whether there are probabilities, not labels only."""
        return self.file.name.endswith(PROBABILITIES)


def find_cases(source: Path, dataset_json: Mapping[str, Any] | None, *, labels_only: bool = False) -> list[StoredCase]:
    """Cases of a folder, or the one of a file.

    Args:
        source: folder or file.
        dataset_json: its `file_ending` says which files are label images; without it all images are.
        labels_only: leave out probabilities. Otherwise a case that has both is read from its probabilities.

    Raises:
        FileNotFoundError: no such folder or file, or nothing in it.
        ValueError: a file for 3D Slicer where label images are wanted.
    """
    check_input(source)
    if labels_only and source.name.lower().endswith((SLICER_ENDING, PROBABILITIES)):
        raise ValueError(f"-i must be a label image, or a folder of them, such as CASE.nii.gz, got {source}")
    if source.is_file():
        return [StoredCase(_stem(source), source)]
    ending = (dataset_json or {}).get("file_ending")
    cases = {} if labels_only else {_stem(file): file for file in image_files(source, PROBABILITIES)}
    for file in (file for end in ([ending] if ending else IMAGE_ENDINGS) for file in image_files(source, end)):
        cases.setdefault(_stem(file), file)
    if not cases:
        also = "" if labels_only else ", or npz files of probabilities"
        raise FileNotFoundError(f"{source} must hold label images ({ending or 'of any format'}){also}, got none")
    return [StoredCase(name, file) for name, file in sorted(cases.items())]


def _stem(file: Path) -> str:
    ending = image_ending(file.name, (*IMAGE_ENDINGS, PROBABILITIES)) or file.suffix
    return file.name[: len(file.name) - len(ending)]


def find_dataset_json(source: Path, given: Path | None) -> dict[str, Any] | None:
    """Content of the dataset.json that is given or lies beside the files, None where there is none.

    Raises:
        FileNotFoundError: the given one does not exist.
        ValueError: it is damaged, or has no labels.
    """
    file = given or (source if source.is_dir() else source.parent) / "dataset.json"
    if given is None and not file.is_file():
        return None
    content = read_json(file, remedy="-djfile names the dataset.json of the model")
    check_keys(content, required=("labels",), source=str(file))
    return content


def read_labels(case: StoredCase, dataset_json: Mapping[str, Any] | None) -> tuple[np.ndarray, Grid, Structures]:
    """A label map (D, H, W), its grid and its structures.

    Raises:
        UnusableImageError: no whole file of integers; named.
    """
    known = {} if dataset_json is None else dict(dataset_json)
    reader = whole_files_of({**known, "file_ending": _ending(case)}, case.file)
    (labels,), properties = reader.read_seg(str(case.file))
    if dataset_json is None:
        try:
            return labels, grid_from_properties(properties, labels.shape), structures_in(labels)
        except ValueError as error:
            raise UnusableImageError(f"{case.file}: {error}") from None
    structures = structures_of(dataset_json)
    ignored = dataset_json["labels"].get("ignore", 0)
    named = {0, ignored, *(value for structure in structures.all for value in structure.labels)}
    unknown = unknown_labels(labels, named)
    if unknown:
        logger.warning("%s %s: left out", case.file, describe_unknown(unknown))
    return labels, grid_from_properties(properties, labels.shape), structures


def _ending(case: StoredCase) -> str:
    return case.file.name.removeprefix(case.name).lower()


def read_logits(case: StoredCase, structures: Structures) -> tuple[np.ndarray, Grid]:
    """Logits (K, D, H, W) float32 of a case's probabilities, and their grid.

    Raises:
        FileNotFoundError: the pkl file with the geometry is missing.
        UnusableImageError: one of the two files is damaged, or of another dataset; named.
    """
    probabilities = _read_probabilities(case.file)
    if len(probabilities) != structures.heads:
        raise UnusableImageError(
            f"{case.file} must hold {structures.heads} probabilities a voxel, as dataset.json has labels or regions, "
            f"got {len(probabilities)}; give the model's dataset.json with -djfile"
        )
    grid = _grid_of(case, probabilities.shape[1:])
    for values in probabilities:
        np.clip(values, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY, out=values)
        rest = np.log1p(-values) if structures.class_order else 0
        np.log(values, out=values)
        values -= rest
    return probabilities, grid


def _read_probabilities(file: Path) -> np.ndarray:
    try:
        with np.load(file) as stored:
            probabilities = stored["probabilities"].astype(np.float32, copy=False)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise UnusableImageError(
            f"{file} must be a whole npz file with `probabilities`, as --save_probabilities writes it, got "
            f"{type(error).__name__}: {error}"
        ) from error
    if probabilities.ndim != 4 or not np.isfinite(probabilities).all():
        raise UnusableImageError(
            f"{file} must hold finite probabilities of axes (label, z, y, x), got shape {probabilities.shape}"
        )
    return probabilities


def stored_labels(case: StoredCase) -> dict[str, Any] | None:
    """What dataset.json says of labels, from the pkl file beside probabilities; None without one of this package.

    Raises:
        UnusableImageError: the pkl file is damaged; named.
    """
    if not _pkl_of(case).is_file():
        return None
    return _properties_of(case).get(STORED_LABELS)


def _properties_of(case: StoredCase) -> dict[str, Any]:
    """Content of the pkl file beside probabilities."""
    file = _pkl_of(case)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: --save_probabilities writes it beside {case.file.name}, with the geometry; copy it too"
        )
    with _naming_damage(file), file.open("rb") as stream:
        return dict(pickle.load(stream))


def _pkl_of(case: StoredCase) -> Path:
    return case.file.with_name(f"{case.name}.pkl")


def _grid_of(case: StoredCase, shape: tuple[int, ...]) -> Grid:
    file, properties = _pkl_of(case), _properties_of(case)
    with _naming_damage(file):
        grid = grid_from_properties(properties, shape)
        same = sorted(properties["shape_before_cropping"]) == sorted(shape)
    if not same:
        raise UnusableImageError(
            f"{file} must belong to {case.file.name} with its shape {shape}, got {properties['shape_before_cropping']}"
        )
    return grid


@contextmanager
def _naming_damage(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        raise UnusableImageError(
            f"{file} must hold the properties that nnU-Net saves beside probabilities, got "
            f"{type(error).__name__}: {error}"
        ) from error

"""Which preprocessed files a case was made from, so that one whose source changed since is made anew.

Size and time of a file tell at once that it is the same; where the time differs (data copied to another disk,
preprocessed again), its content decides.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.cases.intensity_unit import INTENSITY_UNIT, IntensityUnit

SOURCE = "rehrseg_source"  # key of `source_state` in a case's properties
SUFFIXES = (".b2nd", "_seg.b2nd", ".npz", ".pkl")  # of nnU-Net's dataset classes


def source_state(folder: str | os.PathLike[str], identifier: str) -> dict[str, tuple[int, int, str]]:
    """Size, time (ns) and SHA-256 of a preprocessed case's files, by name."""
    return {file.name: (*_size_and_time(file), _hash(file)) for file in _files(folder, identifier)}


def derived_properties(
    folder: str | os.PathLike[str], identifier: str, image: np.ndarray, properties: Mapping[str, Any]
) -> dict[str, Any]:
    """Properties of a case that is derived from a preprocessed one: that one's, its intensity unit, its files' state.

    Args:
        folder: of the preprocessed case.
        identifier: case.
        image: (C, D, H, W), the preprocessed image.
        properties: the preprocessed case's.
    """
    unit = IntensityUnit.of_case(image).as_property()
    return {**properties, **unit, SOURCE: source_state(folder, identifier)}


def is_current(properties_file: Path, folder: str | os.PathLike[str], identifier: str) -> bool:
    """Whether a derived case was made from a preprocessed case as it is now.

    Args:
        properties_file: of the derived case, with `source_state` under the key `SOURCE`.
        folder: of the preprocessed case.
        identifier: case.

    Returns:
        Also false where the properties are missing, cut off, do not say what they were made from, or have no intensity
        unit (they are of an earlier version).
    """
    stored = _stored_state(properties_file) or {}
    files = _files(folder, identifier)
    return {file.name for file in files} == set(stored) and all(_unchanged(file, stored[file.name]) for file in files)


def _files(folder: str | os.PathLike[str], identifier: str) -> list[Path]:
    return [file for suffix in SUFFIXES if (file := Path(folder, f"{identifier}{suffix}")).is_file()]


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _unchanged(file: Path, stored: tuple[int, int, str]) -> bool:
    size, time, content = stored
    found = _size_and_time(file)
    return found == (size, time) or (found[0] == size and _hash(file) == content)


def _stored_state(properties_file: Path) -> dict[str, Any] | None:
    if not properties_file.is_file():
        return None
    try:
        with properties_file.open("rb") as stream:
            properties = pickle.load(stream)
    except (EOFError, pickle.UnpicklingError):  # cut off by a crash of the machine
        return None
    return properties.get(SOURCE) if INTENSITY_UNIT in properties else None

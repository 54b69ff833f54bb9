"""The reader of scans from which a dataset is made: its files have no NaN to warn of, so NaN must end here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.whole_files import WholeFiles, whole_files_of


class FiniteFiles(WholeFiles):
    """Refuses NaN and infinite values in every format, where `WholeFiles` warns that SimpleITK reads them as 0."""

    def _read(self, read: Callable, file: str, argument: Any, *, labels: bool = False) -> tuple[np.ndarray, dict]:
        return super()._read(read, file, argument, labels=True)  # in label maps they are refused


def finite_files_of(dataset_json: Mapping[str, Any], example: Path) -> WholeFiles:
    """The reader-writer of `whole_files_of`, which refuses NaN in images too.

    Args:
        dataset_json: content of dataset.json.
        example: one of its files, which must be readable.

    Raises:
        UnusableImageError: none of nnU-Net's readers can read the example.
    """
    base = type(whole_files_of(dataset_json, example))
    return type(f"Finite{base.__name__}", (FiniteFiles, base), {})()

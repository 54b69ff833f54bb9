"""The reader of scans from which a dataset is made: its files have no NaN to warn of, so NaN must end here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError, WholeFiles, whole_files_of


class FiniteFiles(WholeFiles):
    """Refuses NaN and infinite values in every format, where `WholeFiles` warns that SimpleITK reads them as 0.

    SPM and FSL mark what they did not see with NaN, so that the message says how to take them out.
    """

    def read_checked(
        self, read: Callable, file: str, argument: Any, *, labels: bool = False
    ) -> tuple[np.ndarray, dict]:
        """As in `WholeFiles`; NaN is named first."""

        def read_finite(argument: Any) -> tuple[np.ndarray, dict]:
            array, properties = read(argument)
            if not np.isfinite(array).all():
                raise _not_finite(file)
            return array, properties

        return super().read_checked(read_finite, file, argument, labels=labels)

    def check_nifti(self, file: str) -> bool:
        """As in `WholeFiles`, which returns whether SimpleITK hides NaN: it may not."""
        if super().check_nifti(file):
            raise _not_finite(file)
        return False


def _not_finite(file: str) -> UnusableImageError:
    return UnusableImageError(
        f"{file} must hold finite values, got NaN or infinite ones; set them to a number, e.g. to 0 with "
        "fslmaths IN -nan OUT"
    )


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

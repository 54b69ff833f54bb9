"""Datasets of cases as this package reads them: nnU-Net's classes, and what stands in for them."""

from __future__ import annotations

from typing import Any, Protocol


class Cases(Protocol):
    """What nnU-Net's data loader needs of a dataset.

    Attributes:
        identifiers: cases.
    """

    identifiers: list[str]

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image (C, D, H, W), labels (1, D, H, W), second labels or None, properties; arrays are read when indexed."""
        ...


class PreprocessedCases(Cases, Protocol):
    """Preprocessed cases of one folder: `nnUNetDatasetBlosc2` or `nnUNetDatasetNumpy`.

    Attributes:
        source_folder: the folder.
    """

    source_folder: str

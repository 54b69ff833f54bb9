"""The files of a case, and what is read of them: labels, scan and probabilities on one or two grids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import entr

from rehrseg_nnunet.evaluation.volumes import Volume, read_volume, standing
from rehrseg_nnunet.nnunet.whole_files import WholeFiles
from rehrseg_nnunet.slices.grids import check_same_points, grid_from_properties


@dataclass(frozen=True)
class GridFiles:
    """A case on one grid.

    Attributes:
        prediction: labels.
        scan: the image behind them, on any grid; None if it is not known.
        reference: labels on the prediction's grid.
        baseline: labels on the prediction's grid.
        probabilities: npz file of nnU-Net's on the prediction's grid.
    """

    prediction: Path
    scan: Path | None = None
    reference: Path | None = None
    baseline: Path | None = None
    probabilities: Path | None = None


@dataclass(frozen=True)
class CaseFiles:
    """A case.

    Attributes:
        name: in file names.
        main: what is judged.
        acquired: on the scan's own slices, where `main` is on others.
        fold: that it is a validation case of; empty for none.
    """

    name: str
    main: GridFiles
    acquired: GridFiles | None = None
    fold: str = ""


@dataclass(frozen=True, eq=False)
class CaseOnGrid:
    """What is read of a case on one grid; all volumes stand, those of labels and probabilities on `labels`' grid.

    Attributes:
        labels: predicted.
        scan: None if it is not known.
        reference: None if it is not known.
        baseline: None without one.
        probabilities: (K, D, H, W) of the heads; None if they were not written.
    """

    labels: Volume
    scan: Volume | None
    reference: Volume | None
    baseline: Volume | None
    probabilities: np.ndarray | None

    def entropy(self, *, has_regions: bool) -> Volume | None:
        """Entropy of the probabilities in bits, None where there are none; for regions the largest of theirs."""
        if self.probabilities is None:
            return None
        values = np.clip(self.probabilities, 0, 1)
        if has_regions:
            bits = (entr(values) + entr(1 - values)).max(axis=0) / np.log(2)
        else:
            bits = entr(values).sum(axis=0) / np.log(2)
        return Volume(bits.astype(np.float32), self.labels.grid)


def annotated(case: CaseOnGrid, ignore_label: int | None) -> CaseOnGrid:
    """A case in which voxels that nobody annotated are background everywhere, so that they are no mistakes."""
    if ignore_label is None or case.reference is None or not (ignored := case.reference.values == ignore_label).any():
        return case
    baseline = None if case.baseline is None else _emptied(case.baseline, ignored)
    return replace(
        case, labels=_emptied(case.labels, ignored), reference=_emptied(case.reference, ignored), baseline=baseline
    )


def _emptied(labels: Volume, where: np.ndarray) -> Volume:
    return Volume(np.where(where, 0, labels.values), labels.grid)


def read_case(files: GridFiles, *, reader: WholeFiles, heads: int) -> CaseOnGrid:
    """Read a case on one grid.

    Args:
        files: of the case.
        reader: for label files and scans.
        heads: K, that probabilities must have.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file cannot be used, or lies on another grid than the prediction.
    """
    labels = read_volume(files.prediction, reader=reader, labels=True)
    reference, baseline = (_labels_on(f, labels, files.prediction, reader) for f in (files.reference, files.baseline))
    scan = None if files.scan is None else read_volume(files.scan, reader=reader)
    probabilities = None
    if files.probabilities is not None:
        probabilities = _read_probabilities(files, reader=reader, heads=heads)
    return CaseOnGrid(labels, scan, reference, baseline, probabilities)


def _labels_on(file: Path | None, labels: Volume, prediction: Path, reader: WholeFiles) -> Volume | None:
    if file is None:
        return None
    found = read_volume(file, reader=reader, labels=True)
    names = {"file": str(prediction), "reference_file": str(file)}
    check_same_points(labels.grid, found.grid, **names, remedy=f"`rehrseg predict --grid {file}` writes on its grid")
    return found


def _read_probabilities(files: GridFiles, *, reader: WholeFiles, heads: int) -> np.ndarray:
    labels, properties = reader.read_seg(str(files.prediction))
    file, shape = files.probabilities, labels.shape[1:]
    try:
        values = np.load(str(file))["probabilities"].astype(np.float32)
    except (OSError, ValueError, LookupError) as error:
        raise ValueError(f"{file} must hold nnU-Net's probabilities, got {error}; predict the case again") from None
    if values.shape != (heads, *shape):
        raise ValueError(
            f"{file} must have the shape {(heads, *shape)} of {files.prediction}, got {values.shape}; predict again"
        )
    grid = grid_from_properties(properties, shape)
    return np.stack([standing(channel, grid).values for channel in values])


def slice_axis(labels: Volume) -> int:
    """The axis of the slices: that of the largest spacing, the first of several."""
    return int(np.argmax(np.round(labels.grid.spacing_mm, 3)))


def describe_spacing(spacing_mm: Sequence[float]) -> str:
    """Voxel edges, largest first.

    Example:
        >>> describe_spacing((1.0, 4.0, 1.0))
        '4 x 1 x 1 mm'
    """
    return " x ".join(f"{length:.3g}" for length in sorted(spacing_mm, reverse=True)) + " mm"

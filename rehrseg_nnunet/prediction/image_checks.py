"""Images that cannot be predicted are refused before any work, each named with what is wrong.

nnU-Net's preprocessing workers tell the process that waits for them that they died, but not of what. So a refused image
travels back from them as a case without data (`failed_case`), and is raised there (`raise_failures`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.nnunet.memory import memory_bytes
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.field_of_view import PlacedShape
from rehrseg_nnunet.slices.geometry import MIN_ANISOTROPY

logger = logging.getLogger(__name__)

_LONGEST_VOXEL = 10.0  # of an output grid, in lengths of the scan: what is in it is averaged, which takes memory
FAILURE = "failure"  # key of a case's properties


def check_image(
    data: np.ndarray,
    spacing_mm: Sequence[float],
    source: str,
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
    *,
    hr_outputs: int = 0,
    thick: bool = True,
) -> None:
    """Refuse an image on which nnU-Net would fail or predict nonsense; warn of one whose slices are not thick.

    Args:
        data: (C, ...) as the reader returned it.
        spacing_mm: in order of the array's axes.
        source: the image's files.
        plans_manager: nnU-Net's.
        configuration: nnU-Net's, of the LR cases.
        hr_outputs: logits for every planned voxel, classes times HR slices.
        thick: the planned slices are thick, so the image's should be.

    Raises:
        UnusableImageError: the message names the files and what is wrong.
    """
    channels = len(configuration.normalization_schemes)
    if len(data) != channels:
        raise UnusableImageError(
            f"{source} must have as many channels as the training data, {channels}, got {len(data)}"
        )
    if not np.isfinite(data).all():
        raise UnusableImageError(f"{source} must hold finite values, got NaN or infinite ones; mend the file")
    voxels_left = voxels_after_cropping(data)
    order = [int(axis) for axis in plans_manager.transpose_forward]
    voxels, spacing = [voxels_left[axis] for axis in order], [float(spacing_mm[axis]) for axis in order]
    planned = [*spacing[: 3 - len(configuration.spacing)], *configuration.spacing]  # 2d: the slices are the image's
    _check_planned_size(voxels, spacing, planned, source, bytes_per_voxel=4 * (channels + hr_outputs))
    if thick and spacing[0] < MIN_ANISOTROPY * max(spacing[1:]):
        logger.warning(
            "%s: its slices are not thick along the model's slice axis (%s mm, slice axis first; the model's %s mm): "
            "for thin slices take --grid native, since --grid hr makes still thinner ones, which show no more; if it "
            "has thick slices along another axis, reorder its axes as in the scans of the training",
            source,
            _shown(spacing),
            _shown(configuration.spacing),
        )


def _check_planned_size(
    voxels: Sequence[int],
    spacing_mm: Sequence[float],
    planned_mm: Sequence[float],
    source: str,
    *,
    bytes_per_voxel: int,
) -> None:
    """Refuse what resampling leaves nothing of, or what can never fit into memory; all slice axis first."""
    if not all(math.isfinite(s) and s > 0 for s in spacing_mm):
        raise UnusableImageError(f"{source} must have a positive spacing, got {_shown(spacing_mm)} mm; mend its header")
    planned = [int(n) for n in compute_new_shape(list(voxels), list(spacing_mm), list(planned_mm))]
    if not all(planned):
        extent = _shown([n * s for n, s in zip(voxels, spacing_mm, strict=True)])
        raise UnusableImageError(
            f"{source} must be more than half a planned voxel long ({_shown(planned_mm)} mm, slice axis first), got "
            f"{extent} mm around what is not zero; is the spacing in its header in mm?"
        )
    needed, available = math.prod(planned) * bytes_per_voxel, memory_bytes()
    if available is not None and needed > available:
        raise UnusableImageError(
            f"{source} must fit into memory at the planned spacing, {_shown(planned_mm)} mm, but with its spacing of "
            f"{_shown(spacing_mm)} mm (slice axis first) it becomes {' x '.join(map(str, planned))} voxels, which need "
            f"{needed / 1e9:.0f} GB of {available / 1e9:.0f} GB; is the spacing in its header in mm?"
        )


def check_output_size(
    name: str, shape: Sequence[int], part: PlacedShape | Sequence[int], *, heads: int, source: str
) -> None:
    """Refuse a grid that can never fit into memory, or whose voxels are much longer than the scan.

    Args:
        name: of the grid.
        shape: of the file's array.
        part: shape of what is predicted there.
        heads: logits for every voxel, K.
        source: the image's files.

    Raises:
        UnusableImageError: as above; the message names grid and scan.
    """
    if isinstance(part, PlacedShape):
        longest = float(np.linalg.norm(part.to_field_of_view[:, :3], axis=0).max()) / 2
        if longest > _LONGEST_VOXEL:
            raise UnusableImageError(
                f"{source}: --grid must have voxels that are not longer than the scan, but those of {name} are "
                f"{longest:.4g} times as long; are they in mm?"
            )
    needed, available = 2 * heads * math.prod(part) + math.prod(shape), memory_bytes()  # float16 logits, labels
    if available is not None and needed > available:
        raise UnusableImageError(
            f"{source}: --grid must fit into memory, but {name} has {' x '.join(map(str, shape))} voxels there, which "
            f"need {needed / 1e9:.0f} GB of {available / 1e9:.0f} GB; choose larger voxels"
        )


def _shown(lengths_mm: Sequence[float]) -> str:
    return " x ".join(f"{length:.4g}" for length in lengths_mm)


def voxels_after_cropping(data: np.ndarray) -> list[int]:
    """Size of what nnU-Net leaves of an image (C, ...): the box around all that is not zero in any channel."""
    nonzero = (data != 0).any(axis=0)
    if not nonzero.any():
        return list(nonzero.shape)
    axes = range(nonzero.ndim)
    along = (np.flatnonzero(nonzero.any(axis=tuple(a for a in axes if a != axis))) for axis in axes)
    return [int(there[-1] - there[0] + 1) for there in along]


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Let errors about an image name it.

    Args:
        source: the image's files.

    Raises:
        UnusableImageError: another error; one that is an UnusableImageError, which names its file, passes unchanged.
    """
    try:
        yield
    except UnusableImageError:
        raise
    except (ValueError, NotImplementedError, OSError) as error:
        raise UnusableImageError(f"{source}: {error}") from error


def failed_case(error: UnusableImageError) -> tuple[np.ndarray, None, dict[str, Any]]:
    """What a preprocessor returns in place of a case: data, segmentation and properties that hold the message."""
    return np.zeros((1, 1, 1, 1), dtype=np.float32), None, {FAILURE: str(error)}


def raise_failures(cases: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cases of nnU-Net's preprocessing iterator, as they come.

    Raises:
        UnusableImageError: a case is a `failed_case`.
    """
    for case in cases:
        if FAILURE in case["data_properties"]:
            raise UnusableImageError(case["data_properties"][FAILURE])
        yield case

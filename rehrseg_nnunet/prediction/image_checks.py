"""Images that cannot be predicted are refused before any work, each named with what is wrong.

nnU-Net's preprocessing workers tell the process that waits for them that they died, but not of what. So a refused image
travels back from them as a case without data (`failed_case`), and is raised there (`raise_failures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError

FAILURE = "failure"  # key of a case's properties


def check_image(
    data: np.ndarray,
    spacing_mm: Sequence[float],
    source: str,
    plans_manager: PlansManager,
    configuration: ConfigurationManager,
) -> None:
    """Refuse an image (C, ...) as the reader returned it, on which nnU-Net would fail or predict nonsense."""
    channels = len(configuration.normalization_schemes)
    if len(data) != channels:
        raise UnusableImageError(
            f"{source} must have as many channels as the training data, {channels}, got {len(data)}"
        )
    if not np.isfinite(data).all():
        raise UnusableImageError(f"{source} must hold finite intensities, got NaN or infinite ones; mend the file")
    planned_mm = configuration.spacing
    voxels_left = voxels_after_cropping(data)
    extent = [(voxels_left[axis], spacing_mm[axis]) for axis in plans_manager.transpose_forward]
    voxels, spacings = zip(*extent, strict=True)
    if not compute_new_shape(voxels, spacings, planned_mm).all():
        shown = " x ".join(f"{voxels * spacing:.4g}" for voxels, spacing in extent)
        raise UnusableImageError(
            f"{source} must be more than half a planned voxel long ({' x '.join(f'{s:.4g}' for s in planned_mm)} mm, "
            f"slice axis first), got {shown} mm around what is not zero"
        )


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

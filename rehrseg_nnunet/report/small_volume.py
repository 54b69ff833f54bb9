"""Volumes as small as a page needs them: cropped, few bits, coarser until they fit.

*Convention* Affines are nibabel's: from voxel indices (i, j, k) to mm to the right, anterior and superior.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import nibabel
import numpy as np
from nibabel.affines import apply_affine

Kind = Literal["scan", "labels", "uncertainty"]
LABEL_INTENT = "label"  # NiiVue draws images of this intent without interpolation, in the labels' colours
_WINDOW_PERCENT = (0.5, 99.5)
_ALIKE = 1.5  # axes whose voxels are at most this much longer than the shortest are halved together
_SMALLEST = 4  # voxels along an axis that is halved


@dataclass(frozen=True, eq=False)
class SmallVolume:
    """A part of an image.

    Attributes:
        kind: what the voxels are.
        array: (I, J, K); float32, labels uint8 from 1 on, see `renumbered`.
        affine: (4, 4).
        halvings: how often it was made coarser.
        bits: of a stored voxel; 16 for scans at first, 8 for everything else.
    """

    kind: Kind
    array: np.ndarray
    affine: np.ndarray
    halvings: int = 0
    bits: int = 8

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) lengths of a voxel's edges."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def window(self) -> tuple[float, float]:
        """Values shown black and white; from 0 for an uncertainty."""
        if self.kind == "scan":
            low, high = (float(value) for value in np.percentile(self.array, _WINDOW_PERCENT))
        else:
            low, high = 0.0, float(self.array.max())
        return low, high if high > low else low + 1

    def encoded(self) -> bytes:
        """The volume as a gzipped NIfTI without anything of the original header but its geometry."""
        stored, slope, offset = self._stored()
        image = nibabel.Nifti1Image(stored, self.affine)
        image.header.set_xyzt_units("mm")
        image.header.set_slope_inter(slope, offset)
        if self.kind == "labels":
            image.header.set_intent(LABEL_INTENT)
        return gzip.compress(image.to_bytes(), mtime=0)

    def _stored(self) -> tuple[np.ndarray, float, float]:
        """Integers, and slope and offset that turn them into values."""
        if self.kind == "labels":
            return self.array, 1.0, 0.0
        low, high = float(self.array.min()), float(self.array.max())
        if self.bits == 16 and low >= -(2**15) and high < 2**15 and np.array_equal(self.array, np.rint(self.array)):
            return self.array.astype(np.int16), 1.0, 0.0
        if self.kind == "scan" and self.bits == 8:  # one hot voxel must not cost the others their shades
            low, high = np.percentile(self.array, (0.1, 99.9)).tolist()
        steps = 2**self.bits - 1
        slope = (high - low) / steps or 1.0
        levels = np.rint((self.array.clip(low, high) - low) / slope)
        if self.bits == 16:  # NiiVue knows int16 best
            return (levels - 2**15).astype(np.int16), slope, low + 2**15 * slope
        return levels.astype(np.uint8), slope, low

    def coarser(self) -> SmallVolume | None:
        """The volume with fewer bits or half the voxels along its finest axes; None if it is as small as can be.

        Means of a scan's or uncertainty's voxels, every second voxel of labels; each where it was.
        """
        if self.bits == 16:
            return replace(self, bits=8)
        fine = self.spacing_mm <= _ALIKE * self.spacing_mm.min()
        factors = [
            2 if is_fine and size >= 2 * _SMALLEST else 1 for is_fine, size in zip(fine, self.array.shape, strict=True)
        ]
        if max(factors) == 1:
            return None
        affine = self.affine @ np.diag([*factors, 1])
        if self.kind == "labels":
            array = self.array[tuple(slice(None, None, factor) for factor in factors)]
        else:
            array = _block_means(self.array, factors)
            affine[:3, 3] += self.affine[:3, :3] @ ((np.array(factors) - 1) / 2)
        return replace(self, array=array, affine=affine, halvings=self.halvings + 1)


def _block_means(array: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    padding = [(0, -size % factor) for size, factor in zip(array.shape, factors, strict=True)]
    padded = np.pad(array, padding, mode="edge")
    blocks = [part for size, factor in zip(padded.shape, factors, strict=True) for part in (size // factor, factor)]
    return padded.reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)


def box_corners_mm(image: nibabel.Nifti1Image) -> np.ndarray:
    """(8, 3) corners of the box around an image's labels in mm, (0, 3) where it has none."""
    labels = np.asanyarray(image.dataobj) > 0
    if not labels.any():
        return np.empty((0, 3))
    extents = [np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    corners = np.array(np.meshgrid(*((extent[0] - 0.5, extent[-1] + 0.5) for extent in extents))).reshape(3, -1).T
    return apply_affine(_affine(image), corners)


def cropped(image: nibabel.Nifti1Image, kind: Kind, points_mm: np.ndarray, *, margin_mm: float) -> SmallVolume:
    """The part of an image around points.

    Args:
        image: (I, J, K).
        kind: what the voxels are; labels need to be `renumbered`.
        points_mm: (N, 3); without any, the whole image is kept.
        margin_mm: further than the points to all sides.
    """
    box: tuple[slice, ...] = (slice(None),) * 3
    if len(points_mm):
        indices = apply_affine(np.linalg.inv(_affine(image)), points_mm)
        margin = margin_mm / np.array(image.header.get_zooms()[:3])
        last = np.array(image.shape[:3]) - 1
        first = np.clip(np.floor(indices.min(axis=0) - margin), 0, last).astype(int)
        after = np.clip(np.ceil(indices.max(axis=0) + margin), first, last).astype(int) + 1
        box = tuple(slice(start, stop) for start, stop in zip(first, after, strict=True))
    array = np.asanyarray(image.dataobj[box])
    affine = _affine(image)
    affine[:3, 3] += affine[:3, :3] @ [extent.start or 0 for extent in box]
    if kind == "labels":
        return SmallVolume(kind, array, affine)
    finite = np.nan_to_num(array.astype(np.float32), posinf=0.0, neginf=0.0)
    return SmallVolume(kind, finite, affine, bits=16 if kind == "scan" else 8)


def _affine(image: nibabel.Nifti1Image) -> np.ndarray:
    return np.array(image.affine, dtype=np.float64)


def renumbered(volume: SmallVolume, values: Sequence[int]) -> SmallVolume:
    """Labels as 1, 2, ... in the order of `values`, with a rim of background, which NiiVue would otherwise draw on."""
    numbered = np.zeros(volume.array.shape, dtype=np.uint8)
    for number, value in enumerate(values, start=1):
        numbered[volume.array == value] = number
    affine = volume.affine.copy()
    affine[:3, 3] -= affine[:3, :3].sum(axis=1)
    return replace(volume, array=np.pad(numbered, 1), affine=affine)


def blank(volume: SmallVolume) -> SmallVolume:
    """An empty volume on a volume's grid. Shown first, it is what NiiVue draws all others on."""
    return SmallVolume("uncertainty", np.zeros(volume.array.shape, dtype=np.float32), volume.affine)

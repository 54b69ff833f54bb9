"""Logits sampled at the voxels of any other grid: smoothly where it is finer, averaged where it is coarser.

Between voxels logits are interpolated, not probabilities or labels: near a boundary logits are much like a signed
distance, so the boundary lies where it should between two voxels, without stairs. A cubic B-spline makes a whole number
of voxels of each one, and between these straight lines are drawn: alone they would make round structures smaller. On a
grid whose voxels are longer, every one gets the mean of the probabilities along it.

Convention:
    Field-of-view coordinates run from -1 to 1 along each array axis of a case's crop, from the outer face of the first
    voxel to that of the last. Source coordinates count voxel centres of the logits from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from torch.nn import functional

from rehrseg_nnunet.prediction.class_maps import (
    Logits,
    as_dtype,
    average_classes,
    background_value,
    map_classes,
)
from rehrseg_nnunet.slices.slice_profile import interpolate_logits

FINEST = 4  # voxels for each one by the spline, along an axis; beyond, straight lines between them follow it closely
_MARGIN = 8  # voxels around what is sampled that a spline still feels
_TOLERANCE = 1e-6
_MEETS = 1e-3  # voxels: headers are rounded


class PlacedShape(tuple):
    """Shape of a grid that knows where in the case it lies.

    nnU-Net's export gives the resampling function a case's target shape and nothing else of the case, so the shape
    carries the rest.

    Attributes:
        to_field_of_view: (3, 4) from voxel index on the grid (transposed axis order) to field-of-view coordinates of
            the case's crop.
    """

    to_field_of_view: np.ndarray

    @classmethod
    def at(cls, shape: Sequence[int], to_field_of_view: np.ndarray) -> PlacedShape:
        """The shape with its place."""
        placed = cls(int(n) for n in shape)
        placed.to_field_of_view = to_field_of_view
        return placed


def placed_properties(
    properties: dict, geometry: dict, to_index: np.ndarray, shape: Sequence[int], order: Sequence[int]
) -> dict:
    """Properties of a file on another grid, cropped to what the case's crop covers of it.

    Args:
        properties: of the preprocessed case.
        geometry: properties of the other grid, as nnU-Net's reader returns them.
        to_index: (4, 4) from array index on the other grid to array index in the case's file.
        shape: of the other grid's array.
        order: nnU-Net's `transpose_forward`.

    Returns:
        The geometry with shapes and crop box for nnU-Net's export; the shape to sample is a `PlacedShape`.
    """
    permutation = np.eye(4)[[*order, 3]]
    transposed = permutation @ to_index @ permutation.T
    start, stop = np.array(properties["bbox_used_for_cropping"], dtype=np.float64).T
    whole = [int(shape[axis]) for axis in order]
    box = _covered(np.linalg.inv(transposed), start - 0.5, stop - 0.5, whole)
    transposed[:3, 3] += transposed[:3, :3] @ box[:, 0]
    to_field_of_view = transposed[:3] * (2 / (stop - start))[:, None]
    to_field_of_view[:, 3] += 2 * (0.5 - start) / (stop - start) - 1
    return {
        **geometry,
        "shape_before_cropping": tuple(whole),
        "bbox_used_for_cropping": [[int(a), int(b)] for a, b in box],
        "shape_after_cropping_and_before_resampling": PlacedShape.at(_ints(box[:, 1] - box[:, 0]), to_field_of_view),
    }


def _covered(to_grid: np.ndarray, first: np.ndarray, last: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """(3, 2) index ranges on a grid that a box of the case can lie in; one voxel where there is none."""
    corners = np.stack(np.meshgrid(*zip(first, last, strict=True), indexing="ij"), -1).reshape(-1, 3)
    inside = corners @ to_grid[:3, :3].T + to_grid[:3, 3]
    lowest = np.floor(inside.min(0)).clip(0, np.array(shape) - 1)
    highest = np.ceil(inside.max(0) + 1).clip(lowest + 1, shape)
    return np.stack([lowest, highest], 1).astype(int)


@dataclass(frozen=True)
class Sampling:
    """How the voxels of a grid are met by a volume.

    Attributes:
        cut: part of the volume that matters, one slice for each axis.
        finer: how many voxels the spline makes of each one, along each axis of the volume.
        shape: of the grid.
        mean_of: how many points along each axis of the grid are averaged for a voxel.
        matrix: (3, 4) from index among these points to source coordinates of the refined part.
        limits: (3, 2) source coordinates of the field of view's faces there.
    """

    cut: tuple[slice, ...]
    finer: tuple[int, ...]
    shape: tuple[int, ...]
    mean_of: tuple[int, ...]
    matrix: np.ndarray
    limits: np.ndarray

    @classmethod
    def of(cls, source: Sequence[int], shape: PlacedShape) -> Sampling:
        """Choose how to sample a volume that covers the field of view.

        Args:
            source: shape of the volume.
            shape: of the grid.
        """
        voxels = np.array(source, dtype=np.float64)
        matrix = shape.to_field_of_view * (voxels / 2)[:, None]
        matrix[:, 3] += (voxels - 1) / 2
        steps = matrix[:, :3]  # source voxels for each step along an axis of the grid
        mean_of = np.floor(np.linalg.norm(steps, axis=0) + 0.5).clip(1).astype(int)
        finer = _finer(matrix)
        cut = _needed(matrix, shape, source)
        start = np.array([part.start for part in cut])
        faces = np.stack([-0.5 - start, voxels - 0.5 - start], 1)
        matrix[:, 3] += steps @ (0.5 / mean_of - 0.5) - start  # the first of the points that are averaged
        matrix[:, :3] /= mean_of
        refine = finer[:, None] * np.ones(4)
        refined = matrix * refine
        refined[:, 3] += (finer - 1) / 2
        limits = (faces + 0.5) * finer[:, None] - 0.5
        return cls(cut, _ints(finer), tuple(shape), _ints(mean_of), refined, limits)

    @property
    def averages(self) -> bool:
        """Whether a voxel is the mean of several points."""
        return max(self.mean_of) > 1

    @property
    def meets(self) -> bool:
        """Whether every point lies on a source voxel, whose value it then has to the last bit."""
        whole = np.rint(self.matrix)
        last = np.array([n * m - 1 for n, m in zip(self.shape, self.mean_of, strict=True)] + [1])
        return bool((np.abs(self.matrix - whole) @ last).max() < _MEETS)

    def refine(self, volume: torch.Tensor) -> torch.Tensor:
        """The part of a volume (D, H, W) that matters, with finer voxels, float32."""
        values = volume[self.cut].float()
        for axis, factor in enumerate(self.finer):
            values = interpolate_logits(values, factor, axis) if factor > 1 else values
        return values

    def sample(self, values: torch.Tensor, outside: float) -> torch.Tensor:
        """A refined volume on the grid.

        Args:
            values: from `refine`.
            outside: value outside the field of view.

        Returns:
            (*shape), float32.
        """
        sampled = torch.empty(self.shape)
        slices, *in_plane = self.mean_of
        for index in range(self.shape[0]):  # slice by slice: coordinates take more room than a volume
            points = (self._plane(values, index * slices + step, outside) for step in range(slices))
            plane = reduce(torch.add, points) / slices
            sampled[index] = functional.avg_pool2d(plane[None], in_plane)[0] if max(in_plane) > 1 else plane
        return sampled

    def _plane(self, values: torch.Tensor, index: int, outside: float) -> torch.Tensor:
        """Values at the points of one plane, by linear interpolation where these are not voxels."""
        matrix = torch.from_numpy(self.matrix)
        height, width = (n * m for n, m in zip(self.shape[1:], self.mean_of[1:], strict=True))
        rows = matrix[:, 0] * index + matrix[:, 3] + torch.arange(height).double()[:, None] * matrix[:, 1]
        points = rows[:, None] + torch.arange(width).double()[:, None] * matrix[:, 2]
        low, high = torch.from_numpy(self.limits).T
        inside = ((points >= low - _TOLERANCE) & (points <= high + _TOLERANCE)).all(-1)
        size = torch.tensor(values.shape, dtype=torch.float64)
        if self.meets:
            voxels = points.round().long().clamp(min=torch.zeros(3).long(), max=size.long() - 1)
            return torch.where(inside, values[voxels.unbind(-1)], outside)
        grid = ((2 * points + 1) / size - 1).flip(-1).float()  # grid_sample wants (x, y, z) from -1 to 1
        found = functional.grid_sample(
            values[None, None], grid[None, None], mode="bilinear", padding_mode="border", align_corners=False
        )[0, 0, 0]
        return torch.where(inside, found, outside)


def sample_field_of_view(logits: Logits, shape: PlacedShape, *, has_regions: bool) -> np.ndarray:
    """Logits at the voxels of another grid.

    Args:
        logits: (K, D, H, W), covering the field of view.
        shape: of the other grid, with its place.
        has_regions: the logits are regions' (sigmoid), not classes' (softmax).

    Returns:
        (K, *shape), of the logits' type, background outside the field of view.
    """
    values = torch.as_tensor(logits)
    how = Sampling.of(values.shape[1:], shape)

    def refined(number: int) -> torch.Tensor:
        return how.refine(values[number])

    options = {"classes": len(values), "shape": shape, "dtype": as_dtype(logits)}
    if how.averages:

        def mean(number: int, probabilities: torch.Tensor) -> torch.Tensor:
            return how.sample(probabilities, background_value(number, has_regions=has_regions, logit=False))

        return average_classes(refined, mean, **options, has_regions=has_regions)

    def sampled(number: int) -> torch.Tensor:
        return how.sample(refined(number), background_value(number, has_regions=has_regions, logit=True))

    return map_classes(sampled, **options)


def is_outside(shape: PlacedShape) -> bool:
    """Whether no voxel of a grid can lie in the field of view, whose edges are -1 and 1."""
    matrix = shape.to_field_of_view
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    points = corners @ matrix[:, :3].T + matrix[:, 3]
    return bool(((points.max(0) < -1) | (points.min(0) > 1)).any())


def _finer(matrix: np.ndarray) -> np.ndarray:
    """How many voxels the spline makes of each one, so that the grid meets them or they are half as long as its own."""
    steps = matrix[:, :3]
    per_voxel = 1 / np.linalg.norm(steps, axis=1)
    whole = np.rint(per_voxel).clip(1, FINEST)
    first = (matrix[:, 3] + 0.5) * whole - 0.5
    off = np.maximum(np.abs(per_voxel - whole), np.abs(first - np.rint(first)))
    along_one_axis = (np.abs(steps) > _MEETS * np.linalg.norm(steps, axis=1)[:, None]).sum(1) == 1
    half = np.ceil(2 * per_voxel - _MEETS).clip(1, FINEST)
    return np.where((off < _MEETS) & along_one_axis, whole, half).astype(int)


def _needed(matrix: np.ndarray, shape: Sequence[int], source: Sequence[int]) -> tuple[slice, ...]:
    """The part of a volume that the voxels of a grid, and a spline through it, can meet."""
    corners = np.stack(np.meshgrid(*((-0.5, n - 0.5) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    points = corners @ matrix[:, :3].T + matrix[:, 3]
    limit = np.array(source)
    start = np.floor(points.min(0) - _MARGIN).clip(0, limit - 1).astype(int)
    stop = np.ceil(points.max(0) + _MARGIN).clip(start + 1, limit).astype(int)
    return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))


def _ints(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)

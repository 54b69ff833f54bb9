"""Where a prediction is written: the HR grid, the input's own grid, or another (`--grid`).

nnU-Net exports a case in worker processes from three things: logits, the case's properties and the configuration's
function for resampling probabilities. A grid says what properties describe the file to be written and how logits get
there; everything else (cropping, transposition, argmax, regions, npz files, writing) stays nnU-Net's.

Convention:
    Logits are (K, r*D_p, H_p, W_p): the HR grid of the preprocessed case, z first; r = 1 for a model without thick
    slices. They cover exactly the field of view of the case's crop (D, H, W), whatever the shapes are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from rehrseg_nnunet.prediction.class_maps import Logits, as_dtype, average_classes, map_classes
from rehrseg_nnunet.prediction.field_of_view import PlacedShape, placed_properties, sample_field_of_view
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.slice_profile import degrade

# (logits, new shape, current spacing, new spacing) -> logits, the form of nnU-Net's resampling functions
Resampling: TypeAlias = Callable[[Logits, Sequence[int], Sequence[float], Sequence[float]], Logits]
Resize: TypeAlias = Callable[[Logits, Sequence[int]], Logits]  # (logits, new shape) -> logits, over the same extent

# what nnU-Net's preprocessing adds to a reader's properties
_PREPROCESSING_KEYS = {
    "shape_before_cropping",
    "bbox_used_for_cropping",
    "shape_after_cropping_and_before_resampling",
    "class_locations",
}


class OutputGrid(ABC):
    """A grid to write predictions on; instances travel to worker processes."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells its files from another grid's, where several are written."""

    @abstractmethod
    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """Properties of the file to be written, from those of the preprocessed LR case of a name, if it has one."""

    @abstractmethod
    def place(self, logits: Logits, shape: Sequence[int], resize: Resize, *, has_regions: bool) -> Logits:
        """Bring logits onto the grid.

        Args:
            logits: (K, r*D_p, H_p, W_p).
            shape: `shape_after_cropping_and_before_resampling` of `properties`.
            resize: brings logits to another shape over the same field of view, as nnU-Net does, linear along z.
            has_regions: the logits are regions' (sigmoid), not classes' (softmax).

        Returns:
            (K, *shape).
        """

    def missing(self, image_files: Sequence[str]) -> list[str]:
        """The images that have no grid: none, unless a grid says otherwise."""
        return []

    def resample(
        self,
        resampling: Resampling,
        has_regions: bool,
        logits: Logits,
        shape: Sequence[int],
        current_spacing: Sequence[float],
        new_spacing: Sequence[float],
    ) -> Logits:
        """`place`, as nnU-Net's export calls it once the first two arguments are bound.

        Args:
            resampling: nnU-Net's function for resampling probabilities.
            has_regions: the logits are regions' (sigmoid), not classes' (softmax).
            logits: (K, r*D_p, H_p, W_p).
            shape: `shape_after_cropping_and_before_resampling` of `properties`.
            current_spacing: of the logits, mm.
            new_spacing: of the file to be written, mm.
        """

        def resize(values: Logits, new_shape: Sequence[int]) -> Logits:
            return resampling(values, new_shape, current_spacing, new_spacing)

        return self.place(logits, shape, resize, has_regions=has_regions)


def has_geometry(properties: Mapping[str, Any]) -> bool:
    """Whether the reader keeps more than the spacing, as those of tif files and arrays do not."""
    return bool(set(properties) - _PREPROCESSING_KEYS - {"spacing"})


def hr_properties(properties: dict[str, Any], plans_manager: Any, factor: int) -> dict[str, Any]:
    """Properties of a preprocessed case on the HR grid, for nnU-Net's export functions.

    Args:
        properties: what nnU-Net's preprocessing returned or stored for the LR case.
        plans_manager: nnU-Net's PlansManager; `transpose_forward[0]` is the slice axis in the file's array.
        factor: r.

    Returns:
        A new dict: shapes and crop box with r times the slices, spacing and the reader's geometry to match. Without
        `class_locations`, which count LR voxels.

    Raises:
        NotImplementedError: the reader keeps a geometry that is not known here.
    """
    axis = int(plans_manager.transpose_forward[0])
    if has_geometry(properties):
        hr = scale_slice_geometry(properties, axis, 1 / factor)
    else:  # arrays without a file, and readers that know the spacing alone (tif)
        spacing = [float(s) for s in properties["spacing"]]
        spacing[axis] /= factor
        hr = {**properties, "spacing": spacing}
    hr.pop("class_locations", None)
    for key in ("shape_before_cropping", "shape_after_cropping_and_before_resampling"):
        slices, *in_plane = properties[key]
        hr[key] = (int(slices) * factor, *(int(n) for n in in_plane))
    (start, stop), *in_plane_box = properties["bbox_used_for_cropping"]
    hr["bbox_used_for_cropping"] = [[int(start) * factor, int(stop) * factor], *(list(b) for b in in_plane_box)]
    return hr


def resize_classes(resize: Resize, logits: Logits, shape: Sequence[int]) -> Logits:
    """`resize`, class by class: nnU-Net's own function holds all classes in float64."""
    if tuple(shape) == tuple(logits.shape[1:]):
        return logits
    return map_classes(
        lambda number: _resized(resize, logits, number, shape), len(logits), shape, dtype=as_dtype(logits)
    )


def _resized(resize: Resize, logits: Logits, number: int, shape: Sequence[int]) -> torch.Tensor:
    return torch.as_tensor(resize(logits[number : number + 1], shape))[0].float()


@dataclass(frozen=True)
class HRGrid(OutputGrid):
    """r slices for every slice of the input, over the same field of view; only of models with thick slices."""

    @property
    def name(self) -> str:
        """See `OutputGrid`."""
        return "hr"

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """See `hr_properties`."""
        return hr_properties(properties, plans_manager, factor)

    def place(self, logits: Logits, shape: Sequence[int], resize: Resize, *, has_regions: bool) -> Logits:
        """Resize from r*D_p to r*D slices."""
        return resize_classes(resize, logits, shape)


@dataclass(frozen=True)
class NativeGrid(OutputGrid):
    """The input's own grid.

    A model without thick slices has its logits sampled there (`field_of_view`). One with thick slices, with r*D_p HR
    slices for D native ones and k = round(r*D_p / D): where native slices are thinner than HR slices or about as thick
    (k < 2), logits are interpolated linearly, so neighbouring slices differ. Where they are thicker, the probabilities
    are seen through the slice profile of factor k, after linear interpolation to k*D slices if r*D_p is another number.
    """

    @property
    def name(self) -> str:
        """See `OutputGrid`."""
        return "native"

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """The input's properties."""
        if factor > 1:
            return dict(properties)
        order, shape = plans_manager.transpose_forward, properties["shape_before_cropping"]
        file_shape = [int(shape[list(order).index(axis)]) for axis in range(3)]
        return placed_properties(properties, dict(properties), np.eye(4), file_shape, order)

    def place(self, logits: Logits, shape: Sequence[int], resize: Resize, *, has_regions: bool) -> Logits:
        """Interpolate to thin slices, average to thick ones."""
        if isinstance(shape, PlacedShape):
            return sample_field_of_view(logits, shape, has_regions=has_regions)
        slices, *in_plane = (int(n) for n in shape)
        thickness = math.floor(logits.shape[1] / slices + 0.5)
        if thickness < 2:
            return resize_classes(resize, logits, shape)
        fine = (slices * thickness, *in_plane)
        return average_classes(
            lambda number: _resized(resize, logits, number, fine),
            lambda _, probabilities: degrade(probabilities, thickness, 0),
            len(logits),
            (slices, *in_plane),
            has_regions=has_regions,
            dtype=as_dtype(logits),
        )

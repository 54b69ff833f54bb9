"""Where an HR prediction is written: the HR grid, the input's own grid, or another (`--grid`).

nnU-Net exports a case in worker processes from three things: logits, the case's properties and the configuration's
function for resampling probabilities. A grid says what properties describe the file to be written and how logits get
there; everything else (cropping, transposition, argmax, regions, npz files, writing) stays nnU-Net's.

Convention:
    Logits are (K, r*D_p, H_p, W_p): the HR grid of the preprocessed case, z first. They cover exactly the field of view
    of the case's crop (D, H, W), whatever the shapes are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.slice_profile import degrade

Logits: TypeAlias = np.ndarray | torch.Tensor
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
_SMALLEST_PROBABILITY = 1e-7


class OutputGrid(ABC):
    """A grid to write predictions on; instances travel to worker processes."""

    @abstractmethod
    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, image_file: str | None
    ) -> dict[str, Any]:
        """Properties of the file to be written, from those of the preprocessed LR case read from `image_file`."""

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
    reader_keys = set(properties) - _PREPROCESSING_KEYS - {"spacing"}
    if reader_keys:
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


def to_probabilities(logits: Logits, *, has_regions: bool) -> torch.Tensor:
    """Softmax over classes (K, ...), sigmoid for regions, in float32."""
    values = torch.as_tensor(logits).float()
    return values.sigmoid() if has_regions else values.softmax(0)


def to_logits(probabilities: torch.Tensor, *, has_regions: bool) -> np.ndarray:
    """Logits whose softmax (sigmoid for regions) gives these probabilities (K, ...) back."""
    if has_regions:
        return probabilities.logit(eps=_SMALLEST_PROBABILITY).numpy()
    return probabilities.clamp_min(_SMALLEST_PROBABILITY).log().numpy()


@dataclass(frozen=True)
class HRGrid(OutputGrid):
    """r slices for every slice of the input, over the same field of view."""

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, image_file: str | None
    ) -> dict[str, Any]:
        """See `hr_properties`."""
        return hr_properties(properties, plans_manager, factor)

    def place(self, logits: Logits, shape: Sequence[int], resize: Resize, *, has_regions: bool) -> Logits:
        """Resize from r*D_p to r*D slices."""
        return resize(logits, shape)


@dataclass(frozen=True)
class NativeGrid(OutputGrid):
    """The input's own grid.

    With r*D_p HR slices and D native ones, k = round(r*D_p / D): where native slices are thinner than HR slices or
    about as thick (k < 2), logits are interpolated linearly, so neighbouring slices differ. Where they are thicker,
    the probabilities are seen through the slice profile of factor k, after linear interpolation to k*D slices if
    r*D_p is another number.
    """

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, image_file: str | None
    ) -> dict[str, Any]:
        """The input's properties."""
        return dict(properties)

    def place(self, logits: Logits, shape: Sequence[int], resize: Resize, *, has_regions: bool) -> Logits:
        """Interpolate to thin slices, average to thick ones."""
        slices, *in_plane = (int(n) for n in shape)
        thickness = math.floor(logits.shape[1] / slices + 0.5)
        if thickness < 2:
            return resize(logits, shape)
        fine = resize(logits, (slices * thickness, *in_plane))
        thick = degrade(to_probabilities(fine, has_regions=has_regions), thickness, 1)
        return to_logits(thick, has_regions=has_regions)

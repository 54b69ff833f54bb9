"""True acquisitions turned so that an in-plane axis takes the slice axis's place, as views that are read when indexed.

Between acquired slices nobody knows the labels, but along the pixels of an acquired slice everybody does. So: swap the
slice axis z with an in-plane axis, bring the former z to the spacing of pixels, and make the new slice axis thick
(Eq. 1). Input and labels are then an exact pair: on the planes that were acquired, labels are true at every place
along the axis that was made thick. The anatomy is turned, so such cases can only be a share of a training.

Convention:
    A case (C, D, H, W) becomes (C, n*r, H, r*(D - 1) + 1) for the axis "x", whose W pixels are the new slices, and
    (C, n*r, r*(D - 1) + 1, W) for "y". Acquired plane k lies at voxel r*k of the former z axis, exactly; between the
    planes the image is their cubic B-spline and there is no label. The new slice axis is completed to a multiple of r,
    by repeated pixels without label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.slices.slice_profile import spline_between_slices

AXES = {"y": 2, "x": 3}  # of (C, z, y, x)
OUTSIDE = -1  # nnU-Net's label outside its nonzero mask


class TurnedImage:
    """A lazy view of an image.

    Args:
        array: numpy or blosc2 array (C, D, H, W).
        axis: "x" or "y", which becomes the slice axis.
        factor: r.
    """

    def __init__(self, array: Any, *, axis: str, factor: int):
        self.array = array
        self.axis = AXES[axis]
        self.factor = factor
        self.shape = turned_shape(array.shape, axis, factor)
        self.dtype = array.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        acquired = read_turned(self.array, index, self.axis)
        matrix = spline_between_slices(self.array.shape[1], self.factor).numpy()[index[self.axis]]
        lines = np.moveaxis(acquired, self.axis, -1) @ matrix.T.astype(acquired.dtype)
        return np.ascontiguousarray(np.moveaxis(lines, -1, self.axis))


class TurnedLabels:
    """A lazy view of labels: true on acquired planes, `unlabelled` elsewhere.

    Args:
        array: numpy or blosc2 array (1, D, H, W).
        axis: "x" or "y", which becomes the slice axis.
        factor: r.
        unlabelled: value.
    """

    def __init__(self, array: Any, *, axis: str, factor: int, unlabelled: int):
        self.array = array
        self.axis = AXES[axis]
        self.factor = factor
        self.unlabelled = unlabelled
        self.shape = turned_shape(array.shape, axis, factor)
        self.dtype = np.dtype(np.int16)  # of nnU-Net's batches; labels up to 127 are stored as int8

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        acquired = read_turned(self.array, index, self.axis).astype(self.dtype)
        acquired[:, max(0, self.array.shape[self.axis] - index[1].start) :] = self.unlabelled
        voxels = np.arange(self.shape[self.axis])[index[self.axis]]
        # what lies outside nnU-Net's mask there does so around the plane as well, and its image is masked by it
        nearest = acquired.take((voxels + self.factor // 2) // self.factor, axis=self.axis)
        on_plane = np.expand_dims(voxels % self.factor == 0, [n for n in range(4) if n != self.axis])
        return np.where(on_plane | (nearest == OUTSIDE), nearest, self.unlabelled).astype(self.dtype)


class TurnedCases:
    """A dataset of acquired cases, each loaded with one of its in-plane axes as slice axis, drawn anew every time.

    Args:
        dataset: cases as acquired, preprocessed.
        factor: r.
        unlabelled: value of voxels without label.
    """

    def __init__(self, dataset: Cases, *, factor: int, unlabelled: int):
        self.dataset = dataset
        self.identifiers = dataset.identifiers
        self.factor = factor
        self.unlabelled = unlabelled

    def load_case(self, identifier: str) -> tuple[TurnedImage, TurnedLabels, None, dict[str, Any]]:
        """Draw the axis, then load in the order of nnU-Net's `load_case`."""
        # nnU-Net seeds numpy's global generator anew in every worker
        return self.turned(identifier, axis=("x", "y")[np.random.randint(2)])  # noqa: NPY002

    def turned(self, identifier: str, *, axis: str) -> tuple[TurnedImage, TurnedLabels, None, dict[str, Any]]:
        """Image, labels, None and properties, whose class locations are on acquired planes."""
        image, labels, _, properties = self.dataset.load_case(identifier)
        locations = turned_locations(properties["class_locations"], axis, self.factor)
        return (
            TurnedImage(image, axis=axis, factor=self.factor),
            TurnedLabels(labels, axis=axis, factor=self.factor, unlabelled=self.unlabelled),
            None,
            {**properties, "class_locations": locations},
        )


def turned_shape(shape: tuple[int, ...], axis: str, factor: int) -> tuple[int, ...]:
    """Shape of the view of an array (C, D, H, W).

    Example:
        >>> turned_shape((1, 9, 48, 50), "x", factor=4)
        (1, 52, 48, 33)
    """
    result = list(shape)
    result[1] = -(-shape[AXES[axis]] // factor) * factor
    result[AXES[axis]] = factor * (shape[1] - 1) + 1
    return tuple(result)


def turned_locations(locations: dict[Any, Any], axis: str, factor: int) -> dict[Any, Any]:
    """nnU-Net's class locations (N, 4) = (channel, z, y, x) of a case as those of its view."""
    result = {}
    for key, voxels in locations.items():
        if len(voxels):
            voxels = np.array(voxels)
            voxels[:, 1] *= factor
            voxels[:, [1, AXES[axis]]] = voxels[:, [AXES[axis], 1]]
        result[key] = voxels
    return result


def read_turned(array: Any, index: tuple[slice, ...], axis: int) -> np.ndarray:
    """The part of a view that an index (channels, new slices, two in-plane axes) asks for, all acquired planes of it.

    New slices beyond the array's repeat its last pixels.
    """
    pixels = np.minimum(np.arange(index[1].start, index[1].stop), array.shape[axis] - 1)
    wanted = list(index)
    wanted[1], wanted[axis] = slice(None), slice(int(pixels[0]), int(pixels[-1]) + 1)
    return np.asarray(array[tuple(wanted)]).swapaxes(1, axis).take(pixels - pixels[0], axis=1)

"""What a keeper sees of the patch that a segmentation network gets: see `SourceView`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rehrseg_nnunet.guided.instance_blocks import resize
from rehrseg_nnunet.guided.shape import Size


@dataclass(frozen=True, kw_only=True)
class SourceView:
    """From the patches of one dataset to those of another, whose keeper it is. Lists, as JSON has them, become tuples.

    Attributes:
        channels: of the segmentation network's input, in the order of the keeper's source channels.
        scales: what each of them is multiplied by, e.g. where the two datasets normalise CT numbers differently; all 1
            if empty.
        offsets: what is added then; all 0 if empty.
        axes: for each axis of the keeper the segmentation network's; the same order if empty.
        spacing_ratio: for each axis of the keeper the segmentation's spacing over the keeper's. The patch is resized to
            the keeper's grid. Empty: the grids are (nearly) the same. In either case sizes are rounded up to the
            keeper's strides, and the patch is resized to that: an edge that they do not divide would be lost to the
            coarse levels, whose guides would then be out of place.

    Raises:
        ValueError: lengths that do not fit together, or a ratio that is not positive.
    """

    channels: tuple[int, ...]
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    axes: tuple[int, ...] = ()
    spacing_ratio: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("channels", "scales", "offsets", "axes", "spacing_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("scales", "offsets"):
            if len(getattr(self, name)) not in (0, len(self.channels)):
                raise ValueError(f"{name} must be as many as channels {self.channels}, got {getattr(self, name)}")
        if sorted(self.axes) != list(range(len(self.axes))):
            raise ValueError(f"axes must be an order of axes from 0 on, got {self.axes}")
        if any(ratio <= 0 for ratio in self.spacing_ratio):
            raise ValueError(f"spacing_ratio must be positive, got {self.spacing_ratio}")

    def patch_size(self, size: Sequence[int], total_strides: Sequence[int]) -> Size:
        """Size that the keeper sees of a patch.

        Args:
            size: of the patch, in the segmentation network's axes.
            total_strides: of the keeper's coarsest level, by its axes.
        """
        own = tuple(size[axis] for axis in self.axes) if self.axes else tuple(size)
        ratios = self.spacing_ratio or (1.0,) * len(own)
        lengths = zip(own, ratios, total_strides, strict=True)
        return tuple(math.ceil(round(voxels * ratio, 3) / stride) * stride for voxels, ratio, stride in lengths)

    def source(self, image: torch.Tensor, total_strides: Sequence[int]) -> torch.Tensor:
        """Patches (B, C, *size) as the keeper takes them, (B, source_channels, *patch_size)."""
        source = image[:, list(self.channels)]
        per_channel = (1, -1, *(1,) * (image.ndim - 2))
        if self.scales:
            source = source * source.new_tensor(self.scales).view(per_channel)
        if self.offsets:
            source = source + source.new_tensor(self.offsets).view(per_channel)
        if self.axes:
            source = source.permute(0, 1, *(axis + 2 for axis in self.axes))
        return resize(source, self.patch_size(image.shape[2:], total_strides))

    def back(self, guide: torch.Tensor) -> torch.Tensor:
        """A guide with its axes in the segmentation network's order; its grid stays the keeper's."""
        if not self.axes:
            return guide
        return guide.permute(0, 1, *(self.axes.index(axis) + 2 for axis in range(len(self.axes))))

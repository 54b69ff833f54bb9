"""Levels, widths and channels that teacher, keeper and discriminator share: see `GuidanceShape`.

Convention:
    A level is a resolution; levels go from fine to coarse and their number is L. Sizes and strides are in voxels, in
    the axis order of nnU-Net's patches: (z, y, x) in 3D, (y, x) in 2D. Where a stride does not divide a size, the size
    is rounded down.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rehrseg_nnunet.config.guidance import GROWTHS

PAPER_LEVELS = 5
FEWEST_LEVELS = 2
FEWEST_VOXELS = 2  # of a level's features: one has no variance to normalise by
Size = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GuidanceShape:
    """What the networks of one guidance have in common. Lists, as JSON has them, become tuples.

    Attributes:
        strides: of each level relative to the one before, by axis; the first level has 1 everywhere.
        kernels: of the plan's own network at each level, by axis. Only whether it is 1 counts: there, convolutions do
            not mix along this axis.
        widths: channels of the teacher's features and the keeper's guides at each level, multiples of 4.
        convs_per_block: convolutions in a block.
        source_channels: image channels that are there in training and prediction.
        privileged_channels: image channels that only the paired dataset has.

    Raises:
        ValueError: numbers that do not fit together.
    """

    strides: tuple[Size, ...]
    kernels: tuple[Size, ...]
    widths: tuple[int, ...]
    convs_per_block: int
    source_channels: int = 1
    privileged_channels: int = 1

    def __post_init__(self) -> None:
        for name in ("strides", "kernels"):
            object.__setattr__(self, name, tuple(tuple(int(n) for n in level) for level in getattr(self, name)))
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))
        if self.levels < FEWEST_LEVELS:
            raise ValueError(f"guidance needs at least two levels, got {self.levels}")
        if self.dimension not in (2, 3):
            raise ValueError(f"strides must have 2 or 3 axes, got {self.dimension}")
        if not len(self.strides) == len(self.kernels) == len(self.widths):
            raise ValueError(f"strides, kernels and widths must be as many, got {self}")
        if {len(axes) for axes in (*self.strides, *self.kernels)} != {self.dimension}:
            raise ValueError(f"strides and kernels must have {self.dimension} axes at every level, got {self}")
        if set(self.strides[0]) != {1}:
            raise ValueError(f"the first stage's strides must be 1, got {list(self.strides[0])}")
        if min(self.widths) < 1 or any(width % GROWTHS for width in self.widths):
            raise ValueError(f"widths must be multiples of {GROWTHS}, got {list(self.widths)}")
        for name in ("convs_per_block", "source_channels", "privileged_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def levels(self) -> int:
        """L."""
        return len(self.strides)

    @property
    def dimension(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.strides[0])

    @property
    def total_strides(self) -> Size:
        """Strides of the coarsest level relative to the finest, by axis."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


def guidance_shape(
    architecture: Mapping[str, Any],
    *,
    base_features: int,
    features_double: bool | None = None,
    convs_per_block: int | None = None,
    source_channels: int = 1,
    privileged_channels: int = 1,
) -> GuidanceShape:
    """The shape of a guidance for the network of nnU-Net's plans: its first five stages, or as many as it has.

    Args:
        architecture: `arch_kwargs` of the plans' configuration, with `conv_op`, `strides` and `kernel_sizes`.
        base_features: channels of the first level.
        features_double: whether every level has twice the channels of the one before. None: in 3D.
        convs_per_block: None: 1 in 3D, 2 in 2D.
        source_channels: image channels that are there in training and prediction.
        privileged_channels: image channels that only the paired dataset has.

    Raises:
        NotImplementedError: a network without these stages.
        ValueError: fewer than two stages, or sizes that do not fit.
    """
    if not all(isinstance(architecture.get(name), Sequence) for name in ("strides", "kernel_sizes")):
        raise NotImplementedError(
            "guidance takes its levels from a network with stages (PlainConvUNet, ResidualEncoderUNet): the plans' "
            "architecture must have lists strides and kernel_sizes"
        )
    strides, kernels = (list(architecture[name])[:PAPER_LEVELS] for name in ("strides", "kernel_sizes"))
    is_3d = "conv2d" not in str(architecture.get("conv_op")).lower()
    dimension = 3 if is_3d else 2
    doubled = is_3d if features_double is None else features_double
    return GuidanceShape(
        strides=tuple(by_axis(axes, dimension) for axes in strides),
        kernels=tuple(by_axis(axes, dimension) for axes in kernels),
        widths=tuple(base_features * (2**level if doubled else 1) for level in range(len(strides))),
        convs_per_block=convs_per_block or (1 if is_3d else 2),
        source_channels=source_channels,
        privileged_channels=privileged_channels,
    )


def by_axis(value: int | Sequence[int], dimension: int) -> Size:
    """A stride or kernel of nnU-Net's plans, one number for all axes or one for each, as a tuple."""
    return tuple(value) if isinstance(value, Sequence) else (value,) * dimension


def level_sizes(shape: GuidanceShape, patch_size: Sequence[int]) -> list[Size]:
    """Size of the features of a patch at every level, from fine to coarse."""
    sizes = [tuple(patch_size)]
    for strides in shape.strides[1:]:
        sizes.append(tuple(size // stride for size, stride in zip(sizes[-1], strides, strict=True)))
    return sizes


def fitted_to(shape: GuidanceShape, patch_size: Sequence[int]) -> GuidanceShape:
    """The shape without the coarsest levels that have no room in a patch, see `require_patch`.

    Shape and patch alone decide it, so that stored plans build the same networks again.

    Raises:
        ValueError: a patch of another dimension, or one without room for two levels.
    """
    _require_dimension(shape, patch_size)
    sizes = level_sizes(shape, patch_size)
    levels = sum(math.prod(size) >= FEWEST_VOXELS for size in sizes)
    if levels < FEWEST_LEVELS:
        raise ValueError(
            f"patch_size must leave more than one voxel at the second level of teacher and keeper, got "
            f"{list(patch_size)}, which leaves {list(sizes[1])}; give this configuration of the plans a larger "
            "patch_size"
        )
    return replace(shape, strides=shape.strides[:levels], kernels=shape.kernels[:levels], widths=shape.widths[:levels])


def require_patch(shape: GuidanceShape, patch_size: Sequence[int]) -> None:
    """Refuse a patch that is too small: features of one voxel have no variance to normalise by.

    Raises:
        ValueError: a patch of another dimension, or one whose coarsest features have one voxel or none.
    """
    _require_dimension(shape, patch_size)
    coarsest = level_sizes(shape, patch_size)[-1]
    if math.prod(coarsest) < FEWEST_VOXELS:
        raise ValueError(
            f"patch_size must leave more than one voxel at the coarsest of {shape.levels} levels, got "
            f"{list(patch_size)}, which leaves {list(coarsest)}"
        )


def _require_dimension(shape: GuidanceShape, patch_size: Sequence[int]) -> None:
    if len(patch_size) != shape.dimension:
        raise ValueError(f"patch_size must have {shape.dimension} axes, got {list(patch_size)}")

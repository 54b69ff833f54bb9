"""Discriminator C of the keeper's training: is a patch of the privileged image true or synthesised?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rehrseg_nnunet.guided.instance_blocks import InstanceBlock, block_kernel, convolution, down_kernel, initialise
from rehrseg_nnunet.guided.shape import GuidanceShape, level_sizes
from rehrseg_nnunet.nnunet.precision import at_least_float32

KERNEL = 4


def stages_that_fit(shape: GuidanceShape, patch_size: Sequence[int]) -> int:
    """How many strided blocks a discriminator can have: one a level after the first, fewer for small patches.

    After them every axis needs as many voxels as the last convolution takes.

    Args:
        shape: levels of the keeper.
        patch_size: smallest patch that it will see.

    Raises:
        ValueError: not even one fits.
    """
    sizes = level_sizes(shape, patch_size)
    for stages in range(shape.levels - 1, 0, -1):
        needed = (1 if own == 1 else KERNEL - 2 for own in shape.kernels[stages])
        if all(size >= least for size, least in zip(sizes[stages], needed, strict=True)):
            return stages
    raise ValueError(
        f"patch_size must leave {KERNEL - 2} voxels along every axis after the first stage of the keeper's adversary, "
        f"got {list(patch_size)}; guidance.keeper.adversarial_weight 0 trains without one"
    )


class Discriminator(nn.Module):
    """Strided blocks of nf, 2 nf, 4 nf, 8 nf channels and a last convolution: one score for each part of a patch.

    Strides are those of the keeper's levels.

    Args:
        shape: levels and channels; nf is the first level's width.
        stages: number of strided blocks, see `stages_that_fit`; None for one a level after the first.

    Raises:
        ValueError: more stages than levels after the first, or none.
    """

    def __init__(self, shape: GuidanceShape, stages: int | None = None) -> None:
        super().__init__()
        stages = shape.levels - 1 if stages is None else stages
        if not 1 <= stages < shape.levels:
            raise ValueError(f"stages must be between 1 and {shape.levels - 1}, got {stages}")
        channels = [shape.privileged_channels, *(shape.widths[0] * 2**stage for stage in range(stages))]
        self.blocks = nn.Sequential(
            *(
                InstanceBlock(before, after, down_kernel(kernel, strides), strides=strides)
                for before, after, kernel, strides in zip(
                    channels[:-1],
                    channels[1:],
                    shape.kernels[1 : stages + 1],
                    shape.strides[1 : stages + 1],
                    strict=True,
                )
            )
        )
        self.scores = convolution(channels[-1], 1, block_kernel(shape.kernels[stages], KERNEL))
        initialise(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Patches (B, privileged_channels, *size) to scores (B, 1, ...), 1 for true, in at least float32."""
        return at_least_float32(self.scores(self.blocks(image)))

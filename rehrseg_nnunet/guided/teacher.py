"""Teacher T (arXiv 2402.08409): an autoencoder of the privileged image, whose features the keeper learns to give.

With y the privileged image and levels l = 1..L from fine to coarse:

    c_1..c_L = E_T(y),   c'_l = c_l + n_l,   y^ = D_T(c'_1..c'_L),   r_l = R_l(c_{l+1}) for l < L

n_l is Gaussian noise, in training only, so that the decoder does not rest on the finest features alone. R_l rebuilds
the features of a level from those below it. Level restoration (not in the paper) is in `level_restoration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from rehrseg_nnunet.guided.instance_blocks import InstanceBlock, block_kernel, initialise, max_pool, pointwise, resize
from rehrseg_nnunet.guided.level_restoration import PatchLevel, patch_level, restore, standardise
from rehrseg_nnunet.guided.shape import GuidanceShape

KERNEL = 3
Features = tuple[torch.Tensor, ...]


class TeacherOutput(NamedTuple):
    """What the teacher makes of a privileged patch.

    Attributes:
        image: y^, (B, privileged_channels, *size).
        features: c_1..c_L, (B, widths[l], *size of level l), without noise.
        rebuilt: r_1..r_{L-1}, each of the size of its features; empty without feature reconstruction.
    """

    image: torch.Tensor
    features: Features
    rebuilt: Features


class TeacherEncoder(nn.Module):
    """E_T: one block a level, maximum pooling between them.

    Args:
        shape: levels, widths and channels.
    """

    def __init__(self, shape: GuidanceShape) -> None:
        super().__init__()
        self.pools = nn.ModuleList(max_pool(strides) for strides in shape.strides[1:])
        self.blocks = nn.ModuleList(
            _block(shape, level, (shape.privileged_channels, *shape.widths)[level]) for level in range(shape.levels)
        )

    def forward(self, image: torch.Tensor) -> Features:
        """(B, privileged_channels, *size) to c_1..c_L, (B, widths[l], *size of level l)."""
        features = [self.blocks[0](image)]
        for pool, block in zip(self.pools, self.blocks[1:], strict=True):
            features.append(block(pool(features[-1])))
        return tuple(features)


class TeacherDecoder(nn.Module):
    """D_T: from the coarsest features up, joined at each level by that level's own; no activation at the end.

    Args:
        shape: levels, widths and channels.
    """

    def __init__(self, shape: GuidanceShape) -> None:
        super().__init__()
        self.bottom = _block(shape, -1, shape.widths[-1])
        self.projections = _projections(shape)
        self.blocks = nn.ModuleList(_block(shape, level, 2 * shape.widths[level]) for level in range(shape.levels - 1))
        self.image = pointwise(shape.widths[0], shape.privileged_channels, dimension=shape.dimension)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Features (B, widths[l], *size of level l) of all levels to (B, privileged_channels, *size)."""
        joined = self.bottom(features[-1])
        for level in reversed(range(len(self.blocks))):
            skip = features[level]
            coarser = resize(self.projections[level](joined), skip.shape[2:])
            joined = self.blocks[level](torch.cat([coarser, skip], dim=1))
        return self.image(joined)


class FeatureReconstruction(nn.Module):
    """R_1..R_{L-1}: the features of each level from those of the next coarser one.

    Args:
        shape: levels and widths.
    """

    def __init__(self, shape: GuidanceShape) -> None:
        super().__init__()
        self.projections = _projections(shape)
        self.blocks = nn.ModuleList(_block(shape, level, shape.widths[level]) for level in range(shape.levels - 1))

    def forward(self, features: Sequence[torch.Tensor]) -> Features:
        """c_1..c_L to r_1..r_{L-1}, which have the sizes of c_1..c_{L-1}."""
        return tuple(
            block(resize(projection(coarser), own.shape[2:]))
            for own, coarser, projection, block in zip(
                features[:-1], features[1:], self.projections, self.blocks, strict=True
            )
        )


class Teacher(nn.Module):
    """T: encoder, decoder and feature reconstruction.

    With level restoration T(a*y + b) = a*T(y) + b for a > 0, channel by channel, and a constant patch comes back as it
    is.

    Args:
        shape: levels, widths and channels.
        noise_std: standard deviation of n_l, of features that are normalised to 1; 0 for none.
        feature_reconstruction: whether there is R.
        level_restoration: whether patches are standardised before E_T and restored after D_T.

    Raises:
        ValueError: a negative noise_std.
    """

    def __init__(
        self,
        shape: GuidanceShape,
        *,
        noise_std: float = 0.3,
        feature_reconstruction: bool = True,
        level_restoration: bool = True,
    ) -> None:
        super().__init__()
        if noise_std < 0:
            raise ValueError(f"noise_std must be at least 0, got {noise_std}")
        self.noise_std = noise_std
        self.level_restoration = level_restoration
        self.encoder = TeacherEncoder(shape)
        self.decoder = TeacherDecoder(shape)
        self.reconstruction = FeatureReconstruction(shape) if feature_reconstruction else None
        initialise(self)

    def forward(self, privileged: torch.Tensor) -> TeacherOutput:
        """Patches (B, privileged_channels, *size) to what the loss of the teacher needs."""
        level = patch_level(privileged)
        features = self._features(privileged, level)
        image = self.decoder([self._with_noise(own) for own in features])
        rebuilt = () if self.reconstruction is None else self.reconstruction(features)
        return TeacherOutput(restore(image, level) if self.level_restoration else image, features, rebuilt)

    def features(self, privileged: torch.Tensor) -> Features:
        """E_T alone: patches (B, privileged_channels, *size) to c_1..c_L, which the keeper is taught."""
        return self._features(privileged, patch_level(privileged))

    def _features(self, privileged: torch.Tensor, level: PatchLevel) -> Features:
        return self.encoder(standardise(privileged, level) if self.level_restoration else privileged)

    def _with_noise(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or self.noise_std == 0:
            return features
        return features + self.noise_std * torch.randn_like(features)


def _block(shape: GuidanceShape, level: int, in_channels: int) -> InstanceBlock:
    kernel = block_kernel(shape.kernels[level], KERNEL)
    return InstanceBlock(in_channels, shape.widths[level], kernel, convs=shape.convs_per_block)


def _projections(shape: GuidanceShape) -> nn.ModuleList:
    """From the width of each level's coarser neighbour to its own."""
    pairs = zip(shape.widths[1:], shape.widths[:-1], strict=True)
    return nn.ModuleList(pointwise(coarser, own, dimension=shape.dimension) for coarser, own in pairs)

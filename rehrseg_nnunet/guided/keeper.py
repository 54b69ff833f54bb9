"""Knowledge keeper K (arXiv 2402.08409): from the source image alone, the features that the teacher has of the other.

With x the source image: g_1..g_L = K(x) shall be E_T(y), and y~ = D_T(g_1..g_L) is the synthesised image.

Going down, every level has a dense block, and a strided convolution to the next. Going up, every level joins what it
has extracted with the guide of the coarser one, by two attention maps, and recalibrates the sum (`recalibration`).

A residual keeper (not in the paper) starts from what the teacher sees in the source, which is much of what it would see
in the better scan, and learns what that lacks. With k_1..k_L for what the above gives:

    g_l = M_l E_T(P x)_l + gamma_l k_l

M_l is a 1x1 convolution, the identity at first; gamma_l one number a channel, 0 at first; P, where there are more or
fewer source channels than privileged ones, their 1x1 convolution, at first the mean.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from rehrseg_nnunet.config.guidance import GROWTHS
from rehrseg_nnunet.guided.instance_blocks import (
    InstanceBlock,
    block_kernel,
    down_kernel,
    initialise,
    pointwise,
    resize,
)
from rehrseg_nnunet.guided.level_restoration import PatchLevelMap, patch_level, restore, standardise
from rehrseg_nnunet.guided.recalibration import PositionRecalibration
from rehrseg_nnunet.guided.shape import GuidanceShape
from rehrseg_nnunet.guided.teacher import Features, Teacher, TeacherDecoder, TeacherEncoder


class ExtractionBlock(nn.Module):
    """Three convolution blocks, each on the input and the outputs of those before it.

    (B, in_channels, *size) to (B, in_channels + 3 * growth, *size), the input first.

    Args:
        in_channels: channels in.
        growth: channels that each block adds.
        kernel: size by axis.
        convs: convolutions in a block.
    """

    def __init__(self, in_channels: int, growth: int, kernel: tuple[int, ...], *, convs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            InstanceBlock(in_channels + number * growth, growth, kernel, convs=convs) for number in range(GROWTHS - 1)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Append what the blocks extract."""
        for block in self.blocks:
            features = torch.cat([features, block(features)], dim=1)
        return features


class GuideBlock(nn.Module):
    """One level of the guide path: g_l = PRM(a_1 u + a_2 k), u from the coarser guide and k from what was extracted.

    u = W resize(g_{l+1}); k a convolution block of the extracted features; a_1, a_2 = sigmoid(V [u, k] + v), one map
    each. At the coarsest level g_L = PRM(k).

    Args:
        extracted: channels of the extracted features.
        width: channels of g_l.
        coarser: channels of g_{l+1}; None at the coarsest level.
        kernel: size by axis.
        convs: convolutions in a block.
        recalibration: whether there is PRM.
    """

    def __init__(
        self,
        extracted: int,
        width: int,
        *,
        coarser: int | None,
        kernel: tuple[int, ...],
        convs: int,
        recalibration: bool,
    ) -> None:
        super().__init__()
        dimension = len(kernel)
        self.block = InstanceBlock(extracted, width, kernel, convs=convs)
        if coarser is not None:
            self.projection = pointwise(coarser, width, dimension=dimension)
            self.attention = pointwise(2 * width, 2, dimension=dimension, bias=True)
        self.recalibration = PositionRecalibration(dimension) if recalibration else nn.Identity()

    def forward(self, extracted: torch.Tensor, coarser: torch.Tensor | None) -> torch.Tensor:
        """Extracted (B, C, *size) and the coarser guide, None at the coarsest level, to g_l (B, width, *size)."""
        own = self.block(extracted)
        if coarser is not None:
            above = resize(self.projection(coarser), own.shape[2:])
            maps = torch.sigmoid(self.attention(torch.cat([above, own], dim=1)))
            own = maps[:, :1] * above + maps[:, 1:] * own
        return self.recalibration(own)


class SourceFeatures(nn.Module):
    """M_l E_T(P x)_l: what a teacher sees in the source, made more like what it sees in the privileged image.

    E_T stays as it is.

    Args:
        shape: levels, widths and channels.

    Attributes:
        encoder: E_T.
    """

    def __init__(self, shape: GuidanceShape) -> None:
        super().__init__()
        sources, privileged, dimension = shape.source_channels, shape.privileged_channels, shape.dimension
        self.projection = nn.Identity()
        if sources != privileged:
            self.projection = pointwise(sources, privileged, dimension=dimension)
            nn.init.constant_(self.projection.weight, 1 / sources)  # pyright: ignore[reportArgumentType] # a convolution
        self.encoder = TeacherEncoder(shape)
        initialise(self.encoder)
        self.encoder.requires_grad_(False)
        self.maps = nn.ModuleList(pointwise(width, width, dimension=dimension, bias=True) for width in shape.widths)
        for layer in self.maps:
            nn.init.dirac_(layer.weight)  # pyright: ignore[reportArgumentType] # a convolution
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, source: torch.Tensor) -> Features:
        """(B, source_channels, *size) to (B, widths[l], *size of level l)."""
        seen = self.encoder(self.projection(source))
        return tuple(layer(features) for layer, features in zip(self.maps, seen, strict=True))


class Keeper(nn.Module):
    """K: guides of the teacher's sizes from source patches.

    With level restoration K(a*x + b) = K(x) for a > 0, channel by channel.

    Args:
        shape: levels, widths and channels.
        kernel: size of all convolutions but the strided ones; odd.
        recalibration: whether guides are recalibrated by position.
        level_restoration: whether patches are standardised first.
        residual: whether guides are what the teacher sees in the source, and what is learnt besides.

    Attributes:
        shape: as given.
        source_features: of a residual keeper, else None.

    Raises:
        ValueError: an even kernel.
    """

    def __init__(
        self,
        shape: GuidanceShape,
        *,
        kernel: int = 3,
        recalibration: bool = True,
        level_restoration: bool = True,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, got {kernel}")
        self.shape = shape
        self.level_restoration = level_restoration
        growths = [width // GROWTHS for width in shape.widths]
        entering = [shape.source_channels, *growths[:-1]]
        extracted = [first + (GROWTHS - 1) * growth for first, growth in zip(entering, growths, strict=True)]
        kernels = [block_kernel(own, kernel) for own in shape.kernels]
        convs = shape.convs_per_block
        self.extraction = nn.ModuleList(
            ExtractionBlock(*sizes, convs=convs) for sizes in zip(entering, growths, kernels, strict=True)
        )
        self.transitions = nn.ModuleList(
            InstanceBlock(channels, growth, down_kernel(own, strides), strides=strides)
            for channels, growth, own, strides in zip(
                extracted[:-1], growths[:-1], shape.kernels[1:], shape.strides[1:], strict=True
            )
        )
        self.guides = nn.ModuleList(
            GuideBlock(channels, width, coarser=coarser, kernel=own, convs=convs, recalibration=recalibration)
            for channels, width, coarser, own in zip(
                extracted, shape.widths, (*shape.widths[1:], None), kernels, strict=True
            )
        )
        initialise(self)
        self.source_features = SourceFeatures(shape) if residual else None
        if residual:
            one = (1,) * shape.dimension
            self.gamma = nn.ParameterList(torch.zeros(width, *one) for width in shape.widths)

    def forward(self, source: torch.Tensor) -> Features:
        """(B, source_channels, *size) to g_1..g_L, (B, widths[l], *size of level l)."""
        if self.level_restoration:
            source = standardise(source, patch_level(source))
        extracted = [self.extraction[0](source)]
        for transition, block in zip(self.transitions, self.extraction[1:], strict=True):
            extracted.append(block(transition(extracted[-1])))
        guides: list[torch.Tensor] = []
        for level in reversed(range(len(extracted))):
            guides.append(self.guides[level](extracted[level], guides[-1] if guides else None))
        if self.source_features is None:
            return tuple(guides[::-1])
        seen = self.source_features(source)
        learnt = (guide * gamma.to(guide.dtype) for gamma, guide in zip(self.gamma, guides[::-1], strict=True))
        return tuple(own + more for own, more in zip(seen, learnt, strict=True))


class KeeperOutput(NamedTuple):
    """What the network of the keeper's training makes of a source patch.

    Attributes:
        guides: g_1..g_L, (B, widths[l], *size of level l).
        image: y~, (B, privileged_channels, *size), the synthesised privileged image.
    """

    guides: Features
    image: torch.Tensor


class KeeperNetwork(nn.Module):
    """The keeper with the teacher's decoder, which stays as it is: a network that can synthesise alone.

    The teacher's parts need no gradient, and the decoder is in evaluation mode always.

    Args:
        keeper: K. With level restoration, which must be as in the teacher's training, the synthesised patch has the
            level that `PatchLevelMap` makes of the source patch's.

    Attributes:
        keeper: as given.
        decoder: D_T.
        level: four numbers (for one channel on either side), or None without level restoration.
    """

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        shape = keeper.shape
        self.keeper = keeper
        self.decoder = TeacherDecoder(shape)
        initialise(self.decoder)
        self.decoder.requires_grad_(False).eval()
        restored = keeper.level_restoration
        self.level = PatchLevelMap(shape.source_channels, shape.privileged_channels) if restored else None

    def take_from(self, teacher: Teacher) -> None:
        """Copy the weights of a trained teacher's decoder, and of its encoder if the keeper is residual.

        Raises:
            RuntimeError: a teacher of another shape.
        """
        self.decoder.load_state_dict(teacher.decoder.state_dict())
        if self.keeper.source_features is not None:
            self.keeper.source_features.encoder.load_state_dict(teacher.encoder.state_dict())

    def train(self, mode: bool = True) -> KeeperNetwork:
        """Training mode for all but the decoder."""
        super().train(mode)
        self.decoder.eval()
        return self

    def forward(self, source: torch.Tensor) -> KeeperOutput:
        """(B, source_channels, *size) to guides and synthesised image."""
        guides = self.keeper(source)
        image = self.decoder(guides)
        return KeeperOutput(guides, image if self.level is None else restore(image, self.level(patch_level(source))))

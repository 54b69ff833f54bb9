"""Fusion of the keeper's guides into the features of a segmentation network's stage (arXiv 2402.08409).

With e the stage's own features (C channels), g_1..g_L the guides, h = max(L, share of C) and m = h // L:

    aggregation:  u_j = resize(W_j g_j),  a = conv(ReLU(IN(conv([u_1..u_L]))))
    assimilation: q = IN(conv([a, e])),   q+ = max(q, 0),  q- = min(q, 0)
    refinement:   v+ = ReLU(W2 ReLU(W1 mean q+)),  v- likewise of q- with weights of its own
    f = e + 10 gamma * (v+ * q+ + v- * q-)

The guides raise or lower the contrast of e channel by channel: v are one number a channel, never negative. gamma is one
number a channel, too, 0 at first. It is not in the paper, whose f differs from a trained network's e from the first
step on. Zeroing the gates instead would be for ever: a ReLU at 0 passes no gradient. So gates begin near 1 where gamma
begins at 0: half of the channels would begin with a dead gate. The factor 10 makes gamma's steps a hundred times as
long: nnU-Net's SGD alone took it to 0.004 in 200 steps, and guides of the true better scan were not heard.

Convention:
    Stages and levels go from fine to coarse. Guides may have any size: they are resized to the stage's. Convolutions
    have no bias and the plan's 1 along axes that it does not mix at this stage.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.guided.instance_blocks import NORMS, block_kernel, convolution, initialise, pointwise, resize
from rehrseg_nnunet.guided.shape import Size

KERNEL = 3
START_SCALAR = 0.5
GAMMA_SCALE = 10.0


class Aggregation(nn.Module):
    """Guides of all levels to h maps of a stage's size.

    Args:
        guide_widths: channels of each guide.
        hidden: h.
        kernel: size by axis.
    """

    def __init__(self, guide_widths: Sequence[int], hidden: int, kernel: Size) -> None:
        super().__init__()
        dimension, width = len(kernel), max(1, hidden // len(guide_widths))
        self.projections = nn.ModuleList(pointwise(own, width, dimension=dimension) for own in guide_widths)
        self.mix = nn.Sequential(
            convolution(width * len(guide_widths), hidden, kernel),
            NORMS[dimension](hidden),
            nn.ReLU(inplace=True),
            convolution(hidden, hidden, kernel),
        )

    def forward(self, guides: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """Guides (B, guide_widths[j], *any) to (B, h, *size)."""
        pairs = zip(self.projections, guides, strict=True)
        # the pointwise convolution first: it commutes with the resizing and leaves fewer channels to it
        return self.mix(torch.cat([resize(projection(guide), size) for projection, guide in pairs], dim=1))


class ChannelGate(nn.Sequential):
    """Means (B, C) to weights (B, C) of at least 0.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        hidden = max(1, channels // 2)
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.ReLU())

    def open(self) -> None:
        """Begin near 1, where gradients pass."""
        last = self[2]
        assert isinstance(last, nn.Linear)
        nn.init.ones_(last.bias)


class Refinement(nn.Module):
    """v+ q+ + v- q-: positive and negative evidence, each weighed by channel.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positive, self.negative = ChannelGate(channels), ChannelGate(channels)

    def open_gates(self) -> None:
        """Let all gates begin near 1."""
        self.positive.open()
        self.negative.open()

    def forward(self, evidence: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Q (B, C, *size) to the same, times `scale` (C,) if there is one.

        As v- q + (v+ - v-) q+, with the scale in the weights: half as many passes over all voxels.
        """
        positive, axes = evidence.relu(), tuple(range(2, evidence.ndim))
        mean = positive.mean(axes)
        raising, lowering = self.positive(mean), self.negative(evidence.mean(axes) - mean)
        if scale is not None:
            raising, lowering = scale * raising, scale * lowering
        return _by_voxel(lowering, evidence) * evidence + _by_voxel(raising - lowering, evidence) * positive


def _by_voxel(weights: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """(B, C) or (C,) as a factor of (B, C, *size)."""
    return weights.to(image.dtype).view(*weights.shape, *(1,) * (image.ndim - 2))


class AdaptiveFusion(nn.Module):
    """The module's equations.

    Args:
        channels: C.
        guide_widths: channels of the guides that it is given.
        kernel: of the convolutions, by axis.
        hidden: h as a share of C.
        refinement: whether there are gates; without them f = e + gamma * q.
        identity_start: whether there is gamma, and open gates; without it (the paper) its factor is 1.
    """

    def __init__(
        self,
        channels: int,
        guide_widths: Sequence[int],
        kernel: Size,
        *,
        hidden: float,
        refinement: bool,
        identity_start: bool,
    ) -> None:
        super().__init__()
        width = max(len(guide_widths), int(channels * hidden))
        self.aggregation = Aggregation(guide_widths, width, kernel)
        self.assimilation = nn.Sequential(convolution(width + channels, channels, kernel), NORMS[len(kernel)](channels))
        self.refinement = Refinement(channels) if refinement else None
        initialise(self)
        self.gamma = nn.Parameter(torch.zeros(channels)) if identity_start else None
        if identity_start and self.refinement is not None:
            self.refinement.open_gates()

    def forward(self, own: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor:
        """E (B, C, *size) and guides (B, guide_widths[j], *any) to f (B, C, *size)."""
        aggregated = self.aggregation(guides, own.shape[2:])
        evidence = self.assimilation(torch.cat([aggregated, own], dim=1))
        gamma = None if self.gamma is None else GAMMA_SCALE * self.gamma
        if self.refinement is not None:
            return own + self.refinement(evidence, gamma)
        return own + (evidence if gamma is None else _by_voxel(gamma, evidence) * evidence)


class GuideAdaptor(nn.Module):
    """A guide instead of a stage's features, by a pointwise convolution where the widths differ: D(K(x)).

    Args:
        channels: C.
        guide_width: channels of the guide.
        dimension: number of spatial axes.
    """

    def __init__(self, channels: int, guide_width: int, *, dimension: int) -> None:
        super().__init__()
        equal = channels == guide_width
        self.adaptor = nn.Identity() if equal else pointwise(guide_width, channels, dimension=dimension)
        initialise(self)

    def forward(self, guides: Sequence[torch.Tensor], size: Sequence[int]) -> torch.Tensor:
        """One guide (B, guide_width, *any) to (B, C, *size)."""
        (guide,) = guides
        return resize(self.adaptor(guide), size)


class ScalarFusion(nn.Module):
    """F = ReLU(alpha) g + ReLU(beta) e with two trained numbers, 1/2 at first (the method's MICCAI 2022 version).

    Args:
        channels: C.
        guide_width: channels of the guide.
        dimension: number of spatial axes.
    """

    def __init__(self, channels: int, guide_width: int, *, dimension: int) -> None:
        super().__init__()
        self.guide = GuideAdaptor(channels, guide_width, dimension=dimension)
        self.alpha, self.beta = (nn.Parameter(torch.tensor(START_SCALAR)) for _ in range(2))

    def forward(self, own: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor:
        """E (B, C, *size) and one guide (B, guide_width, *any) to f (B, C, *size)."""
        alpha, beta = (scalar.relu().to(own.dtype) for scalar in (self.alpha, self.beta))
        return alpha * self.guide(guides, own.shape[2:]) + beta * own


def build_fusion(
    config: FusionConfig, channels: int, guide_widths: Sequence[int], plan_kernel: Size
) -> AdaptiveFusion | ScalarFusion | GuideAdaptor:
    """The module of a stage.

    Args:
        config: kind and sizes.
        channels: of the stage.
        guide_widths: channels of the guides that it is given: one but for adaptive fusion of all.
        plan_kernel: of the segmentation network at this stage, by axis.
    """
    if config.kind == "adaptive":
        return AdaptiveFusion(
            channels,
            guide_widths,
            block_kernel(plan_kernel, KERNEL),
            hidden=config.hidden,
            refinement=config.refinement,
            identity_start=config.start != "paper",
        )
    module = ScalarFusion if config.kind == "scalar" else GuideAdaptor
    return module(channels, *guide_widths, dimension=len(plan_kernel))

"""A segmentation network of nnU-Net's plans, guided by a keeper: see `add_guidance`.

The network keeps its own layers and the names of their weights. Keeper and fusion modules are children of its last
segmentation layer: every new weight has `.seg_layers.` in its name, which is what nnU-Net leaves out when it loads
pretrained weights from a plain checkpoint. The encoder gets a forward that returns the fused features, so whatever
calls it, nnU-Net's network or one with an HR head, is guided.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Protocol, cast

import torch
from torch import nn

from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.guided.fusion import build_fusion
from rehrseg_nnunet.guided.keeper import Keeper
from rehrseg_nnunet.guided.shape import Size, by_axis
from rehrseg_nnunet.guided.source_view import SourceView
from rehrseg_nnunet.nnunet.extended_network import Extension, extend, is_extended, unwrap

CHILD = "guidance"


class Guidance(nn.Module):
    """A keeper and the fusion modules of the stages that it guides.

    Args:
        keeper: K. Unless it is to learn, its weights need no gradient and it is in evaluation mode always.
        fusions: by the stage's number, from 0 (full resolution) on.
        view: what the keeper sees of a patch.
        same_level: whether a stage gets the guide of its own level alone, or of the coarsest if there is none.
        learns: whether the keeper is trained along.
    """

    def __init__(
        self, keeper: Keeper, fusions: dict[int, nn.Module], *, view: SourceView, same_level: bool, learns: bool = False
    ) -> None:
        super().__init__()
        self.keeper = keeper
        self.fusions = nn.ModuleDict({str(stage): module for stage, module in fusions.items()})
        self.view, self.same_level, self.learns = view, same_level, learns
        self.keeper.requires_grad_(learns)  # of a residual keeper that learns the teacher's encoder too
        if not learns:
            self.keeper.eval()

    def train(self, mode: bool = True) -> Guidance:
        """Training mode, for the keeper only if it learns."""
        super().train(mode)
        if not self.learns:
            self.keeper.eval()
        return self

    def guides(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Patches (B, C, *size) to g_1..g_L in the image's axes, on the keeper's grid."""
        strides = self.keeper.shape.total_strides
        with nullcontext() if self.learns else torch.no_grad():
            return [self.view.back(guide) for guide in self.keeper(self.view.source(image, strides))]

    def fuse(self, image: torch.Tensor, skips: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """An encoder's features (B, C_s, *size_s) of all stages to guided ones."""
        guides = self.guides(image)
        fused = list(skips)
        for stage, fusion in self.fusions.items():
            fused[int(stage)] = fusion(skips[int(stage)], self._seen(guides, int(stage)))
        return fused

    def replace(self, image: torch.Tensor, sizes: Sequence[Size]) -> list[torch.Tensor]:
        """The guides in place of an encoder's features, (B, C_s, *sizes[s])."""
        guides = self.guides(image)
        return [
            fusion(self._seen(guides, stage), size)
            for stage, (fusion, size) in enumerate(zip(self.fusions.values(), sizes, strict=True))
        ]

    def _seen(self, guides: Sequence[torch.Tensor], stage: int) -> Sequence[torch.Tensor]:
        return [guides[min(stage, len(guides) - 1)]] if self.same_level else guides


class Guided(Extension):
    """Forward of an encoder whose features are fused with guides.

    Attributes:
        guidance: a tuple of one, so that the guidance is a child of the segmentation layer alone.
        strides: the encoder's, by stage and axis.
    """

    guidance: tuple[Guidance]
    strides: list[Any]

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, *size) to fused features of all stages."""
        return self.guidance[0].fuse(image, super().forward(image))


class Replaced(Guided):
    """Forward of an encoder whose place the guides take; its weights need no gradient."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, *size) to guides of all stages, with the encoder's channels and sizes."""
        sizes, size = [], tuple(image.shape[2:])
        for strides in self.strides:
            size = tuple(-(-voxels // stride) for voxels, stride in zip(size, strides, strict=True))
            sizes.append(size)
        return self.guidance[0].replace(image, sizes)


def add_guidance(
    network: nn.Module, keeper: Keeper, *, view: SourceView, fusion: FusionConfig, learns: bool = False
) -> nn.Module:
    """Guide a network of nnU-Net's plans by a keeper.

    Args:
        network: PlainConvUNet, ResidualEncoderUNet or another network that is `decoder(encoder(image))`, in 2D or 3D,
            with an HR head or without. It is changed in place.
        keeper: of the same dimension.
        view: what the keeper sees of a patch.
        fusion: kind and sizes of the fusion modules, and the stages that they are for.
        learns: whether the keeper is trained along, without pairs (a control).

    Returns:
        The same object. With adaptive fusion and `start: identity` it computes what it computed before, until gamma has
        been trained.

    Raises:
        NotImplementedError: another architecture.
        ValueError: a keeper of another dimension, a network that is guided already, or stages that it has not.
    """
    unet = _as_unet(network)
    layer = unet.decoder.seg_layers[-1]
    _check(unet, keeper, view)
    same_level = fusion.guides == "same_level" or fusion.kind != "adaptive"
    fusions = _fusions(unet, keeper, fusion, same_level=same_level)
    guidance = Guidance(keeper, fusions, view=view, same_level=same_level, learns=learns)
    extension = Replaced if fusion.kind == "decoder_only" else Guided
    extend(unet.encoder, extension, guidance=(guidance,))
    if extension is Replaced:
        unet.encoder.requires_grad_(False)
    layer.add_module(CHILD, guidance.to(device=layer.weight.device, dtype=layer.weight.dtype))
    return network


def is_guided(network: nn.Module) -> bool:
    """Whether a network, wrapped or not, has been guided by `add_guidance`."""
    encoder = getattr(unwrap(network), "encoder", None)
    return isinstance(encoder, nn.Module) and is_extended(encoder, Guided)


def guidance_of(network: nn.Module) -> Guidance:
    """The guidance of a network, wrapped or not.

    Raises:
        ValueError: a network that is not guided.
    """
    if not is_guided(network):
        raise ValueError(f"network must be guided, got a {type(unwrap(network)).__name__}")
    return cast("Any", unwrap(network)).encoder.guidance[0]


class UNet(Protocol):
    """A network with what is needed of it."""

    encoder: Any
    decoder: Any


def _as_unet(network: nn.Module) -> UNet:
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    known = all(hasattr(encoder, name) for name in ("strides", "output_channels", "kernel_sizes"))
    if not known or not isinstance(getattr(decoder, "seg_layers", [None])[-1], nn.Conv2d | nn.Conv3d):
        raise NotImplementedError(
            f"guidance supports networks with an encoder of stages and decoder.seg_layers (PlainConvUNet, "
            f"ResidualEncoderUNet), not {type(network).__name__}"
        )
    return cast("UNet", network)


def _check(unet: UNet, keeper: Keeper, view: SourceView) -> None:
    dimension = unet.decoder.seg_layers[-1].weight.ndim - 2
    if isinstance(unet.encoder, Guided):
        raise ValueError("network must be without guidance, got one that is guided")
    if dimension != keeper.shape.dimension:
        raise ValueError(f"keeper must be of the network's dimension {dimension}, got one of {keeper.shape.dimension}")
    if len(view.channels) != keeper.shape.source_channels:
        raise ValueError(f"view must have the keeper's {keeper.shape.source_channels} channels, got {view.channels}")
    for name in ("axes", "spacing_ratio"):
        if len(getattr(view, name)) not in (0, dimension):
            raise ValueError(f"{name} must be {dimension}, got {getattr(view, name)}")


def _fusions(unet: UNet, keeper: Keeper, fusion: FusionConfig, *, same_level: bool) -> dict[int, nn.Module]:
    widths, dimension = keeper.shape.widths, keeper.shape.dimension
    return {
        stage: build_fusion(
            fusion,
            int(unet.encoder.output_channels[stage]),
            [widths[min(stage, len(widths) - 1)]] if same_level else widths,
            by_axis(unet.encoder.kernel_sizes[stage], dimension),
        )
        for stage in _stages(fusion, len(unet.encoder.output_channels))
    }


def _stages(fusion: FusionConfig, number: int) -> list[int]:
    """Guided stages, from 0 on."""
    if fusion.stages is None:
        return list(range(number))
    if fusion.kind == "decoder_only":
        raise ValueError(f"guidance.fusion.stages must be null for decoder_only, got {list(fusion.stages)}")
    if max(fusion.stages) > number:
        raise ValueError(f"guidance.fusion.stages must be at most {number}, got {list(fusion.stages)}")
    return sorted(stage - 1 for stage in fusion.stages)

"""HR segmentation head and distillation adaptor for the network of nnU-Net's plans (paper sections 3.5, 3.6 and 4.2).

The network keeps its own layers and the names of their weights. Its last segmentation layer becomes an `HRSegLayer`,
which carries the new parts as children: every new weight has `.seg_layers.` in its name, which is what nnU-Net leaves
out when it loads pretrained weights from a plain checkpoint.

Convention:
    Feature maps are (B, C, D, H, W) with the slice axis z first. The HR head returns r*D slices over the same field of
    view, at the positions of `rehrseg_nnunet.slices.geometry.hr_slice_positions`. Convolutions pad with zeros; what is
    interpolated is repeated beyond the first and last LR centre.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.nnunet.extended_network import extend
from rehrseg_nnunet.segmentation.hr_network import HRNetwork, OutputMode, TrainingOutputs, gives_hr_logits
from rehrseg_nnunet.slices.slice_upsampling import LogitInterpolation, interleave_slices, upsample_slices


class HRHead(nn.Module):
    """Features to HR logits by two convolutions (paper section 4.2).

    With `upsampling` "subpixel" the first convolution runs on the LR grid and gives r times as many channels, which are
    then arranged as slices. With "interpolate", the paper's, the features are interpolated along z before it. With
    `label_mode` "residual" the convolutions' result is added to the interpolated LR logits, and is 0 at first: the head
    starts as a way to upsample what the network already knows, and learns what that lacks. The HR loss does not reach
    the LR logits: where Eq. 7 says that a pseudo label teaches the LR head nothing, it must not do so through here.

    Args:
        in_channels: channels of the features.
        heads: K, channels of the logits.
        factor: r.
        config: label mode, upsampling, widths and kernel sizes.
    """

    def __init__(self, in_channels: int, heads: int, *, factor: int, config: HRHeadConfig) -> None:
        super().__init__()
        self.factor = factor
        self.subpixel = config.upsampling == "subpixel"
        hidden = config.hidden_features
        self.first = nn.Conv3d(
            in_channels,
            hidden * factor if self.subpixel else hidden,
            config.first_kernel,
            padding=config.first_kernel // 2,
        )
        self.second = nn.Conv3d(hidden, heads, config.second_kernel, padding=config.second_kernel // 2)
        self.interpolation = LogitInterpolation(factor) if config.label_mode == "residual" else None

    def initialize(self, scheme: Callable[[nn.Module], None]) -> None:
        """Draw the convolutions' weights by the network's own scheme; a residual starts at 0."""
        self.apply(scheme)
        if self.interpolation is not None:
            for parameter in self.second.parameters():
                nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor, lr_logits: torch.Tensor) -> torch.Tensor:
        """Features (B, C, D, H, W) and LR logits (B, K, D, H, W) to HR logits (B, K, r*D, H, W)."""
        if self.subpixel:
            hr = interleave_slices(self.first(features), self.factor)
        else:
            hr = self.first(upsample_slices(features, self.factor))
        logits = self.second(functional.relu(hr))
        return logits if self.interpolation is None else logits + self.interpolation(lr_logits.detach())


class HRSegLayer(nn.Conv3d):
    """The network's last segmentation layer, with the HR head and the distillation adaptor as children.

    Args:
        layer: the segmentation layer to take over; its weights become this layer's own, under the same names.
        head: HR head on the features that enter the layer.
        adaptor: 1x1x1 convolution from the student's to the teacher's channels; the network calls it.

    Attributes:
        output_mode: "lr" returns what `layer` returned, in "hr" and "training" the pair of those and the HR logits.
    """

    output_mode: OutputMode

    def __init__(self, layer: nn.Conv3d, *, head: HRHead, adaptor: nn.Conv3d) -> None:
        sizes: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding")}
        super().__init__(layer.in_channels, layer.out_channels, bias=layer.bias is not None, **sizes)
        self.weight, self.bias = layer.weight, layer.bias
        for name, child in layer.named_children():  # what another extension has put there
            self.add_module(name, child)
        self.hr_head = head
        self.adaptor = adaptor
        self.output_mode = "lr"

    def forward(self, features: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits of the features (B, C, D, H, W), according to `output_mode`."""
        if self.output_mode == "lr":
            return super().forward(features)
        lr = super().forward(features)
        return lr, self.hr_head(features, lr)


class HR(HRNetwork):
    """Forward of a network whose last segmentation layer is an `HRSegLayer`.

    Attributes:
        encoder: the network's.
        decoder: the network's.
        student_stage: index of the encoder stage that is the student of the distillation.
    """

    encoder: Any
    decoder: Any
    student_stage: int

    @property
    def factor(self) -> int:
        """r, of the HR head."""
        return self.decoder.seg_layers[-1].hr_head.factor

    @property
    def output_mode(self) -> OutputMode:
        """What the forward returns; the layer needs to know it too."""
        return self.decoder.seg_layers[-1].output_mode

    @output_mode.setter
    def output_mode(self, mode: OutputMode) -> None:
        self.decoder.seg_layers[-1].output_mode = mode

    def forward(
        self, image: torch.Tensor
    ) -> torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor] | TrainingOutputs:
        """Segment (B, C_in, D, H, W): what the output mode says, see `set_output_mode`."""
        layer = self.decoder.seg_layers[-1]
        if layer.output_mode == "lr":
            return super().forward(image)
        skips = self.encoder(image)
        outputs = self.decoder(skips)
        finest, coarser = (outputs[0], outputs[1:]) if isinstance(outputs, list) else (outputs, None)
        if layer.output_mode == "hr":
            return finest
        lr, hr = finest
        student = skips[self.student_stage]
        return TrainingOutputs(
            lr=lr if coarser is None else [lr, *coarser],
            hr=hr,
            student=student,
            adapted=layer.adaptor(student),
        )


def add_hr_head(network: nn.Module, *, factor: int, teacher_channels: int, config: HRHeadConfig) -> nn.Module:
    """Give a U-Net of nnU-Net's plans an HR head and a distillation adaptor.

    Args:
        network: PlainConvUNet, ResidualEncoderUNet or another 3D network that is `decoder(encoder(image))` with
            `encoder.strides` and `decoder.seg_layers`. It is changed in place.
        factor: r.
        teacher_channels: Ct, channels of the teacher's features.
        config: modes and sizes of the HR head.

    Returns:
        The same object. Until `set_output_mode` says otherwise it computes what it computed before.

    Raises:
        NotImplementedError: another architecture, a 2D network, or no encoder stage at in-plane stride 2.
        ValueError: factor is not an integer of at least 2, or the network already has an HR head.
    """
    if int(factor) != factor or factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor}")
    if gives_hr_logits(network):
        raise ValueError(f"network must be without an HR head, got a {type(network).__name__}")
    unet = as_unet(network)
    layer: nn.Conv3d = unet.decoder.seg_layers[-1]
    stage = student_stage(unet)
    new = HRSegLayer(
        layer,
        head=HRHead(layer.in_channels, layer.out_channels, factor=factor, config=config),
        adaptor=nn.Conv3d(int(unet.encoder.output_channels[stage]), teacher_channels, 1),
    )
    new.to(device=layer.weight.device, dtype=layer.weight.dtype)
    scheme = getattr(network, "initialize", _keep)
    new.hr_head.initialize(scheme)
    new.adaptor.apply(scheme)
    unet.decoder.seg_layers[-1] = new
    return extend(network, HR, student_stage=stage)


def _keep(module: nn.Module) -> None:
    """The scheme of a network without one: PyTorch's weights."""


class UNet(Protocol):
    """A network with what is needed of it."""

    encoder: Any
    decoder: Any


def as_unet(network: nn.Module) -> UNet:
    """The network as what REHRSeg adds to.

    Raises:
        NotImplementedError: another architecture, or a 2D network.
    """
    encoder, decoder = getattr(network, "encoder", None), getattr(network, "decoder", None)
    known = all(hasattr(encoder, name) for name in ("strides", "output_channels"))
    if not known or not isinstance(getattr(decoder, "seg_layers", [None])[-1], nn.Conv3d):
        raise NotImplementedError(
            f"REHRSeg supports 3D networks with encoder.strides and decoder.seg_layers (PlainConvUNet, "
            f"ResidualEncoderUNet), not {type(network).__name__}"
        )
    return cast("UNet", network)


def student_stage(network: UNet) -> int:
    """Index of the first encoder stage whose in-plane stride relative to the input is 2.

    Raises:
        NotImplementedError: there is none.
    """
    in_plane = [1, 1]
    for stage, (_, y, x) in enumerate(network.encoder.strides):
        in_plane = [in_plane[0] * y, in_plane[1] * x]
        if in_plane == [2, 2]:
            return stage
    raise NotImplementedError(
        f"REHRSeg distils into the encoder stage at in-plane stride 2, which this {type(network).__name__} has not "
        f"(strides {[list(s) for s in network.encoder.strides]})"
    )

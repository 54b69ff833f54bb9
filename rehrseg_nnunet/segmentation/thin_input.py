"""Quality mode: nnU-Net's network of thin slices, which takes thick ones, interpolates them and says what is on both.

Convolutions share their weights along z: what labels teach at the acquired slices holds between them too, the more so
the less the input shows where they are (`ImageInterpolation`). Every thin slice sees full context, at the price of r
times as many voxels as the network of thick slices with an HR head has.

Convention:
    (B, C, D, H, W) with the slice axis z first. Thin slices are at `rehrseg_nnunet.slices.geometry.hr_slice_positions`.
    What the labels of a thick slice say they say at its centre (`degrade_labels`), so its logits are those of the thin
    slices there. Beyond the first and last slice of the input, a patch's as well, the outer slices are repeated: by up
    to 1.5 slices in the interpolation, and to the next multiple of the network's stride at the far end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.nnunet.extended_network import extend, unwrap
from rehrseg_nnunet.segmentation.hr_head import as_unet, student_stage
from rehrseg_nnunet.segmentation.hr_network import HRNetwork, OutputMode, TrainingOutputs, gives_hr_logits
from rehrseg_nnunet.slices.geometry import InterpolationKind
from rehrseg_nnunet.slices.slice_upsampling import ImageInterpolation, centre_slices, repeat_last_slice, scan_slices

# nnU-Net's normalisations after which 0 is the background, as it was before
UNSHIFTED = ("NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization")


class ThinInput(HRNetwork):
    """Forward of a network of thin slices that takes thick ones.

    Attributes:
        encoder: the network's.
        decoder: the network's.
        factor: r.
        output_mode: see `set_output_mode`.
        interpolation: from thick to thin slices.
        interpolates_padding: whether padding is interpolated with the scan, see `pads_as_background`.
        student_stage: index of the encoder stage that is the student of the distillation.
        stride: of the network along z.
    """

    encoder: Any
    decoder: Any
    factor: int
    output_mode: OutputMode
    interpolation: ImageInterpolation
    interpolates_padding: bool
    student_stage: int
    stride: int

    def forward(
        self, image: torch.Tensor
    ) -> torch.Tensor | list[torch.Tensor] | tuple[torch.Tensor, torch.Tensor] | TrainingOutputs:
        """Segment (B, C_in, D, H, W): what the output mode says, see `set_output_mode`.

        With deep supervision mode "lr" gives a list of one. The coarser outputs are in mode "training", for targets of
        the slices that `padded_slices` counts.
        """
        slices = image.shape[2] * self.factor
        thin_image = (
            self.interpolation(image) if self.interpolates_padding else interpolate_scan(image, self.interpolation)
        )
        skips = self.encoder(repeat_last_slice(thin_image, padded_slices(slices, self.stride)))
        outputs = self.decoder(skips)
        finest, coarser = (outputs[0], outputs[1:]) if isinstance(outputs, list) else (outputs, None)
        thin = finest[:, :, :slices]
        thick = centre_slices(thin, self.factor)
        if self.output_mode == "lr":
            return thick if coarser is None else [thick]
        if self.output_mode == "hr":
            return thick, thin
        student = self._student(skips[self.student_stage], image.shape[2])
        return TrainingOutputs(
            lr=thick,
            hr=thin if coarser is None else [thin, *coarser],
            student=student,
            adapted=self.decoder.seg_layers[-1].adaptor(student),
        )

    def _student(self, skip: torch.Tensor, slices: int) -> torch.Tensor:
        """The features of D thick slices, means of those of thin ones, without what was added at the far end."""
        stride = padded_slices(slices * self.factor, self.stride) // skip.shape[2]
        inside = skip[:, :, : -(-slices * self.factor // stride)]
        lines = functional.adaptive_avg_pool2d(inside.flatten(3), (slices, inside[0, 0, 0].numel()))
        return lines.unflatten(3, inside.shape[3:])


def interpolate_scan(image: torch.Tensor, interpolation: ImageInterpolation) -> torch.Tensor:
    """Interpolate (B, C, D, H, W) to (B, C, r*D, H, W), padding after the interpolation and not before.

    Padding (`scan_slices`) would change the scan's outer slices, as it does in no scan that fills the patch. So it
    stays 0, and what is between is interpolated as if it were not there.
    """
    inside = scan_slices(image)
    places = torch.arange(image.shape[2], device=image.device)
    first, last = inside.int().argmax(dim=1), places[-1] - inside.flip(1).int().argmax(dim=1)
    nearest = places.expand_as(inside).clamp(first[:, None], last[:, None])
    repeated = image.take_along_dim(nearest[:, None, :, None, None], dim=2)
    thin = interpolation(repeated)
    return thin * inside.repeat_interleave(thin.shape[2] // image.shape[2], dim=1)[:, None, :, None, None]


def pads_as_background(configuration: Mapping[str, Any]) -> bool:
    """Whether the zeros that nnU-Net pads with are what a configuration's scans show beside the body, in all channels.

    So it is with masked (skull-stripped) images and with intensities that nobody has shifted. Then padding continues
    the scan, and slices of zeros may be the scan's own.
    """
    channels = zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True)
    return all(scheme in UNSHIFTED or masked for scheme, masked in channels)


def padded_slices(slices: int, stride: int) -> int:
    """How many thin slices a network of a stride along z is given for as many: the next multiple."""
    return -(-slices // stride) * stride


def thin_slices_seen(network: nn.Module, slices: int) -> int:
    """`padded_slices` of a network of thin slices, wrapped or not."""
    return padded_slices(slices, cast("ThinInput", unwrap(network)).stride)


def add_thin_input(
    network: nn.Module,
    *,
    factor: int,
    teacher_channels: int,
    interpolation: InterpolationKind,
    interpolates_padding: bool = False,
) -> nn.Module:
    """Make a U-Net that nnU-Net planned for thin slices take thick ones, and give it a distillation adaptor.

    The network's weights keep their names. The adaptor's have `.seg_layers.` in theirs, as an HR head's have.

    Args:
        network: see `rehrseg_nnunet.segmentation.hr_head.add_hr_head`; it is changed in place.
        factor: r.
        teacher_channels: Ct, channels of the teacher's features.
        interpolation: kind, see `ImageInterpolation`.
        interpolates_padding: whether padding is interpolated with the scan, see `pads_as_background`.

    Returns:
        The same object, in output mode "lr": thick slices in, logits of thick slices out.

    Raises:
        NotImplementedError: another architecture, a 2D network, or no encoder stage at in-plane stride 2.
        ValueError: factor is not an integer of at least 2, or the network is one of stage 2 already.
    """
    if int(factor) != factor or factor < 2:
        raise ValueError(f"factor must be an integer of at least 2, got {factor}")
    if gives_hr_logits(network):
        raise ValueError(f"network must be one of nnU-Net's own, got a {type(network).__name__}")
    unet = as_unet(network)
    layer: nn.Conv3d = unet.decoder.seg_layers[-1]
    stage = student_stage(unet)
    adaptor = nn.Conv3d(int(unet.encoder.output_channels[stage]), teacher_channels, 1)
    layer.adaptor = adaptor.to(device=layer.weight.device, dtype=layer.weight.dtype)
    if hasattr(network, "initialize"):
        layer.adaptor.apply(network.initialize)  # pyright: ignore[reportArgumentType] # nnU-Net's scheme
    return extend(
        network,
        ThinInput,
        factor=factor,
        output_mode="lr",
        interpolation=ImageInterpolation(factor, interpolation).to(layer.weight.device),
        interpolates_padding=interpolates_padding,
        student_stage=stage,
        stride=math.prod(stride[0] for stride in unet.encoder.strides),
    )

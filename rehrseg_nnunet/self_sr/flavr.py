"""FLAVR, the video frame-interpolation network (Kalluri et al., WACV 2023) that is stage 1's backbone.

Written from the published description, with the parameter names of the published checkpoints, so that their weights
load unchanged. Encoder and decoder are modules of their own: `rehrseg_nnunet.self_sr.network` puts another head on
them, and the encoder's first layer is the teacher of the structural distillation (paper section 3.5).

Convention:
    Tensors are (B, C, 4, H, W): four neighbouring slices (frames), then the plane. H and W are multiples of 8, the
    deepest in-plane stride. Nothing is ever strided along the slices.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

SLICES = 4
IN_PLANE_STRIDE = 8
NEGATIVE_SLOPE = 0.2


def merge_slices(features: torch.Tensor) -> torch.Tensor:
    """merge(.; 2; 1) of Eq. 2: (B, C, D, H, W) -> (B, D*C, H, W), all channels of the first slice first."""
    return features.transpose(1, 2).flatten(1, 2)


def split_slices(features: torch.Tensor, slices: int) -> torch.Tensor:
    """split(.; 1; 2) of Eq. 2, the inverse of `merge_slices`: (B, slices*C, H, W) -> (B, C, slices, H, W)."""
    return features.unflatten(1, (slices, -1)).transpose(1, 2)


class ChannelGate(nn.Module):
    """x * sigmoid(conv1x1x1(mean of x over slices and plane)): one gate per sample and channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn_layer = nn.Sequential(nn.Conv3d(channels, channels, kernel_size=1), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Gate x, shape (B, C, D, H, W)."""
        return x * self.attn_layer(x.mean(dim=(2, 3, 4), keepdim=True))


class ResidualBlock(nn.Module):
    """conv3, ReLU, conv3, gate, plus skip, ReLU; no normalisation layers."""

    def __init__(self, in_channels: int, channels: int, *, in_plane_stride: int = 1) -> None:
        super().__init__()
        stride = (1, in_plane_stride, in_plane_stride)
        self.conv1 = nn.Sequential(nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(nn.Conv3d(channels, channels, 3, padding=1))
        self.fg = ChannelGate(channels)
        same_shape = in_channels == channels and in_plane_stride == 1
        self.downsample = (
            None if same_shape else nn.Sequential(nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W) -> (B, channels, D, H/stride, W/stride)."""
        skip = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.fg(self.conv2(self.conv1(x))) + skip)


class FLAVREncoder(nn.Module):
    """An 18-layer 3D ResNet without normalisation layers, strided in the plane only.

    Args:
        in_channels: channels of the input.
        base_features: width of the stem and the first stage; the later stages have 2, 4 and 8 times as many.
    """

    def __init__(self, in_channels: int, *, base_features: int = 64) -> None:
        super().__init__()
        b = base_features
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, b, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)), nn.ReLU(inplace=True)
        )
        self.layer1 = _stage(b, b, in_plane_stride=1)
        self.layer2 = _stage(b, 2 * b, in_plane_stride=2)
        self.layer3 = _stage(2 * b, 4 * b, in_plane_stride=2)
        self.layer4 = _stage(4 * b, 8 * b, in_plane_stride=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features of stem and layers 1 to 4 for x (B, in_channels, 4, H, W).

        Returns:
            Five tensors with b, b, 2b, 4b, 8b channels at in-plane strides 2, 2, 4, 8, 8 (b = base_features).
        """
        features = [self.stem(x)]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(layer(features[-1]))
        return tuple(features)

    def layer1_features(self, x: torch.Tensor) -> torch.Tensor:
        """Stem and layer 1 only: (B, in_channels, 4, H, W) -> (B, base_features, 4, H/2, W/2)."""
        return self.layer1(self.stem(x))


def _stage(in_channels: int, channels: int, *, in_plane_stride: int) -> nn.Sequential:
    return nn.Sequential(
        ResidualBlock(in_channels, channels, in_plane_stride=in_plane_stride), ResidualBlock(channels, channels)
    )


class GatedConv(nn.Module):
    """Convolution 3x3x3 and gate."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(in_channels, channels, 3, padding=1), ChannelGate(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W) -> (B, channels, D, H, W)."""
        return self.conv(x)


def smooth_plane(x: torch.Tensor) -> torch.Tensor:
    """Smooth (B, C, D, H, W) by 1-2-1 along H and W, edges repeated: what alternates from pixel to pixel vanishes."""
    padded = functional.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate")
    return functional.avg_pool3d(functional.avg_pool3d(padded, (1, 2, 2), stride=1), (1, 2, 2), stride=1)


class GatedUpConv(nn.Module):
    """Transposed convolution that doubles the plane, and gate.

    A transposed convolution has other weights for even and odd pixels, so it draws a checkerboard of period 2.

    Args:
        in_channels: channels of the input.
        channels: channels of the output.
        smooth: remove what has period 2 (`smooth_plane`); the weights stay what they are.
    """

    def __init__(self, in_channels: int, channels: int, *, smooth: bool = False) -> None:
        super().__init__()
        self.smooth = smooth
        self.upconv = nn.Sequential(
            nn.ConvTranspose3d(in_channels, channels, (3, 4, 4), stride=(1, 2, 2), padding=1), ChannelGate(channels)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, D, H, W) -> (B, channels, D, 2H, 2W)."""
        convolution, gate = self.upconv
        x = convolution(x)
        return gate(smooth_plane(x) if self.smooth else x)


class FLAVRDecoder(nn.Module):
    """Decoder with a skip connection to every level of `FLAVREncoder`.

    Args:
        base_features: the encoder's.
        smooth: of the last upsampling, see `GatedUpConv`; the earlier ones draw coarser patterns, which layers after
            them can undo.
    """

    def __init__(self, *, base_features: int = 64, smooth: bool = False) -> None:
        super().__init__()
        b = base_features
        stages = (
            GatedConv(8 * b, 4 * b),
            GatedUpConv(8 * b, 2 * b),
            GatedUpConv(4 * b, b),
            GatedConv(2 * b, b),
            GatedUpConv(2 * b, b, smooth=smooth),
        )
        for index, stage in enumerate(stages):
            self.add_module(str(index), stage)  # the checkpoint numbers them

    def forward(self, features: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Decode what the encoder returned into (B, base_features, 4, H, W), H and W being the input's."""
        *skips, x = features
        for stage in self.children():
            x = functional.leaky_relu(stage(x), NEGATIVE_SLOPE)
            if skips:
                x = torch.cat((x, skips.pop()), dim=1)
        return x


class _SliceFusion(nn.Module):
    """1x1 convolution of the merged slices, without bias."""

    def __init__(self, base_features: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(SLICES * base_features, base_features, 1, bias=False))

    def forward(self, merged: torch.Tensor) -> torch.Tensor:
        return self.conv(merged)


class FLAVR(nn.Module):
    """The whole frame-interpolation network: the frames between the two middle ones of four.

    Args:
        in_channels: colour channels.
        out_frames: frames to predict; 3 for the published 4x checkpoint.
        base_features: width of the first stage, 64 as published.
    """

    def __init__(self, in_channels: int, out_frames: int, base_features: int = 64) -> None:
        super().__init__()
        self.out_frames = out_frames
        self.encoder = FLAVREncoder(in_channels, base_features=base_features)
        self.decoder = FLAVRDecoder(base_features=base_features)
        self.feature_fuse = _SliceFusion(base_features)
        self.outconv = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(base_features, in_channels * out_frames, 7))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Predict the frames in between.

        Args:
            frames: (B, in_channels, 4, H, W), H and W multiples of 8.

        Returns:
            (B, in_channels, out_frames, H, W).

        Raises:
            ValueError: another number of frames, or a plane that is not a multiple of 8.
        """
        depth, height, width = frames.shape[2:]
        if depth != SLICES or height % IN_PLANE_STRIDE or width % IN_PLANE_STRIDE:
            raise ValueError(
                f"frames must be {SLICES} frames of a size divisible by {IN_PLANE_STRIDE}, got {(depth, height, width)}"
            )
        mean = frames.mean(dim=(2, 3, 4), keepdim=True)
        features = self.decoder(self.encoder(frames - mean))
        fused = functional.leaky_relu(self.feature_fuse(merge_slices(features)), NEGATIVE_SLOPE)
        return split_slices(self.outconv(fused), self.out_frames) + mean

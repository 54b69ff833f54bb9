"""Blocks of convolution, instance normalisation and LeakyReLU, and what goes between them, in 2D and 3D.

Convention:
    Features are (B, C, *size). Resizing is linear and keeps the field of view: voxel centres are at half-integers
    (`align_corners` False), which is also where pooling and `down_kernel`'s strided convolutions put them. Convolutions
    pad with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.guided.shape import Size

NEGATIVE_SLOPE = 0.01
CONVOLUTIONS: dict[int, type[nn.Conv2d | nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
POOLS: dict[int, type[nn.MaxPool2d | nn.MaxPool3d]] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORMS: dict[int, type[nn.InstanceNorm2d | nn.InstanceNorm3d]] = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
LINEAR = {4: "bilinear", 5: "trilinear"}


def convolution(
    in_channels: int, out_channels: int, kernel: Size, *, strides: Size | None = None, bias: bool = False
) -> nn.Module:
    """A convolution that gives floor(n / stride) voxels for kernels of the stride's parity, one fewer for others.

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel: size by axis.
        strides: by axis; 1 if None.
        bias: whether it adds one.
    """
    strides = strides or (1,) * len(kernel)
    padding = tuple((size - stride) // 2 for size, stride in zip(kernel, strides, strict=True))
    return CONVOLUTIONS[len(kernel)](in_channels, out_channels, kernel, strides, padding, bias=bias)  # pyright: ignore[reportArgumentType] # tuples of the dimension's length


def pointwise(in_channels: int, out_channels: int, *, dimension: int, bias: bool = False) -> nn.Module:
    """A convolution of one voxel. Without bias it commutes with `resize`, so it goes where the voxels are fewer."""
    return convolution(in_channels, out_channels, (1,) * dimension, bias=bias)


def max_pool(strides: Size) -> nn.Module:
    """Maximum of each window of the strides' size: (B, C, *size) to (B, C, *floor(size / strides))."""
    return POOLS[len(strides)](strides)


def block_kernel(plan_kernel: Size, size: int) -> Size:
    """A kernel of a size, with 1 on the axes where the plan's own network has 1."""
    return tuple(1 if own == 1 else size for own in plan_kernel)


def down_kernel(plan_kernel: Size, strides: Size) -> Size:
    """Kernel of a strided convolution that keeps the field of view: 4 at stride 2; 3 or the plan's 1 at stride 1."""
    return tuple(stride + 2 if stride > 1 or own > 1 else 1 for own, stride in zip(plan_kernel, strides, strict=True))


class InstanceBlock(nn.Sequential):
    """Convolutions without bias, each followed by instance normalisation (not affine) and LeakyReLU.

    (B, in_channels, *size) to (B, out_channels, *size / strides).

    Args:
        in_channels: channels in.
        out_channels: channels out.
        kernel: size by axis.
        strides: of the first convolution, by axis; 1 if None.
        convs: number of convolutions.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Size, *, strides: Size | None = None, convs: int = 1
    ) -> None:
        layers: list[nn.Module] = []
        for channels, stride in ((in_channels, strides), *((out_channels, None),) * (convs - 1)):
            layers += [
                convolution(channels, out_channels, kernel, strides=stride),
                NORMS[len(kernel)](out_channels),
                nn.LeakyReLU(NEGATIVE_SLOPE, inplace=True),
            ]
        super().__init__(*layers)


def resize(features: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate (B, C, *any) linearly to (B, C, *size) over the same field of view."""
    if tuple(features.shape[2:]) == tuple(size):
        return features
    return functional.interpolate(features, size=tuple(size), mode=LINEAR[features.ndim], align_corners=False)


def initialise(module: nn.Module) -> None:
    """Draw the weights of all convolutions and linear layers by Kaiming's normal law (fan-in); biases become 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=NEGATIVE_SLOPE, mode="fan_in", nonlinearity="leaky_relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

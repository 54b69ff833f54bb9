"""SMORE's network: WDSR-like super-resolution of annotated 2D slices along one axis (paper section 4.4.1).

Convention:
    A slice is (B, C, L, W): L thick rows, W thin columns. Row k becomes the rows r*k .. r*k + r - 1, which is the
    half-pixel convention of `rehrseg_nnunet.slices.slice_profile`. Everything but this last rearrangement happens on
    thick rows, so the convolutions reach r times as far along the rows as across, and cost r times less than on thin
    rows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from rehrseg_nnunet.config.rehrseg import ResolvedConfig
from rehrseg_nnunet.nnunet.precision import without_autocast
from rehrseg_nnunet.restoration.intensities import normalise
from rehrseg_nnunet.slices.slice_profile import apply_along, interpolation_matrix
from rehrseg_nnunet.slices.slice_upsampling import interleave_slices

ROWS = 2
EXPANSION = 4
# Logit between "no voxel of this label" and "all": half a label is at 0.
LABEL_GAIN = 6.0


class WDSROutput(NamedTuple):
    """What `WDSR` predicts for slices with r times as many rows.

    Attributes:
        image: (B, image_channels, r*L, W), in the input's intensities.
        labels: (B, label_channels, r*L, W), logits.
    """

    image: torch.Tensor
    labels: torch.Tensor


class WideBlock(nn.Module):
    """Residual block that is wide where the activation is: convolution, ReLU, convolution.

    The last convolution starts at zero, so that every block, and a network of any depth, starts as the identity.

    Args:
        features: channels in and out.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(features, EXPANSION * features, 3, padding=1)
        self.narrow = nn.Conv2d(EXPANSION * features, features, 3, padding=1)
        nn.init.kaiming_normal_(self.widen.weight, nonlinearity="relu")
        nn.init.zeros_(self.widen.bias)  # pyright: ignore[reportArgumentType] # it has a bias
        for parameter in self.narrow.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, features, L, W) to the same."""
        return features + self.narrow(self.widen(features).relu())


class WDSR(nn.Module):
    """Super-resolution of annotated slices along their rows.

    Untrained it is plain interpolation: cubic B-spline for the image, linear for the label channels, whose logits
    change sign at one half. What is learnt is the residual to both, the image's in units of its range (max - min of
    every slice and channel): an image a*I + b with a > 0 gives a*image + b, and the same labels.

    Args:
        image_channels: image channels, which come first.
        label_channels: label heads (one-hot labels or regions), which follow.
        factor: r.
        blocks: number of residual blocks.
        features: channels between the blocks.

    Raises:
        ValueError: an impossible size.
    """

    def __init__(
        self, image_channels: int, label_channels: int, factor: int, *, blocks: int = 16, features: int = 32
    ) -> None:
        super().__init__()
        sizes = {"image_channels": image_channels, "label_channels": label_channels}
        for name, value in (sizes | {"blocks": blocks, "features": features}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if factor < 2:
            raise ValueError(f"factor must be at least 2, got {factor}")
        self.image_channels, self.label_channels, self.factor = image_channels, label_channels, factor
        self.stem = nn.Conv2d(image_channels + label_channels, features, 3, padding=1)
        self.blocks = nn.Sequential(*(WideBlock(features) for _ in range(blocks)))
        self.residual = nn.Conv2d(features, factor * (image_channels + label_channels), 3, padding=1)
        self.label_gain = nn.Parameter(torch.tensor(LABEL_GAIN))
        for parameter in self.residual.parameters():
            nn.init.zeros_(parameter)

    def forward(self, slices: torch.Tensor) -> WDSROutput:
        """Predict r times as many rows.

        Args:
            slices: (B, image_channels + label_channels, L, W), floating point.

        Raises:
            ValueError: slices of another shape.
        """
        channels = self.image_channels + self.label_channels
        if slices.ndim != 4 or slices.shape[1] != channels or 0 in slices.shape[2:]:
            raise ValueError(f"slices must be (B, {channels}, L, W), got {tuple(slices.shape)}")
        sizes = (self.image_channels, self.label_channels)
        image, labels = slices.split(sizes, dim=1)
        unit, _, value_range = normalise(image)
        features = self.blocks(self.stem(torch.cat([unit, labels], dim=1)))
        thin = interleave_slices(self.residual(features), self.factor).to(slices.dtype)
        residual, logits = thin.split(sizes, dim=1)
        rows = len(range(slices.shape[ROWS]))  # a constant for torch.compile, also where it takes sizes for variable
        cubic, linear = _interpolations(rows, self.factor, slices.dtype, slices.device)
        return WDSROutput(
            image=_interpolate(image, cubic) + value_range * residual,
            labels=self.label_gain * (_interpolate(labels, linear) - 0.5) + logits,
        )


def _interpolate(slices: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Interpolate the rows in the slices' own precision: in mixed precision the product would be float16."""
    with without_autocast(slices.device.type):
        return apply_along(slices, matrix, ROWS)


# Called while a graph is traced, which scipy would break. torch takes one such constant a graph: both in one tensor.
@torch.compiler.assume_constant_result
def _interpolations(rows: int, factor: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return _interpolations_on(rows, factor, dtype, device)


@torch.compiler.disable()  # for graphs of many lengths, which have no constant
@lru_cache(maxsize=32)
@torch.inference_mode(False)  # for training too, whoever asks first
def _interpolations_on(rows: int, factor: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Matrices (2, r*rows, rows), cubic and linear, kept on the device: a copy would make every step wait for it."""
    both = torch.stack([interpolation_matrix(rows, factor, order) for order in (3, 1)])
    return both.to(device=device, dtype=dtype)


def build_wdsr(config: ResolvedConfig, image_channels: int, label_channels: int) -> WDSR:
    """The network that a `rehrseg` block describes.

    Args:
        config: what `rehrseg_nnunet.config.rehrseg.load_config` returned.
        image_channels: number of image channels.
        label_channels: `label_manager.num_segmentation_heads`.
    """
    return WDSR(
        image_channels, label_channels, config.factor, blocks=config.smore.blocks, features=config.smore.features
    )

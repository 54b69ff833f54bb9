"""Ways from D slices to r*D inside a network, for (B, C, D, H, W) maps with the slice axis z first.

Convention:
    Both grids cover the same field of view: HR slices are at `rehrseg_nnunet.slices.geometry.hr_slice_positions`.
    Beyond the first and last LR centre the edge slices are repeated.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.slices.geometry import InterpolationKind, hr_slice_positions
from rehrseg_nnunet.slices.slice_profile import interpolation_matrix

REACH = 2  # LR slices on either side that LogitInterpolation and ImageInterpolation look at


def upsample_slices(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Interpolate (B, C, D, H, W) linearly to (B, C, r*D, H, W)."""
    # H and W as one axis: the 2D kernel exists on every device (trilinear does not on MPS)
    lines = functional.interpolate(
        features.flatten(3), scale_factor=(float(factor), 1.0), mode="bilinear", align_corners=False
    )
    return lines.unflatten(3, features.shape[3:])


def interleave_slices(features: torch.Tensor, factor: int) -> torch.Tensor:
    """Sub-pixel arrangement along z: channels r*c .. r*c + r - 1 of (B, r*C, D, ...) are the HR slices of channel c.

    Returns:
        (B, C, r*D, ...): slice r*k + j of channel c is slice k of channel r*c + j.

    Example:
        >>> phases = torch.tensor([[[10, 11], [20, 21]]])  # (B, r, D): first and second half of the slices 0 and 1
        >>> interleave_slices(phases, factor=2)
        tensor([[[10, 20, 11, 21]]])
    """
    return features.unflatten(1, (-1, factor)).transpose(2, 3).flatten(2, 3)


class LogitInterpolation(nn.Module):
    """Interpolate logits along z by 2 * REACH + 1 taps per HR slice, which are trained and the same for all labels.

    They start as the natural cubic spline through these slices, and those of an HR slice always sum to 1, so constants
    are kept. Near a boundary logits are much like a signed distance: where they cross zero moves from slice to slice
    as the boundary does, as in shape-based interpolation, but by fractions of a pixel.

    Args:
        factor: r.
    """

    spline: torch.Tensor

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor
        spline = spline_taps(factor)
        self.register_buffer("spline", spline.float(), persistent=False)
        self.change = nn.Parameter(torch.zeros(spline.shape))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K, D, H, W) to (B, K, r*D, H, W)."""
        return _by_taps(logits, self.spline + self.change - self.change.mean(dim=1, keepdim=True))


class ImageInterpolation(nn.Module):
    """Interpolate images along z to thin slices, each a weighted mean of the thick ones around it. Constants are kept.

    *Convention*: ramps are kept where there are `REACH` slices on either side.

    Args:
        factor: r.
        kind: `spline`, a cubic spline through the slices: what a slice shows is there at its centre, so sharper than
            between centres, in a pattern of one slice's period. `smooth`, the cubic B-spline without prefilter: weights
            whose spectrum has zeros of fourth order at the slices' sampling frequency and its multiples. It hardly
            shows where the slices were (of the energy of the response to a point 1.7 % changes with the point's place
            in its slice, against 4.7 %), and the image is smoother for it along z, at the slices' centres too.
    """

    taps: torch.Tensor

    def __init__(self, factor: int, kind: InterpolationKind) -> None:
        super().__init__()
        taps = spline_taps(factor) if kind == "spline" else smooth_taps(factor)
        self.register_buffer("taps", taps.float(), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) to (B, C, r*D, H, W)."""
        return _by_taps(image, self.taps)


def spline_taps(factor: int) -> torch.Tensor:
    """Weights (r, 2 * REACH + 1), float64, of the slices k - REACH .. k + REACH in the r thin slices of slice k.

    Of the natural cubic spline through these slices.
    """
    return interpolation_matrix(2 * REACH + 1, factor, 3)[REACH * factor : (REACH + 1) * factor]


def smooth_taps(factor: int) -> torch.Tensor:
    """Likewise of the cubic B-spline whose coefficients are the slices."""
    places = hr_slice_positions(1, factor)[:, None] - np.arange(-REACH, REACH + 1)
    cubic = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    return torch.from_numpy(np.nan_to_num(cubic(places)))


def centre_slices(maps: torch.Tensor, factor: int) -> torch.Tensor:
    """What thin slices (B, C, r*D, H, W) say at the thick slices' centres: (B, C, D, H, W).

    For even r the centre is between two thin slices, whose mean it is.
    """
    groups = maps.unflatten(2, (-1, factor))
    if factor % 2:
        return groups[:, :, :, factor // 2]
    return groups[:, :, :, factor // 2 - 1 : factor // 2 + 1].mean(dim=3)


def scan_slices(image: torch.Tensor) -> torch.Tensor:
    """Which slices of (B, C, D, H, W) are the scan's: (B, D), false for slices of zeros at either end.

    With slices of zeros nnU-Net pads a scan that has fewer slices than a patch. All of an empty image are false.
    """
    shown = (image != 0).any(dim=-1).any(dim=-1).any(dim=1)
    return (shown.cumsum(dim=1) > 0) & (shown.flip(1).cumsum(dim=1) > 0).flip(1)


def repeat_last_slice(maps: torch.Tensor, slices: int) -> torch.Tensor:
    """Maps (..., D, H, W) with their last slice repeated until there are `slices`."""
    missing = slices - maps.shape[-3]
    if missing == 0:
        return maps
    last = maps[..., -1:, :, :]
    return torch.cat([maps, last.expand(*last.shape[:-3], missing, *last.shape[-2:])], dim=-3)


def _by_taps(maps: torch.Tensor, taps: torch.Tensor) -> torch.Tensor:
    """Every thin slice of maps (B, C, D, H, W) as a weighted mean, by taps (r, 2 * REACH + 1); outer slices repeat."""
    # one convolution over z for all channels, with H and W as one axis: 2D kernels exist on every device
    lines = maps.flatten(0, 1).flatten(2).unsqueeze(1)
    padded = functional.pad(lines, (0, 0, REACH, REACH), mode="replicate")
    phases = functional.conv2d(padded, taps[:, None, :, None].to(padded.dtype))
    return interleave_slices(phases, taps.shape[0]).view(*maps.shape[:2], -1, *maps.shape[3:])

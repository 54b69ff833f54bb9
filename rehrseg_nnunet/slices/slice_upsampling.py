"""Ways from D slices to r*D inside a network, for (B, C, D, H, W) maps with the slice axis z first.

Convention:
    Both grids cover the same field of view: HR slices are at `rehrseg_nnunet.slices.geometry.hr_slice_positions`.
    Beyond the first and last LR centre the edge slices are repeated.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.slices.slice_profile import interpolation_matrix

REACH = 2  # LR slices on either side that LogitInterpolation looks at


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
        taps = 2 * REACH + 1
        spline = interpolation_matrix(taps, factor, 3)[REACH * factor : (REACH + 1) * factor]
        self.register_buffer("spline", spline.float(), persistent=False)
        self.change = nn.Parameter(torch.zeros(factor, taps))

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, K, D, H, W) to (B, K, r*D, H, W)."""
        taps = self.spline + self.change - self.change.mean(dim=1, keepdim=True)
        # one convolution over z for all labels, with H and W as one axis: 2D kernels exist on every device
        lines = logits.flatten(0, 1).flatten(2).unsqueeze(1)
        padded = functional.pad(lines, (0, 0, REACH, REACH), mode="replicate")
        phases = functional.conv2d(padded, taps[:, None, :, None].to(padded.dtype))
        return interleave_slices(phases, self.factor).view(*logits.shape[:2], -1, *logits.shape[3:])

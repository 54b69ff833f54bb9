"""Image losses of networks that restore: voxels outside the volume do not count."""

from __future__ import annotations

import torch
from torch import Tensor

from rehrseg_nnunet.nnunet.precision import at_least_float32


def masked_l1(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error over the voxels that count.

    Args:
        prediction: (B, C, r, H, W).
        target: (B, C, r, H, W); what it holds where the mask is 0 does not matter.
        mask: (B, 1, r, H, W), nonzero = the voxel counts (in all channels), 0 = it does not.

    Returns:
        Scalar in at least float32; 0, still in the graph, when no voxel counts. Exactly zero gradient where the mask
        is 0.

    Raises:
        ValueError: if the shapes do not agree.
    """
    check_maps(prediction, target, mask=mask)
    valid = mask.bool()
    return voxel_error(prediction, target, valid).sum() / valid.sum().clamp_min(1)


def voxel_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Absolute error, mean over the channels, 0 where not valid: (B, 1, r, H, W)."""
    # where, not a product: neither a NaN outside the volume nor its gradient may come through.
    difference = torch.where(valid, at_least_float32(prediction) - at_least_float32(target), 0)
    return difference.abs().mean(dim=1, keepdim=True)


def check_maps(prediction: Tensor, target: Tensor, **maps: Tensor) -> None:
    """Refuse a target or one-channel maps that do not have the prediction's size.

    Raises:
        ValueError: names what differs.
    """
    if target.shape != prediction.shape:
        raise ValueError(
            f"target must have the prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    expected = (prediction.shape[0], 1, *prediction.shape[2:])
    for name, tensor in maps.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

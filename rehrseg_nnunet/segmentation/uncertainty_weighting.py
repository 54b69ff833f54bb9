"""The LR loss weighted by the uncertainty of the pseudo-HR data (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rehrseg_nnunet.nnunet.precision import at_least_float32


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor, *, ignore_label: int | None = None
) -> Tensor:
    """Voxel-weighted cross-entropy, sum(w * CE * valid) / sum(valid) (Eq. 7 for plain labels).

    The sum is divided by the number of voxels, not by the sum of their weights: an uncertain patch counts less.

    Args:
        logits: (B, K, D, H, W).
        target: (B, 1, D, H, W), labels 0 to K - 1 or ``ignore_label``, of any dtype.
        weight: (B, 1, D, H, W), >= 0.
        ignore_label: value of the voxels that do not count; None: all count.

    Returns:
        Scalar in at least float32; 0, still in the graph, when all voxels are ignored. Exactly zero gradient on
        ignored voxels.

    Raises:
        ValueError: if the shapes do not agree.
    """
    _check_shape("target", target, logits, channels=1)
    _check_shape("weight", weight, logits, channels=1)
    target = target[:, 0].long()
    # -100 is PyTorch's default and no label can have it.
    ignored = -100 if ignore_label is None else ignore_label
    entropy = functional.cross_entropy(at_least_float32(logits), target, reduction="none", ignore_index=ignored)
    return (entropy * weight[:, 0]).sum() / (target != ignored).sum().clamp_min(1)


def weighted_bce(logits: Tensor, target: Tensor, weight: Tensor, *, has_ignore: bool) -> Tensor:
    """Voxel-weighted binary cross-entropy, mean over the regions (Eq. 7 for regions).

    Args:
        logits: (B, K, D, H, W), one channel per region.
        target: (B, K, D, H, W), 1 inside the region, bool or any number type; with ``has_ignore`` one more last
            channel, 1 = the voxel does not count.
        weight: (B, 1, D, H, W), >= 0.
        has_ignore: whether ``target`` ends with the ignore channel.

    Returns:
        Scalar sum(w * BCE * valid) / sum(valid) in at least float32; 0, still in the graph, when all voxels are
        ignored. Exactly zero gradient on ignored voxels.

    Raises:
        ValueError: if the shapes do not agree.
    """
    _check_shape("target", target, logits, channels=logits.shape[1] + has_ignore)
    _check_shape("weight", weight, logits, channels=1)
    regions, valid = regions_and_valid(target, has_ignore=has_ignore)
    logits = at_least_float32(logits)
    entropy = functional.binary_cross_entropy_with_logits(logits, regions.to(logits.dtype), reduction="none")
    weighted = entropy.mean(dim=1, keepdim=True) * weight
    if valid is None:
        return weighted.mean()
    return torch.where(valid, weighted, 0).sum() / valid.sum().clamp_min(1)


def uncertainty_to_weight(uncertainty: Tensor, *, strength: float = 0.99) -> Tensor:
    """Turn normalised uncertainty into voxel weights, w = 1 - strength * U (Eq. 7).

    Args:
        uncertainty: U in [0, 1], any shape; 0 in padding, which so has weight 1.
        strength: 1 - the weight of the most uncertain voxel, in [0, 1].

    Returns:
        Weights in [1 - strength, 1], at least float32.

    Raises:
        ValueError: if ``strength`` is out of range.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    return 1 - strength * at_least_float32(uncertainty)


def downsample_uncertainty(weight: Tensor, size: Sequence[int]) -> Tensor:
    """Pool uncertainty, or the weights made of it, to the grid of a deep-supervision output.

    *Convention*: area pooling: output voxel j of n is the mean of the voxels that overlap [j/n, (j + 1)/n] of the
    field of view.

    Args:
        weight: (B, 1, D, H, W).
        size: the wanted (D', H', W').

    Returns:
        (B, 1, D', H', W') in at least float32.
    """
    weight = at_least_float32(weight)
    if tuple(weight.shape[2:]) == tuple(size):
        return weight
    # In plane first, then along z: older PyTorch versions have no 3D pooling on MPS.
    depth, height, width = size
    planes = functional.adaptive_avg_pool2d(weight.flatten(1, 2), (height, width)).unflatten(1, weight.shape[1:3])
    lines = functional.adaptive_avg_pool2d(planes.flatten(3), (depth, height * width))
    return lines.unflatten(3, (height, width))


class UncertaintyWeightedLoss(nn.Module):
    """Uncertainty-weighted (binary) cross-entropy with deep supervision (Eq. 7).

    Args:
        weight_factors: factor of each output's loss, full resolution first, as of nnU-Net's DeepSupervisionWrapper;
            outputs with factor 0 are skipped. None: 1 for all.
        regions: targets are regions (binary cross-entropy) instead of plain labels.
        ignore_label: plain labels: value of voxels that do not count. Regions: if not None, targets end with an
            ignore channel.
        dice: a Dice loss of nnU-Net that is added unweighted by the uncertainty, called with
            (logits, target, loss_mask=...), e.g. ``build_label_loss(...).dc``; None: cross-entropy alone, as in the
            paper.
        dice_weight: factor of ``dice``.

    Raises:
        ValueError: if no factor differs from 0, or one is not finite.
    """

    def __init__(
        self,
        weight_factors: Sequence[float] | None = None,
        *,
        regions: bool = False,
        ignore_label: int | None = None,
        dice: nn.Module | None = None,
        dice_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight_factors = None if weight_factors is None else tuple(float(factor) for factor in weight_factors)
        if self.weight_factors is not None and not any(self.weight_factors):
            raise ValueError(f"weight_factors must hold a factor other than 0, got {self.weight_factors}")
        if self.weight_factors is not None and not all(math.isfinite(factor) for factor in self.weight_factors):
            raise ValueError(
                f"weight_factors must be finite, got {self.weight_factors}: nnU-Net's deep supervision, whose coarsest "
                f"output counts nothing, needs a network of at least 3 stages"
            )
        self.regions = regions
        self.ignore_label = ignore_label
        self.dice = dice
        self.dice_weight = dice_weight

    def forward(self, outputs: Sequence[Tensor] | Tensor, targets: Sequence[Tensor] | Tensor, weight: Tensor) -> Tensor:
        """Return the sum of the outputs' losses, each times its factor.

        Args:
            outputs: logits (B, K, D, H, W), or one per deep-supervision scale, full resolution first.
            targets: one target for each output, at its size.
            weight: (B, 1, D, H, W) at full LR resolution, w of `uncertainty_to_weight`.

        Returns:
            Scalar.

        Raises:
            ValueError: if the numbers of outputs, targets and factors differ.
        """
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        targets = [targets] if isinstance(targets, Tensor) else list(targets)
        factors = (1.0,) * len(outputs) if self.weight_factors is None else self.weight_factors
        if len(targets) != len(outputs):
            raise ValueError(f"targets must be as many as the {len(outputs)} outputs, got {len(targets)}")
        if len(factors) != len(outputs):
            raise ValueError(f"outputs must be as many as the {len(factors)} weight factors, got {len(outputs)}")
        losses = [
            factor * self._scale_loss(logits, target, downsample_uncertainty(weight, logits.shape[2:]))
            for factor, logits, target in zip(factors, outputs, targets, strict=True)
            if factor != 0
        ]
        return torch.stack(losses).sum()

    def _scale_loss(self, logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
        if self.regions:
            loss = weighted_bce(logits, target, weight, has_ignore=self.ignore_label is not None)
        else:
            loss = weighted_cross_entropy(logits, target, weight, ignore_label=self.ignore_label)
        if self.dice is None:
            return loss
        labels, valid = self._labels_and_valid(target)
        return loss + self.dice_weight * self.dice(at_least_float32(logits), labels, loss_mask=valid)

    def _labels_and_valid(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.regions:
            return regions_and_valid(target, has_ignore=self.ignore_label is not None)
        if self.ignore_label is None:
            return target, None
        valid = target != self.ignore_label
        # The Dice one-hot encodes the labels, and the ignore label has no channel.
        return torch.where(valid, target, 0), valid


def regions_and_valid(target: Tensor, *, has_ignore: bool) -> tuple[Tensor, Tensor | None]:
    """Split a region target into the regions and where they count, (B, 1, ...) bool or None for everywhere."""
    if not has_ignore:
        return target, None
    return target[:, :-1], ~target[:, -1:].bool()


def _check_shape(name: str, tensor: Tensor, logits: Tensor, *, channels: int) -> None:
    expected = (logits.shape[0], channels, *logits.shape[2:])
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

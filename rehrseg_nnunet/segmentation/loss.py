"""Losses of stage 2: uncertainty-weighted LR segmentation, HR segmentation and distillation (Eq. 7 and 11)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rehrseg_nnunet.config.rehrseg import Distillation
from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero
from rehrseg_nnunet.segmentation.distillation import (
    affinity_loss,
    ifvd_loss,
    mimic_loss,
    nearest_to,
    resize_to,
    spatial_loss,
)
from rehrseg_nnunet.segmentation.hr_head import TrainingOutputs

Teacher = Callable[[Tensor, Tensor], Tensor]
# the setting, and the terms of the loss that it means
DISTILLATION_TERMS: dict[Distillation, tuple[str, ...]] = {
    "correlation+spatial": ("affinity", "spatial"),
    "correlation": ("affinity",),
    "spatial": ("spatial",),
    "mimic": ("mimic",),
    "ifvd": ("ifvd",),
}


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
    regions, valid = _regions_and_valid(target, has_ignore=has_ignore)
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
            return _regions_and_valid(target, has_ignore=self.ignore_label is not None)
        if self.ignore_label is None:
            return target, None
        valid = target != self.ignore_label
        # The Dice one-hot encodes the labels, and the ignore label has no channel.
        return torch.where(valid, target, 0), valid


class REHRSegLoss(nn.Module):
    """The loss of stage 2 (Eq. 11): L_u(LR) + L_HR + lambda * (L_corr + L_spatial), or another distillation.

    Attributes:
        components: the terms of the last training batch, detached scalars ``lr``, ``hr`` and, with a teacher, those of
            the distillation (before lambda): ``affinity`` and ``spatial``, or ``mimic``, or ``ifvd``. Empty before the
            first.

    Args:
        lr_loss: L_u of Eq. 7.
        hr_loss: nnU-Net's loss of (HR logits, HR target).
        validation_loss: nnU-Net's stock loss of (outputs, targets), for everything that is not `TrainingOutputs`.
        teacher: maps the LR image (B, Ci, D, H, W) and its full-resolution LR target to features (B, Ct, ...) of any
            spatial size; called without gradient. None: no distillation.
        distillation: what is distilled: L_corr, L_spatial, both, or another method's loss.
        distillation_weight: lambda. 0: no distillation, the teacher is not called.
        pool: see `affinity_loss`.
        uncertainty_strength: see `uncertainty_to_weight`; 0 weights all voxels alike.

    Raises:
        ValueError: if ``distillation`` is unknown.
    """

    def __init__(
        self,
        lr_loss: UncertaintyWeightedLoss,
        hr_loss: nn.Module,
        validation_loss: nn.Module,
        *,
        teacher: Teacher | None,
        distillation: Distillation = "correlation+spatial",
        distillation_weight: float = 1.0,
        pool: Sequence[int] = (1, 2, 2),
        uncertainty_strength: float = 0.99,
    ) -> None:
        super().__init__()
        if distillation not in DISTILLATION_TERMS:
            raise ValueError(f"distillation must be one of {tuple(DISTILLATION_TERMS)}, got {distillation!r}")
        self.uncertainty_strength = uncertainty_strength
        self.lr_loss = lr_loss
        self.hr_loss = hr_loss
        self.validation_loss = validation_loss
        self.teacher = teacher
        self.distillation = distillation
        self.distillation_weight = distillation_weight
        self.pool = tuple(pool)
        self.components: dict[str, Tensor] = {}

    def forward(
        self, outputs: TrainingOutputs | Sequence[Tensor] | Tensor, targets: Sequence[Tensor] | Tensor
    ) -> Tensor:
        """Return the loss of a batch, Eq. 11 for training outputs and the stock loss for others.

        Args:
            outputs: `TrainingOutputs` of the network with its HR head on, or the stock network's output.
            targets: for training outputs the LR target of each LR output, full resolution first, then the HR target
                (B, 1 or regions, r * D, H, W) and the uncertainty (B, 1, D, H, W) in [0, 1]; else the stock target.

        Returns:
            Scalar.

        Raises:
            ValueError: if the number of targets does not fit the outputs.
        """
        if not isinstance(outputs, TrainingOutputs):
            return self.validation_loss(outputs, targets)
        lr_outputs = [outputs.lr] if isinstance(outputs.lr, Tensor) else outputs.lr
        if len(targets) != len(lr_outputs) + 2:
            raise ValueError(
                f"targets must be {len(lr_outputs)} LR targets, the HR target and the uncertainty, "
                f"got {len(targets)} entries"
            )
        *lr_targets, hr_target, uncertainty = targets
        weight = uncertainty_to_weight(uncertainty, strength=self.uncertainty_strength)
        terms = {
            "lr": self.lr_loss(lr_outputs, lr_targets, weight),
            "hr": self.hr_loss(at_least_float32(outputs.hr), hr_target),
        }
        loss = terms["lr"] + terms["hr"] + connected_zero(outputs.adapted)
        if self.teacher is not None and self.distillation_weight != 0:
            distilled = self._distillation(outputs, lr_targets[0], heads=lr_outputs[0].shape[1])
            loss = loss + self.distillation_weight * sum(distilled.values())
            terms.update(distilled)
        self.components = {name: term.detach() for name, term in terms.items()}
        return loss

    def _distillation(self, outputs: TrainingOutputs, lr_target: Tensor, *, heads: int) -> dict[str, Tensor]:
        """The terms that `distillation` means, by name."""
        size = outputs.student.shape[2:]
        with torch.no_grad():
            features = resize_to(self.teacher(outputs.image, lr_target), size)
        terms = {}
        for name in DISTILLATION_TERMS[self.distillation]:
            if name == "affinity":
                terms[name] = affinity_loss(outputs.student, features, self.pool)
            elif name == "spatial":
                terms[name] = spatial_loss(outputs.adapted, features)
            elif name == "mimic":
                terms[name] = mimic_loss(outputs.adapted, features)
            else:
                terms[name] = ifvd_loss(outputs.student, features, self._classes(nearest_to(lr_target, size), heads))
        return terms

    def _classes(self, target: Tensor, heads: int) -> Tensor:
        has_ignore = self.lr_loss.ignore_label is not None
        return class_maps(target, heads, regions=self.lr_loss.regions, has_ignore=has_ignore)


def class_maps(target: Tensor, heads: int, *, regions: bool, has_ignore: bool) -> Tensor:
    """Where each class is, background included, and no ignored voxel.

    Args:
        target: nnU-Net's: (B, 1, ...) labels of any dtype, ignored voxels with a value that is no head; or
            (B, regions (+ 1), ...), 1 inside the region, with ``has_ignore`` the ignored voxels last.
        heads: K, segmentation heads.
        regions: the target holds regions; they may overlap, and what is in none of them is background.
        has_ignore: a region target ends with the ignore channel.

    Returns:
        Bool (B, K, ...) for labels, (B, K + 1, ...) for regions, background first.
    """
    if not regions:
        return target == torch.arange(heads, device=target.device).reshape(1, heads, *[1] * (target.ndim - 2))
    inside, valid = _regions_and_valid(target.bool(), has_ignore=has_ignore)
    maps = torch.cat([~inside.any(dim=1, keepdim=True), inside], dim=1)
    return maps if valid is None else maps & valid


def _regions_and_valid(target: Tensor, *, has_ignore: bool) -> tuple[Tensor, Tensor | None]:
    """Split a region target into the regions and where they count, (B, 1, ...) bool or None for everywhere."""
    if not has_ignore:
        return target, None
    return target[:, :-1], ~target[:, -1:].bool()


def _check_shape(name: str, tensor: Tensor, logits: Tensor, *, channels: int) -> None:
    expected = (logits.shape[0], channels, *logits.shape[2:])
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

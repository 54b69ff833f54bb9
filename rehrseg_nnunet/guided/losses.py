"""Losses of teacher, keeper and discriminator (arXiv 2402.08409), in at least float32.

    L_T   = image_weight * |y^ - y|_1 + feature_weight * L_FR,   L_FR = sum_l MSE(c_l, r_l)
    L_K   = distillation_weight * L_dis + matching_weight * L_dm + image_weight * |y~ - y|_1
            + adversarial_weight * L_adv
    L_dis = sum_l MSE(g_l, c_l)
    L_dm  = sum_l MSE(mu(g_l), mu(c_l)) + MSE(sd(g_l), sd(c_l)),   mu and sd over the channels of every voxel, biased
    L_adv = MSE(C(y~), 1)
    L_C   = adversarial_weight * (MSE(C(y), 1) + MSE(C(y~), 0))

All means are over the batch too, so that weights mean the same for every batch size and number of GPUs. The released
code sums L_dm over its batch, which is of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from rehrseg_nnunet.guided.keeper import KeeperOutput
from rehrseg_nnunet.guided.teacher import TeacherOutput
from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero

# Variance over channels below which no gradient comes through its square root, which has none at 0.
SMALLEST_VARIANCE = 1e-12


def image_error(image: Tensor, target: Tensor, image_range: Tensor) -> Tensor:
    """|y^ - y|_1: mean absolute error of (B, P, *size) in units of the intensity range (P,) of each channel."""
    unit = image_range.to(image.device).view(-1, *(1,) * (image.ndim - 2))
    return ((at_least_float32(image) - at_least_float32(target)).abs() / unit).mean()


def feature_error(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """L_dis and L_FR: the levels' mean squared errors, summed."""
    return torch.stack([_squared_error(*pair) for pair in zip(features, targets, strict=True)]).sum()


def matching_error(features: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """L_dm: squared errors of the mean and the standard deviation over the channels of every voxel, summed over levels.

    It is blind to the order of the channels.

    Args:
        features: (B, C, *size) of each level.
        targets: the same.
    """
    errors = []
    for own, other in zip(features, targets, strict=True):
        (mean, std), (target_mean, target_std) = _over_channels(own), _over_channels(other)
        errors.append(_squared_error(mean, target_mean) + _squared_error(std, target_std))
    return torch.stack(errors).sum()


def score_error(scores: Tensor, truth: float) -> Tensor:
    """MSE of the discriminator's scores to 1 (true) or 0 (synthesised): least squares."""
    return (at_least_float32(scores) - truth).square().mean()


def discriminator_loss(true_scores: Tensor, synthesised_scores: Tensor, *, adversarial_weight: float = 0.5) -> Tensor:
    """L_C. The synthesised patches that were scored must be detached from the keeper."""
    return adversarial_weight * (score_error(true_scores, 1.0) + score_error(synthesised_scores, 0.0))


class TeacherLoss(nn.Module):
    """L_T.

    Args:
        image_range: (P,) width of the robust intensity range of each privileged channel; lambda of the paper belongs to
            images in [0, 1].
        image_weight: lambda_img.
        feature_weight: of L_FR.
    """

    def __init__(
        self, image_range: Sequence[float], *, image_weight: float = 100.0, feature_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.image_range: Tensor
        self.register_buffer("image_range", _range(image_range), persistent=False)
        self.image_weight, self.feature_weight = image_weight, feature_weight

    def forward(self, output: TeacherOutput, privileged: Tensor) -> Tensor:
        """Scalar loss of a batch (B, P, *size)."""
        return torch.stack(list(self.parts(output, privileged).values())).sum()

    def parts(self, output: TeacherOutput, privileged: Tensor) -> dict[str, Tensor]:
        """The weighted parts by name, `image` and `features`; their sum is the loss."""
        parts = {"image": self.image_weight * image_error(output.image, privileged, self.image_range)}
        if output.rebuilt:
            parts["features"] = self.feature_weight * feature_error(output.features[:-1], output.rebuilt)
        return parts


class KeeperLoss(nn.Module):
    """L_K. A part whose weight is 0 is not computed.

    Args:
        image_range: see `TeacherLoss`.
        distillation_weight: of L_dis.
        matching_weight: of L_dm.
        image_weight: lambda_vox.
        adversarial_weight: lambda_adv.
    """

    def __init__(
        self,
        image_range: Sequence[float],
        *,
        distillation_weight: float = 1.0,
        matching_weight: float = 1.0,
        image_weight: float = 100.0,
        adversarial_weight: float = 0.5,
    ) -> None:
        super().__init__()
        self.image_range: Tensor
        self.register_buffer("image_range", _range(image_range), persistent=False)
        self.distillation_weight, self.matching_weight = distillation_weight, matching_weight
        self.image_weight, self.adversarial_weight = image_weight, adversarial_weight

    def forward(
        self, output: KeeperOutput, features: Sequence[Tensor], privileged: Tensor, scores: Tensor | None = None
    ) -> Tensor:
        """Scalar loss of a batch, see `parts`. All of the output takes part in it, if with a gradient of 0."""
        parts = self.parts(output, features, privileged, scores)
        unused = [connected_zero(tensor) for tensor in (*output.guides, output.image)]
        return torch.stack([*parts.values(), *unused]).sum()

    def parts(
        self, output: KeeperOutput, features: Sequence[Tensor], privileged: Tensor, scores: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted parts by name, `distillation`, `matching`, `image` and `adversarial`.

        Args:
            output: of `KeeperNetwork`.
            features: c_1..c_L, the teacher's, without gradient.
            privileged: y, (B, P, *size).
            scores: C(y~), with the discriminator's weights not requiring gradients; None without a discriminator.
        """
        parts = {}
        if self.distillation_weight:
            parts["distillation"] = self.distillation_weight * feature_error(output.guides, features)
        if self.matching_weight:
            parts["matching"] = self.matching_weight * matching_error(output.guides, features)
        if self.image_weight:
            parts["image"] = self.image_weight * image_error(output.image, privileged, self.image_range)
        if self.adversarial_weight and scores is not None:
            parts["adversarial"] = self.adversarial_weight * score_error(scores, 1.0)
        return parts


def _squared_error(first: Tensor, second: Tensor) -> Tensor:
    return functional.mse_loss(at_least_float32(first), at_least_float32(second))


def _over_channels(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the channels of (B, C, *size), (B, *size) each."""
    variance, mean = torch.var_mean(at_least_float32(features), dim=1, correction=0)
    return mean, variance.clamp_min(SMALLEST_VARIANCE).sqrt()


def _range(image_range: Sequence[float]) -> Tensor:
    values = torch.as_tensor(image_range, dtype=torch.float32)
    if values.ndim != 1 or not bool((values > 0).all()):
        raise ValueError(f"image_range must be a positive number for each privileged channel, got {image_range}")
    return values

"""Losses of stage 1, self-supervised super-resolution of image and labels (paper 3.4, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero
from rehrseg_nnunet.restoration.losses import check_maps, masked_l1, voxel_error
from rehrseg_nnunet.self_sr.network import SelfSROutput


def uncertainty_l1(
    prediction: Tensor, target: Tensor, uncertainty: Tensor, mask: Tensor, floor: float = 1e-3
) -> Tensor:
    """Absolute error attenuated by the predicted uncertainty, mean(|err| / U + log U) (Eq. 6).

    For a given error the term is smallest at U = |err| (the mean over the channels), so U learns the error's size.
    U counts as ``floor`` where it is smaller. There U gets a gradient only if the error exceeds the floor, that is
    only to come back up: a plain clamp would leave it at the floor for good.

    Args:
        prediction: (B, C, r, H, W).
        target: (B, C, r, H, W); what it holds where the mask is 0 does not matter.
        uncertainty: (B, 1, r, H, W), U in (0, 1), one for all channels.
        mask: (B, 1, r, H, W), nonzero = the voxel counts, 0 = it does not.
        floor: smallest U that is divided by, > 0.

    Returns:
        Scalar in at least float32 (negative once errors are small); 0, still in the graph, when no voxel counts.
        Exactly zero gradient, of the prediction and of U, where the mask is 0.

    Raises:
        ValueError: if the shapes do not agree or ``floor`` is not positive.
    """
    check_maps(prediction, target, mask=mask, uncertainty=uncertainty)
    valid = mask.bool()
    return attenuate(voxel_error(prediction, target, valid), uncertainty, valid, floor)


def attenuate(error: Tensor, uncertainty: Tensor, valid: Tensor, floor: float = 1e-3) -> Tensor:
    """mean(error / U + log U) (Eq. 6) of any error between 0 and 1, see `uncertainty_l1`.

    Args:
        error: (B, 1, r, H, W), 0 where not valid.
        uncertainty: (B, 1, r, H, W), U in (0, 1).
        valid: (B, 1, r, H, W), whether the voxel counts.
        floor: smallest U that is divided by, > 0.

    Raises:
        ValueError: if ``floor`` is not positive.
    """
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    uncertainty = torch.where(valid, at_least_float32(uncertainty), 1)
    way_up = torch.where((uncertainty < floor) & (error > floor), uncertainty - uncertainty.detach(), 0)
    floored = uncertainty.clamp_min(floor) + way_up
    return (error / floored + floored.log()).sum() / valid.sum().clamp_min(1)


@torch.no_grad()
def label_error(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which labels are wrong, as an error for Eq. 6: U then learns the probability that the label is wrong.

    No gradient reaches the labels: U does not regularise their restoration (paper 3.4).

    Args:
        logits: (B, K, r, H, W).
        labels: in nnU-Net's layout, (B, 1, r, H, W) integers, values from K on not counting, or
            (B, K + 1, r, H, W) booleans of regions, the last one 1 where nothing counts.

    Returns:
        1 where the label (or any region) is wrong, else 0, and whether the voxel counts; both (B, 1, r, H, W).
    """
    heads = logits.shape[1]
    if labels.shape[1] == 1:
        valid = (labels >= 0) & (labels < heads)
        wrong = logits.argmax(dim=1, keepdim=True) != labels
    else:
        valid = ~labels[:, -1:].bool()
        wrong = ((logits > 0) != labels[:, :-1].bool()).any(dim=1, keepdim=True)
    return (wrong & valid).float(), valid


class SelfSRLoss(nn.Module):
    """The loss of stage 1: L1 of the image and the label loss, in the second phase with Eq. 6 added.

    The uncertainty never weights the label loss (paper 3.4). All terms are computed in at least float32.

    Attributes:
        use_uncertainty: False in the first phase, L1 + labels, where U takes part with a zero gradient only
            (DistributedDataParallel wants every parameter used); True in the second, L1 + labels + Eq. 6.

    Args:
        label_loss: nnU-Net's loss, called with (logits, labels); see `rehrseg_nnunet.nnunet.label_loss`.
        error: what U learns: the error of the "image" (the paper's), of the "labels", or the mean of "both".
        use_uncertainty: the phase to start in.
        floor: smallest U that is divided by in Eq. 6.
    """

    def __init__(
        self, label_loss: nn.Module, *, error: str = "image", use_uncertainty: bool = False, floor: float = 1e-3
    ) -> None:
        super().__init__()
        self.error = error
        self.label_loss = label_loss
        self.use_uncertainty = use_uncertainty
        self.floor = floor

    def forward(self, output: SelfSROutput, target: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch of windows.

        Args:
            output: image (B, Ci, r, H, W), label logits (B, Cl, r, H, W) and uncertainty (B, 1, r, H, W).
            target: image (B, Ci, r, H, W); labels in nnU-Net's layout, (B, 1, r, H, W) integers with the ignore value
                where nothing counts, or (B, regions (+ 1 channel, 1 = ignored), r, H, W); image mask
                (B, 1, r, H, W), 1 = inside the volume.

        Returns:
            Scalar.

        Raises:
            ValueError: if ``target`` has not three entries or shapes do not agree.
        """
        if len(target) != 3:
            raise ValueError(f"target must be image, labels and mask, got {len(target)} entries")
        image, labels, mask = target
        # nnU-Net's Dice with regions overflows float16 in its backward pass when all voxels of a sample are ignored.
        loss = masked_l1(output.image, image, mask) + self.label_loss(at_least_float32(output.labels), labels)
        if not self.use_uncertainty:
            return loss + connected_zero(output.uncertainty)
        if self.error != "labels":
            loss = loss + uncertainty_l1(output.image, image, output.uncertainty, mask, self.floor)
        if self.error != "image":
            loss = loss + self._of_labels(output, labels)
        return loss

    def _of_labels(self, output: SelfSROutput, labels: Tensor) -> Tensor:
        error, valid = label_error(output.labels, labels)
        return attenuate(error, output.uncertainty, valid, self.floor)

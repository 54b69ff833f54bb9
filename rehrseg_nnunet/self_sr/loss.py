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
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    valid = mask.bool()
    error = voxel_error(prediction, target, valid)
    uncertainty = torch.where(valid, at_least_float32(uncertainty), 1)
    way_up = torch.where((uncertainty < floor) & (error > floor), uncertainty - uncertainty.detach(), 0)
    floored = uncertainty.clamp_min(floor) + way_up
    return (error / floored + floored.log()).sum() / valid.sum().clamp_min(1)


class SelfSRLoss(nn.Module):
    """The loss of stage 1: L1 of the image and the label loss, in the second phase with Eq. 6 added.

    The uncertainty never weights the label loss (paper 3.4). All terms are computed in at least float32.

    Attributes:
        use_uncertainty: False in the first phase, L1 + labels, where U takes part with a zero gradient only
            (DistributedDataParallel wants every parameter used); True in the second, L1 + labels + Eq. 6.

    Args:
        label_loss: nnU-Net's loss, called with (logits, labels); see `rehrseg_nnunet.nnunet.label_loss`.
        use_uncertainty: the phase to start in.
        floor: smallest U that is divided by in Eq. 6.
    """

    def __init__(self, label_loss: nn.Module, *, use_uncertainty: bool = False, floor: float = 1e-3) -> None:
        super().__init__()
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
        return loss + uncertainty_l1(output.image, image, output.uncertainty, mask, self.floor)

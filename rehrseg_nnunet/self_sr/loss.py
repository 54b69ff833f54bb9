"""Losses of stage 1, self-supervised super-resolution of image and labels (paper 3.4, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero
from rehrseg_nnunet.self_sr.network import SelfSROutput

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

# nnU-Net's own smoothing term of the Dice.
_DICE_SMOOTH = 1e-5


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
    _check_maps(prediction, target, mask=mask)
    valid = mask.bool()
    return _voxel_error(prediction, target, valid).sum() / valid.sum().clamp_min(1)


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
    _check_maps(prediction, target, mask=mask, uncertainty=uncertainty)
    if floor <= 0:
        raise ValueError(f"floor must be positive, got {floor}")
    valid = mask.bool()
    error = _voxel_error(prediction, target, valid)
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
        label_loss: nnU-Net's loss, called with (logits, labels); see `build_label_loss`.
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


def build_label_loss(
    label_manager: LabelManager, *, batch_dice: bool, ddp: bool, ignore_index: int | None
) -> DC_and_CE_loss | DC_and_BCE_loss:
    """Build nnU-Net's label loss: cross-entropy + Dice, or binary cross-entropy + Dice for regions.

    A window may reach outside its volume, so an ignore value is needed even if the dataset has no ignore label.

    Args:
        label_manager: nnU-Net's, of the plans and dataset.
        batch_dice: Dice over the whole batch instead of per sample, as in the plans' configuration.
        ddp: whether several processes train, over which a batch Dice is gathered.
        ignore_index: plain labels: the value of ignored voxels in the target, above every label. Regions: any value,
            ignored voxels are marked in an extra last channel of the target. None: nothing is ever ignored.

    Returns:
        A module called with (logits, target). Its Dice alone is the attribute ``dc``.

    Raises:
        ValueError: if ``ignore_index`` is one of the labels.
    """
    dice = {"batch_dice": batch_dice, "smooth": _DICE_SMOOTH, "ddp": ddp}
    if label_manager.has_regions:
        return DC_and_BCE_loss(
            {},
            {**dice, "do_bg": True},
            use_ignore_label=ignore_index is not None,
            dice_class=MemoryEfficientSoftDiceLoss,
        )
    highest = max(label_manager.all_labels)
    if ignore_index is not None and ignore_index <= highest:
        raise ValueError(f"ignore_index must be above the highest label {highest}, got {ignore_index}")
    return DC_and_CE_loss(
        {**dice, "do_bg": False}, {}, ignore_label=ignore_index, dice_class=MemoryEfficientSoftDiceLoss
    )


def _voxel_error(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Absolute error, mean over the channels, 0 where not valid: (B, 1, r, H, W)."""
    # where, not a product: neither a NaN outside the volume nor its gradient may come through.
    difference = torch.where(valid, at_least_float32(prediction) - at_least_float32(target), 0)
    return difference.abs().mean(dim=1, keepdim=True)


def _check_maps(prediction: Tensor, target: Tensor, **maps: Tensor) -> None:
    if target.shape != prediction.shape:
        raise ValueError(
            f"target must have the prediction's shape {tuple(prediction.shape)}, got {tuple(target.shape)}"
        )
    expected = (prediction.shape[0], 1, *prediction.shape[2:])
    for name, tensor in maps.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(tensor.shape)}")

"""nnU-Net's label loss for networks of this package: cross-entropy + Dice, or binary for regions."""

from __future__ import annotations

from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager

DICE_SMOOTH = 1e-5  # nnU-Net's own smoothing term of the Dice


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
    dice = {"batch_dice": batch_dice, "smooth": DICE_SMOOTH, "ddp": ddp}
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
        {**dice, "do_bg": False},
        {},
        ignore_label=ignore_index,
        dice_class=MemoryEfficientSoftDiceLoss,  # pyright: ignore[reportArgumentType] # declared as its default's type
    )

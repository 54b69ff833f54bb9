"""Loss of SMORE, the learnt initialisation of stage 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rehrseg_nnunet.nnunet.precision import at_least_float32
from rehrseg_nnunet.restoration.losses import masked_l1
from rehrseg_nnunet.smore.network import WDSROutput


class SMORELoss(nn.Module):
    """L1 of the image and the label loss, in at least float32.

    Args:
        label_loss: nnU-Net's loss, called with (logits, labels); see `rehrseg_nnunet.nnunet.label_loss`.
    """

    def __init__(self, label_loss: nn.Module) -> None:
        super().__init__()
        self.label_loss = label_loss

    def forward(self, output: WDSROutput, target: Sequence[Tensor]) -> Tensor:
        """Return the loss of a batch of slices.

        Args:
            output: image (B, Ci, A, W) and label logits (B, Cl, A, W).
            target: image (B, Ci, A, W); labels in nnU-Net's layout; image mask (B, 1, A, W), 1 = inside the slice.

        Raises:
            ValueError: ``target`` has not three entries or shapes do not agree.
        """
        if len(target) != 3:
            raise ValueError(f"target must be image, labels and mask, got {len(target)} entries")
        image, labels, mask = target
        return masked_l1(output.image, image, mask) + self.label_loss(at_least_float32(output.labels), labels)

"""The total loss of stage 2 (Eq. 11)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from rehrseg_nnunet.nnunet.precision import at_least_float32, connected_zero
from rehrseg_nnunet.segmentation.hr_network import TrainingOutputs
from rehrseg_nnunet.segmentation.targets import FIELDS, PatchTargets
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss, uncertainty_to_weight

# training outputs, their full-resolution LR target and the rest of the targets to the terms of a distillation, by name
Distil = Callable[[TrainingOutputs, Tensor, PatchTargets], Mapping[str, Tensor]]


class REHRSegLoss(nn.Module):
    """The loss of stage 2 (Eq. 11): a L_u(LR) + L_HR + lambda (L_corr + L_spatial), or another distillation.

    With heads of their own for LR and HR a is 1, as in Eq. 11. Where LR logits are those of the r thin slices' central
    one or two, both losses pull at the same logits, and 1/r keeps these slices from being learnt almost alone.

    Attributes:
        components: the terms of the last training batch, detached scalars ``lr``, ``hr`` and those of the distillation
            (before a and lambda). Empty before the first.

    Args:
        lr_loss: L_u of Eq. 7.
        hr_loss: nnU-Net's loss of (HR logits, HR target), or of the lists of both with deep supervision of thin slices.
        validation_loss: nnU-Net's stock loss of (outputs, targets), for everything that is not `TrainingOutputs`.
        distillation: gives the terms that lambda weighs, e.g. `rehrseg_nnunet.segmentation.distillation.Distillation`.
            None: no distillation.
        distillation_weight: lambda. 0: no distillation, it is not called.
        lr_weight: a.
        uncertainty_strength: see `uncertainty_to_weight`; 0 weights all voxels alike.
        weighted_hr_loss: in place of ``hr_loss``, one that is weighted by U at HR, which the targets must have. None:
            the HR loss is not weighted.
    """

    def __init__(
        self,
        lr_loss: UncertaintyWeightedLoss,
        hr_loss: nn.Module,
        validation_loss: nn.Module,
        *,
        distillation: Distil | None = None,
        distillation_weight: float = 1.0,
        lr_weight: float = 1.0,
        uncertainty_strength: float = 0.99,
        weighted_hr_loss: UncertaintyWeightedLoss | None = None,
    ) -> None:
        super().__init__()
        self.lr_loss = lr_loss
        self.hr_loss = hr_loss
        self.validation_loss = validation_loss
        self.distillation = distillation
        self.distillation_weight = distillation_weight
        self.lr_weight = lr_weight
        self.uncertainty_strength = uncertainty_strength
        self.weighted_hr_loss = weighted_hr_loss
        self.components: dict[str, Tensor] = {}

    def forward(
        self, outputs: TrainingOutputs | Sequence[Tensor] | Tensor, targets: Sequence[Tensor] | Tensor
    ) -> Tensor:
        """Return the loss of a batch, Eq. 11 for training outputs and the stock loss for others.

        Args:
            outputs: `TrainingOutputs` of the network with its HR head on, or the stock network's output.
            targets: for training outputs the LR target of each LR output, full resolution first, then the HR target of
                each coarser HR output, if there are, then `PatchTargets`; else the stock target.

        Returns:
            Scalar.

        Raises:
            ValueError: if the number of targets does not fit the outputs.
        """
        if not isinstance(outputs, TrainingOutputs):
            return self.validation_loss(outputs, targets)
        lr_outputs = [outputs.lr] if isinstance(outputs.lr, Tensor) else outputs.lr
        coarser = 0 if isinstance(outputs.hr, Tensor) else len(outputs.hr) - 1
        first = len(lr_outputs) + coarser
        if len(targets) != first + len(FIELDS):
            labels = f"{len(lr_outputs)} LR targets" + (f", {coarser} coarser HR targets" if coarser else "")
            raise ValueError(f"targets must be {labels} and {', '.join(FIELDS)}, got {len(targets)} entries")
        lr_targets, others = targets[: len(lr_outputs)], PatchTargets(*targets[first:])
        terms = {
            "lr": self.lr_loss(lr_outputs, lr_targets, self._weight(others.uncertainty)),
            "hr": self._hr(outputs.hr, [others.hr, *targets[len(lr_outputs) : first]], others.hr_uncertainty),
        }
        loss = self.lr_weight * terms["lr"] + terms["hr"] + connected_zero(outputs.adapted)
        if self.distillation is not None and self.distillation_weight != 0:
            distilled = self.distillation(outputs, lr_targets[0], others)
            loss = loss + self.distillation_weight * sum(distilled.values())
            terms.update(distilled)
        self.components = {name: term.detach() for name, term in terms.items()}
        return loss

    def _weight(self, uncertainty: Tensor) -> Tensor:
        return uncertainty_to_weight(uncertainty, strength=self.uncertainty_strength)

    def _hr(self, outputs: Tensor | list[Tensor], targets: list[Tensor], uncertainty: Tensor) -> Tensor:
        if isinstance(outputs, Tensor):
            logits, target = at_least_float32(outputs), targets[0]
        else:
            logits, target = [at_least_float32(output) for output in outputs], targets
        if self.weighted_hr_loss is None:
            return self.hr_loss(logits, target)
        return self.weighted_hr_loss(logits, target, self._weight(uncertainty))

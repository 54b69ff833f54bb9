"""One logit offset a class, with which thin-slice labels have the volumes that thick-slice labels say (Cavalieri).

Thick-slice labels are samples of a structure at every r-th thin slice, so r times their voxels are an unbiased estimate
of the thin labels' voxels, whatever the structure. Networks taught with a Dice term give more: it rewards a voxel that
is more likely wrong than right, down to a probability of half the Dice. No thin-slice truth is needed to mend that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor

from rehrseg_nnunet.nnunet.label_channels import head_labels

LARGEST = 2.0  # of an offset either way: odds of 7.4, beyond which something else is wrong
SWEEPS = 10
SETTLED = 1e-3


def volume_offsets(logits: Tensor, lr_labels: Tensor, factor: int, label_manager: LabelManager) -> Tensor:
    """Offsets with which the label map of HR logits has r times the voxels of the LR labels, class by class.

    Args:
        logits: (K, r*D, H, W).
        lr_labels: (D, H, W) label map; where it is -1 or ignored nothing counts.
        factor: r.
        label_manager: nnU-Net's.

    Returns:
        (K,) float32, 0 for the background; a class or region that the LR labels do not have keeps 0.
    """
    known = lr_labels >= 0
    if label_manager.has_ignore_label:
        known &= lr_labels != label_manager.ignore_label
    counts = known.repeat_interleave(factor, dim=0).flatten()
    maps = logits.flatten(1).float()
    groups = head_labels(label_manager)
    voxels = [factor * int((known & torch.isin(lr_labels, torch.tensor(group))).sum()) for group in groups]
    if label_manager.has_regions:
        pairs = (torch.stack([torch.zeros_like(region), region]) for region in maps)
        return torch.stack([offsets_for(pair, [wanted], counts)[1] for pair, wanted in zip(pairs, voxels, strict=True)])
    return offsets_for(maps, voxels[1:], counts)


def offsets_for(logits: Tensor, voxels: Sequence[int], counts: Tensor | None = None) -> Tensor:
    """Offsets of logits with which each class but the first wins the wanted number of voxels.

    A voxel is of class k where its offset exceeds the lead of the best other class, so the offset lies behind the
    wanted number of smallest leads. Class by class, repeated until none moves.

    Args:
        logits: (K, voxels), class 0 the background.
        voxels: wanted voxels of classes 1 to K - 1; a class that is to have none keeps its offset of 0.
        counts: (voxels,) bool, which of them count; None: all.

    Returns:
        (K,) float32, each within `LARGEST` of 0, that of the background 0; all 0 where none come closer.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, -0.2, -0.8, -5.0]])
        >>> offsets_for(logits, [2])  # one voxel wins; behind the second lies 0.5
        tensor([0.0000, 0.5000])
    """
    (best, second), (winner, _) = logits.topk(2, dim=0)
    counts = torch.ones_like(winner, dtype=torch.bool) if counts is None else counts
    close = best - second <= 2 * LARGEST  # all others are decided, whatever the offsets
    decided = winner[counts & ~close].bincount(minlength=len(logits))
    candidates, offsets = logits[:, counts & close], torch.zeros(len(logits))
    for _ in range(SWEEPS):
        before = offsets.clone()
        for label, wanted in enumerate(voxels, start=1):
            if wanted > 0:
                offsets[label] = _behind(_leads(candidates, offsets, label), int(wanted) - int(decided[label]))
        if (offsets - before).abs().max() < SETTLED:
            break

    def missed(chosen: Tensor) -> int:
        won = decided + (candidates + chosen[:, None]).argmax(dim=0).bincount(minlength=len(logits))
        return sum(abs(int(own) - wanted) for own, wanted in zip(won[1:], voxels, strict=True) if wanted > 0)

    return min(torch.zeros_like(offsets), offsets, key=missed)  # where logits are all alike an offset overshoots


def _leads(logits: Tensor, offsets: Tensor, label: int) -> Tensor:
    """(voxels,), by how much the best other class is ahead of a class without an offset."""
    shifted = logits + offsets[:, None]
    shifted[label] = -torch.inf
    return shifted.amax(dim=0) - logits[label]


def _behind(leads: Tensor, wanted: int) -> float:
    """The offset that exceeds the smallest `wanted` leads, halfway to the next."""
    if wanted <= 0 or wanted >= len(leads):
        return LARGEST if wanted > 0 else -LARGEST
    last, following = (leads.kthvalue(place).values for place in (wanted, wanted + 1))
    return float(((last + following) / 2).clamp(-LARGEST, LARGEST))

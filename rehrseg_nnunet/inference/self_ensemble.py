"""Self-ensemble: the mean of a self-SR network's outputs over the symmetries of the plane."""

from __future__ import annotations

from collections.abc import Callable

import torch

from rehrseg_nnunet.inference.super_resolve import super_resolve
from rehrseg_nnunet.networks.self_sr import SelfSRNetwork, SelfSROutput

PLANE = (-2, -1)


def plane_symmetries() -> list[tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]]:
    """The 8 flips and rotations by 90 degrees of (..., H, W), each with its inverse; the identity first."""

    def turn(quarters: int, mirror: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda v: torch.rot90(v.flip(-1) if mirror else v, quarters, PLANE)

    def turn_back(quarters: int, mirror: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda v: torch.rot90(v, -quarters, PLANE).flip(-1) if mirror else torch.rot90(v, -quarters, PLANE)

    return [(turn(q, m), turn_back(q, m)) for m in (False, True) for q in range(4)]


def super_resolve_ensemble(network: SelfSRNetwork, image: torch.Tensor, labels: torch.Tensor) -> SelfSROutput:
    """`super_resolve`, averaged over the symmetries of the plane, with which training augments.

    The slice axis is not flipped: where a label changes in the middle of a thick slice, the rule for ties gives it to
    the smaller HR index, so labels on thick slices are not symmetric along it.

    Args:
        network: trained.
        image: (C, D, H, W) float.
        labels: (K, D, H, W) float label channels.

    Returns:
        Means of image (C, r*D, H, W), label logits (K, r*D, H, W) and uncertainty (1, r*D, H, W).
    """
    sums = None
    symmetries = plane_symmetries()
    for apply, undo in symmetries:
        output = super_resolve(network, apply(image).contiguous(), apply(labels).contiguous())
        restored = [undo(tensor) for tensor in output]
        sums = restored if sums is None else [total + tensor for total, tensor in zip(sums, restored, strict=True)]
    return SelfSROutput(*(total / len(symmetries) for total in sums))

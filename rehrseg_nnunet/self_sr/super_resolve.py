"""Apply the self-SR network to a whole thick-slice case.

Convention:
    Axis 0 of a case is the slice axis. Window k holds LR slices k - 1 .. k + 2, edge slices repeated, and yields the r
    HR slices from r*k + floor(r/2) on; the windows k = -1 .. D - 1 cover the r*D HR slices of the field of view.
"""

from __future__ import annotations

import torch

from rehrseg_nnunet.restoration.batches import Batches
from rehrseg_nnunet.self_sr.network import SelfSRNetwork, SelfSROutput


def windows_of(volume: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """The 4-slice windows k = first .. last - 1 of a volume, edge slices repeated.

    Args:
        volume: (C, D, H, W).
        first: first k, at least -1.
        last: end of the range, at most D.

    Returns:
        (last - first, C, 4, H, W).
    """
    index = torch.arange(first, last)[:, None] + torch.tensor([-1, 0, 1, 2])
    index = index.clamp(0, volume.shape[1] - 1).to(volume.device)
    return volume[:, index].movedim(0, 1)


@torch.no_grad()
def super_resolve(
    network: SelfSRNetwork,
    image: torch.Tensor,
    labels: torch.Tensor,
    *,
    windows_per_batch: int = 4,
) -> SelfSROutput:
    """Super-resolve a case along its slice axis.

    Args:
        network: trained; its mode and device are left as they are.
        image: (C, D, H, W) float, normalised as for training.
        labels: (K, D, H, W) float label channels, see `rehrseg_nnunet.nnunet.label_channels`.
        windows_per_batch: windows computed at a time, fewer where the device has no memory for them.

    Returns:
        image (C, r*D, H, W), label logits (K, r*D, H, W) and uncertainty (1, r*D, H, W), float32 on the CPU.
    """
    volume = torch.cat([image, labels])
    slices, r = volume.shape[1], network.factor
    batches = Batches(network, size=windows_per_batch)
    joined = batches.apply(lambda first, end: windows_of(volume, first - 1, end - 1), slices + 1)  # (D + 1, C, r, H, W)
    lead = r - r // 2  # HR slices of window -1 that lie before the volume
    whole = (tensor.movedim(0, 1).flatten(1, 2) for tensor in joined)
    return SelfSROutput(*(tensor[:, lead : lead + r * slices].contiguous() for tensor in whole))

"""Apply the self-SR network to a whole thick-slice case, and its encoder as the teacher of stage 2.

Convention:
    Axis 0 of a case is the slice axis. Window k holds LR slices k - 1 .. k + 2, edge slices repeated, and yields the r
    HR slices from r*k + floor(r/2) on; the windows k = -1 .. D - 1 cover the r*D HR slices of the field of view.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch

from rehrseg_nnunet.self_sr.flavr import SLICES
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
        windows_per_batch: windows computed at a time.

    Returns:
        image (C, r*D, H, W), label logits (K, r*D, H, W) and uncertainty (1, r*D, H, W), float32 on the CPU.
    """
    device = next(network.parameters()).device
    volume = torch.cat([image, labels])
    slices, r = volume.shape[1], network.factor
    parts = [
        [tensor.float().cpu() for tensor in network(windows_of(volume, *k).to(device))]
        for k in _batches(-1, slices, windows_per_batch)
    ]
    lead = r - r // 2  # HR slices of window -1 that lie before the volume
    joined = (torch.cat(tensors) for tensors in zip(*parts, strict=True))  # each (D + 1, C, r, H, W)
    whole = (tensor.movedim(0, 1).flatten(1, 2) for tensor in joined)
    return SelfSROutput(*(tensor[:, lead : lead + r * slices].contiguous() for tensor in whole))


def _batches(first: int, last: int, size: int) -> Iterator[tuple[int, int]]:
    return ((k, min(k + size, last)) for k in range(first, last, size))


def teacher_features(network: SelfSRNetwork, image: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Layer-1 features of LR patches for the structural distillation (paper section 3.5).

    The encoder sees 4-slice windows as in training (its gates are means over a window, so one pass over all slices
    would be another function). Windows lie side by side, so that each slice is computed once; where the number of
    slices is no multiple of 4 the last window is moved back, and below 4 slices the last slice is repeated.

    Args:
        network: trained stage-1 network, on the patches' device.
        image: (B, C, D, H, W).
        labels: (B, K, D, H, W) label channels.

    Returns:
        (B, base_features, D, ceil(H/2), ceil(W/2)), without gradient.
    """
    volumes = torch.cat([image, labels], dim=1)
    index, first_place = _windows_side_by_side(volumes.shape[2], volumes.device)
    with torch.no_grad():
        windows = volumes[:, :, index].movedim(2, 1).flatten(0, 1)
        features = network.layer1_features(windows).unflatten(0, (image.shape[0], -1)).movedim(1, 2)
    return features.flatten(2, 3)[:, :, first_place]


@lru_cache(maxsize=16)  # a training has one patch size; a copy to a GPU in every step would wait for it
def _windows_side_by_side(slices: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The slice at each place of the windows, (windows, 4), and the first place of each slice, (slices,)."""
    starts = torch.tensor([max(0, min(start, slices - SLICES)) for start in range(0, slices, SLICES)])
    index = (starts[:, None] + torch.arange(SLICES)).clamp(max=slices - 1)
    flat = index.flatten().tolist()
    first_place = torch.tensor([flat.index(k) for k in range(slices)])
    return index.to(device), first_place.to(device)

"""Start nnU-Net's background workers around a loader."""

from __future__ import annotations

import secrets

import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

WAIT_TIME_S = 0.002


def start_augmenter(
    loader: SlimDataLoaderBase,
    *,
    device: torch.device,
    validation: bool = False,
) -> SingleThreadedAugmenter | NonDetMultiThreadedAugmenter:
    """Wrap a loader as nnU-Net does and draw its first batch, which starts the workers; nnUNet_n_proc_DA 0: none.

    Args:
        loader: endless loader; it must be picklable.
        device: training device; batches are pinned for cuda.
        validation: take nnU-Net's smaller share of workers and cached batches.

    Raises:
        ValueError: nnUNet_n_proc_DA is negative.
    """
    allowed = get_allowed_n_proc_DA()
    if allowed < 0:
        raise ValueError(f"nnUNet_n_proc_DA must be at least 0, got {allowed}")
    num_processes = max(1, allowed // 2) if validation and allowed > 0 else allowed
    if num_processes == 0:
        augmenter = SingleThreadedAugmenter(loader, None)
    else:
        augmenter = NonDetMultiThreadedAugmenter(
            data_loader=loader,
            transform=None,
            num_processes=num_processes,
            num_cached=max(3 if validation else 6, num_processes // 2),
            # without seeds forked workers share torch's generator state and draw the same augmentations
            seeds=[secrets.randbits(32) for _ in range(num_processes)],
            pin_memory=device.type == "cuda",
            wait_time=WAIT_TIME_S,
        )
    next(augmenter)
    return augmenter

"""Label maps between thick slices that keep every label's volume.

By Cavalieri's principle the area of a structure in its thick slices, times their distance, estimates its volume without
bias, whatever its shape. What is decided between the slices has a bias: interpolated shapes taper off too soon where a
structure ends, and a network trained with a Dice loss calls more voxels foreground than there are, because that
is what scores best where it is unsure. A second network that learns from such labels adds its own to that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

ROUNDS = 20  # labels that compete for a boundary settle after a few


def keep_volumes(logits: torch.Tensor, voxels: Sequence[int], *, regions: bool) -> torch.Tensor:
    """Add a number to the logits of each label, so that it is decided on in as many voxels as it should be.

    Args:
        logits: (K, N), any voxels; the largest decides, and label 0 is the background, which gets the rest. With
            `regions` each is decided on where it is positive.
        voxels: K numbers of voxels; a label of 0 voxels gets none. The first is not looked at without `regions`.
        regions: heads are regions, which do not compete.

    Returns:
        (K, N), in the order of voxels within each label as before. Ties can leave a label a few voxels off.
    """
    shifted = logits.clone()
    if regions:
        for head, count in enumerate(voxels):
            shifted[head] += _shift(-logits[head], count)
        return shifted
    for _ in range(ROUNDS):
        for head in range(1, len(logits)):
            others = torch.cat([shifted[:head], shifted[head + 1 :]]).amax(dim=0)
            shifted[head] = logits[head] + _shift(others - logits[head], voxels[head])
        found = torch.bincount(shifted.argmax(dim=0), minlength=len(logits))
        if found[1:].tolist() == list(voxels[1:]):
            break
    return shifted


def _shift(needed: torch.Tensor, count: int) -> float:
    """The number above which `count` of the needed shifts lie below it: halfway to the next one."""
    if count <= 0:
        return -np.inf
    if count >= len(needed):
        return float(needed.max()) + 1
    below, above = np.partition(needed.numpy(), (count - 1, count))[count - 1 : count + 1]
    return float((below + above) / 2)

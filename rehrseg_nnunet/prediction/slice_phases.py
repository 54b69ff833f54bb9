"""Test-time augmentation over the phase of the thick slices, within nnU-Net's mirroring.

Where between two anatomical positions the slices of a scan lie, their phase, is an accident, as left and right of a
mirrored image are. nnU-Net averages as many predictions as there are combinations of mirrored axes. Here they also see
the scan at different phases, so averaging over phases takes no more of them. Logits of thick slices gain by it, also
those of REHRSegTrainer's networks, which are trained on all phases; those of its HR head do not, nor do those of a
network that interpolates its thick slices to thin ones.

Convention:
    At phase p, from -r/2 to r/2, the scan is resampled to slices that lie p HR slices behind the acquired ones
    (`rehrseg_nnunet.slices.slice_profile.at_phase`), so HR slice j of its prediction is HR slice j + p of the case.
    Mirroring along z turns phase p into -p, and a mirrored scan gives the mirrored prediction: what is mirrored along
    z is therefore taken at -p where its counterpart is taken at p.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, combinations

import torch

Mirrors = tuple[int, ...]


def mirrored_phases(mirror_axes: Sequence[int] | None, *, slices: int, factor: int) -> dict[int, list[Mirrors]]:
    """What to predict: at each phase, the combinations of axes to mirror.

    Args:
        mirror_axes: spatial axes that nnU-Net mirrors, 0 = z; None or empty: none.
        slices: D; a single slice has no other phase than its own.
        factor: r; 1 for none but the scan's own phase.

    Returns:
        Every combination once, as in nnU-Net. The combinations of in-plane axes take the phases of a slice in even
        steps, the scan as it is first, so without mirroring in plane all is at phase 0.
    """
    axes = sorted(mirror_axes or ())
    in_plane = [axis for axis in axes if axis > 0]
    combined = list(chain.from_iterable(combinations(in_plane, n) for n in range(len(in_plane) + 1)))
    passes: dict[int, list[Mirrors]] = {}
    for number, mirrors in enumerate(combined):
        step = number * factor // len(combined) if slices > 1 else 0
        phase = step - factor if 2 * step > factor else step
        passes.setdefault(phase, []).append(mirrors)
        if 0 in axes:
            passes.setdefault(-phase, []).append((0, *mirrors))
    return passes


class PhaseMean:
    """Mean of HR predictions at several phases, each between outer slice centres, acquired and resampled ones.

    Beyond these a network has a slice on one side only, or an extrapolated one. At phase 0, that of the case, all of
    its prediction counts.

    Args:
        lr_slices: D.
        factor: r.
    """

    def __init__(self, lr_slices: int, factor: int) -> None:
        self.slices = factor * lr_slices
        self.margin = factor // 2  # HR slices before the first LR centre
        self.total: torch.Tensor | None = None
        self.weights = torch.zeros(self.slices)

    def add(self, logits: torch.Tensor, phase: int, *, weight: int) -> None:
        """Add a prediction, which may be changed.

        Args:
            logits: (K, r*D, H, W) float32, on the CPU.
            phase: p.
            weight: number of predictions that these are the mean of.
        """
        first, end = 0, self.slices
        if phase:
            first, end = self.margin + max(phase, 0), self.slices - self.margin + min(phase, 0)
        self.weights[first:end] += weight
        if self.total is None and phase == 0:
            self.total = logits.mul_(weight)  # HR logits are large: no second copy
            return
        if self.total is None:
            self.total = torch.zeros_like(logits)
        self.total[:, first:end].add_(logits[:, first - phase : end - phase], alpha=weight)

    def mean(self) -> torch.Tensor:
        """(K, r*D, H, W) float32; there must be a prediction at phase 0."""
        return self.total.div_(self.weights[:, None, None])  # pyright: ignore[reportOptionalMemberAccess] # phase 0

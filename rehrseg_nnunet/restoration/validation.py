"""Online metrics of the restorations, per batch of validation windows or slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from scipy.stats import spearmanr

from rehrseg_nnunet.evaluation.metrics import psnr, ssim

IMAGE_METRICS = ("psnr", "ssim")
UNCERTAIN_IMAGE_METRICS = (*IMAGE_METRICS, "uncertainty_spearman")
# Each scored image takes tens of milliseconds on the CPU, all of them together longer than a GPU's training steps.
SCORED_IMAGES = 8  # of a batch
SCORED_STEPS = 10  # of an epoch's validation steps, whose batches are drawn at random: the first are as good as any


class Restored(Protocol):
    """What a restoring network returns; one that says how sure it is has `uncertainty` (B, 1, ...) as well.

    Attributes:
        image: (B, C, ...).
        labels: (B, K, ...) logits.
    """

    @property
    def image(self) -> torch.Tensor: ...  # noqa: D102

    @property
    def labels(self) -> torch.Tensor: ...  # noqa: D102


def restoration_metrics(
    output: Restored, target: Sequence[torch.Tensor], *, regions: bool, masked: int, images: int = SCORED_IMAGES
) -> dict[str, np.ndarray]:
    """Counts for nnU-Net's pseudo Dice and the means of PSNR, SSIM and Spearman's correlation of U with |error|.

    Args:
        output: image (B, C, r, H, W), label logits (B, K, r, H, W) and maybe uncertainty (B, 1, r, H, W), without which
            there is no `uncertainty_spearman`; or slices, without r.
        target: [image, labels, mask] as the loader makes them (mask: 1 counts).
        regions: whether heads are regions.
        masked: label value that does not count (plain labels).
        images: number of windows that are scored, the first of the batch; 0: the metrics are nan.

    Returns:
        tp_hard, fp_hard, fn_hard per foreground class or region of the whole batch, and psnr (dB), ssim,
        uncertainty_spearman over the parts of the scored windows that lie inside the volume (nan if there is none, or
        where the output is not finite); data range: the target's max - min.
    """
    image, labels, mask = target
    counts = _label_counts(output.labels.float(), labels, regions=regions, masked=masked)
    uncertainty = getattr(output, "uncertainty", None)
    maps = (image, output.image) if uncertainty is None else (image, output.image, uncertainty)
    rows = [
        _image_metrics(*(t[b][(slice(None), *box)].float().cpu().numpy() for t in maps))
        for b, box in enumerate(_inside(m[0]) for m in mask[:images])
    ]
    rows = [row for row in rows if row is not None]
    metrics = IMAGE_METRICS if uncertainty is None else UNCERTAIN_IMAGE_METRICS
    means = np.mean(rows, axis=0) if rows else np.full(len(metrics), np.nan)
    return {**counts, **{metric: np.array(value) for metric, value in zip(metrics, means, strict=True)}}


def _inside(mask: torch.Tensor) -> tuple[slice, ...]:
    """Box of the voxels that count; the mask of a window is a box."""
    voxels = torch.nonzero(mask)
    if len(voxels) == 0:
        return (slice(0, 0),) * mask.ndim
    return tuple(slice(int(v.min()), int(v.max()) + 1) for v in voxels.T)


def _image_metrics(
    truth: np.ndarray, image: np.ndarray, uncertainty: np.ndarray | None = None
) -> tuple[float, ...] | None:
    channels = [(t, i, float(np.ptp(t))) for t, i in zip(truth, image, strict=True) if t.size and np.ptp(t) > 0]
    if not channels:
        return None
    if not np.isfinite(image).all():  # an overflow in mixed precision must not end the training
        return (float("nan"),) * (2 if uncertainty is None else 3)
    scores = (
        float(np.mean([psnr(t, i, data_range=span) for t, i, span in channels])),
        float(np.mean([ssim(t, i, data_range=span) for t, i, span in channels])),
    )
    if uncertainty is None:
        return scores
    error = np.abs(image - truth).mean(axis=0)
    spearman = spearmanr(uncertainty.ravel(), error.ravel())
    return (*scores, float(spearman.statistic))  # pyright: ignore[reportAttributeAccessIssue] # made at run time


def _label_counts(logits: torch.Tensor, labels: torch.Tensor, *, regions: bool, masked: int) -> dict[str, np.ndarray]:
    axes = [0, *range(2, logits.ndim)]
    if regions:
        predicted, valid, target = (logits > 0).long(), ~labels[:, -1:].bool(), labels[:, :-1]
    else:
        predicted = torch.zeros(logits.shape, device=logits.device).scatter_(1, logits.argmax(1, keepdim=True), 1)
        valid = labels != masked
        target = torch.where(valid, labels, torch.zeros_like(labels))
    counts = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=valid.float())[:3]
    first = 0 if regions else 1  # background is no class of its own in nnU-Net's pseudo Dice
    names = ("tp_hard", "fp_hard", "fn_hard")
    return {name: count.cpu().numpy()[first:] for name, count in zip(names, counts, strict=True)}

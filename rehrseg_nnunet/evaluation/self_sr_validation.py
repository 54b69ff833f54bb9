"""Online metrics of stage 1, per batch of validation windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from scipy.stats import spearmanr

from rehrseg_nnunet.metrics import psnr, ssim
from rehrseg_nnunet.networks.self_sr import SelfSROutput

EXTRA_METRICS = ("psnr", "ssim", "uncertainty_spearman")


def window_metrics(
    output: SelfSROutput, target: Sequence[torch.Tensor], *, regions: bool, masked: int
) -> dict[str, np.ndarray]:
    """Counts for nnU-Net's pseudo Dice and the means of PSNR, SSIM and Spearman's correlation of U with |error|.

    Args:
        output: image (B, C, r, H, W), label logits (B, K, r, H, W), uncertainty (B, 1, r, H, W).
        target: [image, labels, mask] as `SelfSRLoader` makes them (mask: 1 counts).
        regions: whether heads are regions.
        masked: label value that does not count (plain labels).

    Returns:
        tp_hard, fp_hard, fn_hard per foreground class or region, and psnr (dB), ssim, uncertainty_spearman over the
        parts of the windows that lie inside the volume (nan if there is none); data range: the target's max - min.
    """
    image, labels, mask = target
    counts = _label_counts(output.labels.float(), labels, regions=regions, masked=masked)
    maps = (output.image, output.uncertainty, image)
    rows = [
        _image_metrics(*(t[b][(slice(None), *box)].float().cpu().numpy() for t in maps))
        for b, box in enumerate(_inside(m[0]) for m in mask)
    ]
    rows = [row for row in rows if row is not None]
    means = np.mean(rows, axis=0) if rows else np.full(len(EXTRA_METRICS), np.nan)
    return {**counts, **{metric: np.array(value) for metric, value in zip(EXTRA_METRICS, means, strict=True)}}


def _inside(mask: torch.Tensor) -> tuple[slice, ...]:
    """Box of the voxels that count; the mask of a window is a box."""
    voxels = torch.nonzero(mask)
    return tuple(slice(int(v.min()), int(v.max()) + 1) for v in voxels.T) if len(voxels) else (slice(0, 0),) * 3


def _image_metrics(image: np.ndarray, uncertainty: np.ndarray, truth: np.ndarray) -> tuple[float, float, float] | None:
    channels = [(t, i, float(np.ptp(t))) for t, i in zip(truth, image, strict=True) if t.size and np.ptp(t) > 0]
    if not channels:
        return None
    error = np.abs(image - truth).mean(axis=0)
    return (
        float(np.mean([psnr(t, i, data_range=span) for t, i, span in channels])),
        float(np.mean([ssim(t, i, data_range=span) for t, i, span in channels])),
        float(spearmanr(uncertainty.ravel(), error.ravel()).statistic),
    )


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

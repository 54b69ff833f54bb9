"""How near an image is to the privileged one, inside the mask of what has data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rehrseg_nnunet.evaluation.metrics import psnr, ssim

METRICS = ("psnr", "ssim")
# Each scored patch takes up to seconds on the CPU, all of them together longer than a GPU's training steps.
SCORED_PATCHES = 4  # of a batch
SCORED_STEPS = 10  # of an epoch's validation steps, whose batches are drawn at random: the first are as good as any
ROUNDING = 1e-5  # of the largest value: what resampling makes of a constant in float32


def image_scores(
    truth: np.ndarray, image: np.ndarray, inside: np.ndarray, image_range: Sequence[float]
) -> dict[str, float]:
    """PSNR, SSIM and NMSE, means over the channels.

    Args:
        truth: (P, *size), the privileged image.
        image: the same shape.
        inside: (*size), true where voxels count.
        image_range: (P,), the data range of each channel.

    Returns:
        `psnr` in dB, `ssim`, and `nmse`, the squared error over the truth's variance: 0 is perfect, 1 as good as the
        mean. All are nan where no voxel counts, where an image is not finite, and where the truth is constant: any
        line fits it. The PSNR of the truth itself is inf.
    """
    rows = [_channel_scores(t, i, inside, r) for t, i, r in zip(truth, image, image_range, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _channel_scores(truth: np.ndarray, image: np.ndarray, inside: np.ndarray, data_range: float) -> dict[str, float]:
    seen, found = truth[inside].astype(np.float64), image[inside].astype(np.float64)
    finite = np.isfinite(image).all() and np.isfinite(truth).all()
    if not seen.size or not finite or np.ptp(seen) <= ROUNDING * np.abs(seen).max():
        return {"psnr": math.nan, "ssim": math.nan, "nmse": math.nan}
    return {
        "psnr": psnr(seen, found, data_range=float(data_range)),
        "ssim": ssim(*_with_axes(truth, image), data_range=float(data_range), inside=_with_axes(inside)[0]),
        "nmse": float(np.square(seen - found).mean()) / float(seen.var()),
    }


def _with_axes(*volumes: np.ndarray) -> list[np.ndarray]:
    """Volumes of one slice as images."""
    return [volume[0] if volume.ndim == 3 and len(volume) == 1 else volume for volume in volumes]


def batch_scores(
    truth: torch.Tensor, image: torch.Tensor, inside: torch.Tensor, image_range: torch.Tensor, *, patches: int
) -> dict[str, np.ndarray]:
    """Mean PSNR and SSIM over the first patches of a batch, nan if there are none.

    Args:
        truth: (B, P, *size).
        image: (B, P, *size).
        inside: (B, 1, *size).
        image_range: (P,).
        patches: how many are scored.
    """
    arrays = [tensor[:patches].detach().float().cpu().numpy() for tensor in (truth, image, inside)]
    spans = image_range.tolist()
    rows = [image_scores(t, i, mask[0] > 0, spans) for t, i, mask in zip(*arrays, strict=True)]
    return {name: np.array(mean_of_defined([row[name] for row in rows])) for name in METRICS}


def mean_of_defined(values: np.ndarray | Sequence[float]) -> float:
    """Mean of the finite values, nan if there is none."""
    defined = np.ravel(values)[np.isfinite(np.ravel(values))]
    return float(defined.mean()) if defined.size else math.nan


def as_json(content: Any) -> Any:
    """Content of a report with null for what is not finite: JSON has neither NaN nor Infinity."""
    if isinstance(content, Mapping):
        return {key: as_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [as_json(value) for value in content]
    return None if isinstance(content, float | np.floating) and not math.isfinite(content) else content

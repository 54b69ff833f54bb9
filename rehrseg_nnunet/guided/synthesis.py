"""Images that teacher and keeper make of whole cases: nnU-Net's sliding window, and back into the case's geometry.

Convention:
    Preprocessed cases and images are (C, D, H, W), in nnU-Net's axis order and intensities. Files hold these
    intensities too (z-scores, mostly): a new scan does not say those of a better one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.nnunet.precision import mixed_precision
from rehrseg_nnunet.nnunet.resampling import set_order_along_z
from rehrseg_nnunet.nnunet.whole_files import stems


def synthesise(
    network: nn.Module, case: torch.Tensor, *, patch_size: Sequence[int], device: torch.device, step_size: float = 0.5
) -> np.ndarray:
    """A network's image of a whole case: nnU-Net's windows and Gaussian weights, without mirroring.

    Sums are in float32. nnU-Net's own are in float16, where the weights at the edges of a window vanish: labels do not
    feel it, grey values do.

    Args:
        network: of teacher or keeper, its output has `image`; it is in evaluation mode afterwards.
        case: (C, D, H, W), the channels that it takes.
        patch_size: of a window, (d, h, w) or (h, w).
        device: where the network is.
        step_size: between windows, as a share of the patch.

    Returns:
        (P, D, H, W) float32.
    """
    window = (1, *patch_size) if len(patch_size) == 2 else tuple(patch_size)
    pad: Any = pad_nd_image  # declared without None
    image, inner = pad(case, window, "constant", {"value": 0}, True, None)
    weights = compute_gaussian(tuple(patch_size), dtype=torch.float32, device=torch.device("cpu")).reshape(window)
    network.eval()
    total: torch.Tensor | None = None
    weight = torch.zeros(image.shape[1:])
    with torch.no_grad(), mixed_precision(device):
        for box in windows(image.shape[1:], window, step_size):
            patch = image[(slice(None), *box)]
            given = patch.reshape(1, -1, *patch_size).to(device)
            made = network(given).image[0].float().cpu().reshape(-1, *window)
            total = torch.zeros(len(made), *image.shape[1:]) if total is None else total
            total[(slice(None), *box)] += weights * made
            weight[box] += weights
    assert total is not None  # there is always a window
    return (total / weight)[(slice(None), *inner[1:])].numpy()


def windows(size: Sequence[int], window: Sequence[int], step_size: float) -> list[tuple[slice, ...]]:
    """Where the windows of a volume (D, H, W) are, which is not smaller than one; slices of 2D windows lie close."""
    starts = compute_steps_for_sliding_window(tuple(size), tuple(window), step_size)
    return [
        tuple(slice(start, start + length) for start, length in zip(corner, window, strict=True))
        for corner in itertools.product(*starts)
    ]


def file_stems(stem: str, channels: Sequence[int]) -> list[str]:
    """Where the images of a case go, without ending: the stem itself, or one `_0001`, ... for each of several channels.

    Args:
        stem: of the case.
        channels: the paired dataset's numbers of the privileged ones.
    """
    return stems(stem, [f"{channel:04d}" for channel in channels])


def planned_spacing(
    properties: Mapping[str, Any], plans_manager: PlansManager, configuration_manager: ConfigurationManager
) -> list[float]:
    """Spacing of a preprocessed case, mm: the plans', for 2d with the case's own between slices."""
    own = [float(properties["spacing"][axis]) for axis in plans_manager.transpose_forward]
    return [*own[: 3 - len(configuration_manager.spacing)], *(float(s) for s in configuration_manager.spacing)]


def in_case_grid(
    image: np.ndarray,
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    *,
    masked: bool,
) -> np.ndarray:
    """One channel of a preprocessed case's image on the grid of the case's file.

    It is resampled linearly where the plans' spacing is another. What nnU-Net cropped, which was 0 in every channel,
    becomes what background is beside it: 0 if the channel is normalised within a mask, else the image's least value.

    Args:
        image: (D, H, W), preprocessed.
        properties: of the preprocessed case.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's, of the plans' configuration.
        masked: the plans' `use_mask_for_norm` of the channel.

    Returns:
        (z, y, x) float32, in the order of the file's array.
    """
    spacing = [float(properties["spacing"][axis]) for axis in plans_manager.transpose_forward]
    planned = planned_spacing(properties, plans_manager, configuration_manager)
    cropped = tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"])
    if cropped != image.shape:
        configuration = deepcopy(configuration_manager.configuration)
        set_order_along_z(configuration, 1, kinds=("probabilities",))
        resample = ConfigurationManager(configuration).resampling_fn_probabilities
        image = np.asarray(resample(image[None].astype(np.float32), cropped, planned, spacing))[0]
    background = 0.0 if masked else image.min()
    whole = np.full(properties["shape_before_cropping"], background, dtype=np.float32)
    whole[tuple(slice(*edges) for edges in properties["bbox_used_for_cropping"])] = image
    return whole.transpose([int(axis) for axis in plans_manager.transpose_backward])

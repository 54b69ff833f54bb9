"""Images that teacher and keeper make of whole cases: nnU-Net's sliding window, and back into the case's geometry.

Convention:
    Preprocessed cases and images are (C, D, H, W), in nnU-Net's axis order and intensities. Files hold these
    intensities too (z-scores, mostly): a new scan does not say those of a better one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from rehrseg_nnunet.nnunet.output_channels import OutputChannels
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.nnunet.resampling import set_order_along_z
from rehrseg_nnunet.nnunet.whole_files import beside


class ImageOnly(nn.Module):
    """A network's image alone, which is what a sliding window can put together.

    Args:
        network: its output has `image`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, patch: torch.Tensor) -> torch.Tensor:
        """(B, C, *size) to (B, P, *size)."""
        return self.network(patch).image


def synthesise(
    network: nn.Module, case: torch.Tensor, planned: PlannedDataset, *, channels: int, device: torch.device
) -> np.ndarray:
    """A network's image of a whole case: nnU-Net's windows and weights, without mirroring.

    Args:
        network: of teacher or keeper; it is in evaluation mode afterwards.
        case: (C, D, H, W), the channels that it takes.
        planned: the dataset under its plans.
        channels: P, those that it gives.
        device: where it is.

    Returns:
        (P, D, H, W) float32.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # it says on every CPU that it is no GPU
        predictor = nnUNetPredictor(use_mirroring=False, device=device, allow_tqdm=False)
    plans, configuration, dataset_json = planned.plans_manager, planned.configuration_manager, planned.dataset_json
    predictor.manual_initialization(ImageOnly(network), plans, configuration, None, dict(dataset_json), "", None)
    # declared as nnU-Net's class, of which the window takes no more than this
    predictor.label_manager = OutputChannels(predictor.label_manager, channels)  # pyright: ignore[reportAttributeAccessIssue]
    return torch.as_tensor(predictor.predict_sliding_window_return_logits(case)).float().cpu().numpy()


def file_stems(stem: str, channels: Sequence[int]) -> list[str]:
    """Where the images of a case go, without ending: the stem itself, or one `_0001`, ... for each of several channels.

    Args:
        stem: of the case.
        channels: the paired dataset's numbers of the privileged ones.
    """
    return [stem] if len(channels) == 1 else [beside(stem, f"_{channel:04d}") for channel in channels]


def in_case_grid(
    image: np.ndarray,
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> np.ndarray:
    """One channel of a preprocessed case's image on the grid of the case's file.

    It is resampled linearly where the plans' spacing is another. What nnU-Net cropped, which was 0 in every channel,
    becomes the image's least value.

    Args:
        image: (D, H, W), preprocessed.
        properties: of the preprocessed case.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's, of the plans' configuration.

    Returns:
        (z, y, x) float32, in the order of the file's array.
    """
    spacing = [float(properties["spacing"][axis]) for axis in plans_manager.transpose_forward]
    planned = [*spacing[: 3 - len(configuration_manager.spacing)], *configuration_manager.spacing]
    cropped = tuple(int(n) for n in properties["shape_after_cropping_and_before_resampling"])
    if cropped != image.shape:
        configuration = deepcopy(configuration_manager.configuration)
        set_order_along_z(configuration, 1, kinds=("probabilities",))
        resample = ConfigurationManager(configuration).resampling_fn_probabilities
        image = np.asarray(resample(image[None].astype(np.float32), cropped, planned, spacing))[0]
    whole = np.full(properties["shape_before_cropping"], image.min(), dtype=np.float32)
    whole[tuple(slice(*edges) for edges in properties["bbox_used_for_cropping"])] = image
    return whole.transpose([int(axis) for axis in plans_manager.transpose_backward])

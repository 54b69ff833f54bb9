"""Better scans as a trained keeper sees them, made from files: nnU-Net's predictor, with images for segmentations.

Everything around the network is `HRPredictor`'s: cases, checks, workers, files that appear when they are whole. What it
calls grids are the privileged channels here, each written on the case's own grid.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.guided.networks import build_keeper, stored_channels
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.guided.synthesis import in_case_grid, synthesise
from rehrseg_nnunet.nnunet.weights import read_checkpoint
from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.configuration import GRIDS
from rehrseg_nnunet.prediction.export import exporting_with, stems
from rehrseg_nnunet.prediction.output_grid import NativeGrid
from rehrseg_nnunet.prediction.predictor import HRPredictor

KEEPER_TRAINER = "KnowledgeKeeperTrainer"


@dataclass(frozen=True)
class ChannelGrid(NativeGrid):
    """The case's own grid, for one of the privileged channels.

    Attributes:
        number: of the channel among the privileged ones.
        channel: its number in the paired dataset.
        masked: whether it is normalised within a mask.
    """

    number: int
    channel: int
    masked: bool

    @property
    def name(self) -> str:
        """What tells its files from another channel's, as in nnU-Net's names of images."""
        return f"{self.channel:04d}"

    def properties(
        self, properties: dict[str, Any], plans_manager: Any, *, factor: int, case: str | None
    ) -> dict[str, Any]:
        """The input's properties."""
        return dict(properties)


class SynthesisPredictor(HRPredictor):
    """`HRPredictor` for a keeper; its images are written where segmentations would be.

    Takes the arguments of nnUNetPredictor.
    """

    def initialize_from_trained_model_folder(self, model_training_output_dir: str, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor.

        Args:
            model_training_output_dir: folder of a model that KnowledgeKeeperTrainer trained.
            *args: the folds.
            **kwargs: `checkpoint_name`, the file of each fold.

        Raises:
            ValueError: another trainer's model.
        """
        folder = Path(model_training_output_dir)
        folds, name = args[0], kwargs["checkpoint_name"]
        remedy = "train the keeper again"
        checkpoints = [read_checkpoint(folder / f"fold_{fold}" / name, remedy=remedy) for fold in folds]
        trainer, configuration = checkpoints[0]["trainer_name"], checkpoints[0]["init_args"]["configuration"]
        if not trainer.startswith(KEEPER_TRAINER):
            raise ValueError(f"{folder} must be a model of {KEEPER_TRAINER}, got one of {trainer}; see -tr, -m and -d")
        plans, dataset_json = (json.loads((folder / file).read_text()) for file in ("plans.json", "dataset.json"))
        resolved = PlansManager(deepcopy(plans)).get_configuration(configuration).configuration
        channels = stored_channels(resolved)
        plans_manager = PlansManager(source_plans(plans, configuration, resolved, channels))
        self.channels = channels
        masked = resolved["use_mask_for_norm"]
        self.grids = tuple(ChannelGrid(n, channel, masked[channel]) for n, channel in enumerate(channels.privileged))
        self.manual_initialization(
            build_keeper(resolved),
            plans_manager,
            plans_manager.get_configuration(configuration),
            [checkpoint["network_weights"] for checkpoint in checkpoints],
            source_dataset(dataset_json, channels),
            trainer,
            checkpoints[0]["inference_allowed_mirroring_axes"],
        )

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """The image of a preprocessed case.

        Args:
            input_image: (S, D, H, W).

        Returns:
            (P, D, H, W) float32, on the CPU.
        """
        image = synthesise(
            self.network.to(self.device),
            input_image,
            patch_size=self.configuration_manager.patch_size,
            device=self.device,
            step_size=self.tile_step_size,
        )
        return torch.from_numpy(image)

    def _planned(self) -> None:
        """No thick slices."""

    def _exporting(self) -> AbstractContextManager[None]:
        """Images are exported."""
        return exporting_with(export_images)


def source_dataset(dataset_json: Mapping[str, Any], channels: PairedChannels) -> dict[str, Any]:
    """The dataset.json of a paired dataset's source channels."""
    names = dataset_json["channel_names"]
    return {**dataset_json, "channel_names": {str(n): names[str(c)] for n, c in enumerate(channels.source)}}


def source_plans(
    plans: Mapping[str, Any], name: str, resolved: Mapping[str, Any], channels: PairedChannels
) -> dict[str, Any]:
    """The plans of a paired dataset's source channels.

    Args:
        plans: nnU-Net's; not changed.
        name: configuration.
        resolved: it, with inheritance resolved.
        channels: which of the dataset's are which.
    """
    result = deepcopy(dict(plans))
    kept = channels.source
    per_channel = ("normalization_schemes", "use_mask_for_norm")
    result["configurations"][name] = {
        **deepcopy(dict(resolved)),
        **{key: [resolved[key][channel] for channel in kept] for key in per_channel},
    }
    intensities = "foreground_intensity_properties_per_channel"
    result[intensities] = {str(n): plans[intensities][str(c)] for n, c in enumerate(kept)}
    return result


def export_images(
    images: Logits,
    properties: dict[str, Any],
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json: dict[str, Any],
    output: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """Write a case's images in place of nnU-Net's export, whose arguments these are.

    Args:
        images: (P, D, H, W), preprocessed.
        properties: from `HRConfigurationManager.output_properties`.
        configuration_manager: of a `SynthesisPredictor`.
        plans_manager: nnU-Net's.
        dataset_json: of the source channels.
        output: of the case, without ending.
        save_probabilities: there are none.
        num_threads_torch: of nnU-Net's own export.
    """
    grids: Sequence[ChannelGrid] = configuration_manager.grids
    writer = plans_manager.image_reader_writer_class()
    for grid, own, stem in zip(grids, properties[GRIDS], stems(output, grids), strict=True):
        image = np.asarray(torch.as_tensor(images[grid.number]).float())
        values = in_case_grid(image, own, plans_manager, configuration_manager, masked=grid.masked)
        Path(stem).parent.mkdir(parents=True, exist_ok=True)
        writer.write_image(values, stem + dataset_json["file_ending"], own)

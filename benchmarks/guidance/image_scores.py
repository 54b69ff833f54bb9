"""Scores of what teacher, keeper and rival make of the pairs' validation cases, by one code for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from benchmarks.guidance.benchmark import CONFIGURATION, FOLD
from benchmarks.guidance.runs import Run
from benchmarks.guidance.trainers.guidance_l1_unet_trainer import L1UNetTrainer
from rehrseg_nnunet.config.guidance import ResolvedGuidance, load_config
from rehrseg_nnunet.guided.image_scores import image_scores
from rehrseg_nnunet.guided.losses import feature_error
from rehrseg_nnunet.guided.networks import build_keeper, build_teacher, stored_channels
from rehrseg_nnunet.guided.report import RECONSTRUCTED, SOURCE, SYNTHESISED, PairedCase, best_line, load_pair
from rehrseg_nnunet.guided.synthesis import synthesise, windows
from rehrseg_nnunet.guided.teacher import Teacher
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.weights import hash_weights, load_frozen, read_checkpoint

FEATURES = "feature_error"
STEP_SIZE = 0.5
Scores = dict[str, dict[str, dict[str, float]]]  # case, image, metric


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A finished training of the pairs.

    Attributes:
        run: of a row that synthesises.
    """

    run: Run

    @cached_property
    def plans(self) -> PlansManager:
        """The plans that it was trained with."""
        return PlansManager(str(self.run.model / "plans.json"))

    @cached_property
    def planned(self) -> ConfigurationManager:
        """Of these plans."""
        return self.plans.get_configuration(CONFIGURATION)

    @property
    def configuration(self) -> dict[str, Any]:
        """Its content."""
        return self.planned.configuration

    @property
    def settings(self) -> ResolvedGuidance:
        """The `guidance` block, with what its trainer changed."""
        return load_config(self.configuration)

    @cached_property
    def network(self) -> nn.Module:
        """With the weights of the final checkpoint, frozen."""
        network = _untrained(self)
        remedy = f"remove {self.run.folder} and run again"
        return load_frozen(network, self.run.folder / FINAL_CHECKPOINT, sizes=self.run.plans_name, remedy=remedy)

    @property
    def weights(self) -> str:
        """Hash of its weights."""
        return hash_weights(self.network.state_dict())

    def image(self, case: torch.Tensor) -> np.ndarray:
        """What it makes of a case (C, D, H, W)."""
        size = self.configuration["patch_size"]
        return synthesise(self.network, case, patch_size=size, device=torch.device("cpu"), step_size=STEP_SIZE)

    def trained_for(self) -> float:
        """Wall seconds of its epochs, as nnU-Net's log has them."""
        log = read_checkpoint(self.run.folder / FINAL_CHECKPOINT, remedy="train again")["logging"]
        return float(np.subtract(log["epoch_end_timestamps"], log["epoch_start_timestamps"]).sum())


def _untrained(model: ImageModel) -> nn.Module:
    if model.run.row.trainer == "GuidanceTeacherTrainer":
        return build_teacher(model.configuration)
    if model.run.row.trainer != "L1UNetTrainer":
        return build_keeper(model.configuration)
    return L1UNetTrainer.build_network_architecture(model.plans, model.planned, 0, 0)  # channels are in the plans


class ValidationCases:
    """The validation cases of the pairs.

    Args:
        model: a finished training of them.
    """

    def __init__(self, model: ImageModel) -> None:
        folder = model.run.benchmark.folder("preprocessed", "pairs")
        dataset_json = json.loads((folder / "dataset.json").read_text())
        self.identifiers = sorted(json.loads((folder / "splits_final.json").read_text())[FOLD]["val"])
        self.channels = stored_channels(model.configuration)
        self.labels = model.plans.get_label_manager(dataset_json)
        data = str(folder / model.configuration["data_identifier"])
        self.dataset = infer_dataset_class(data)(data, self.identifiers)

    def load(self, identifier: str) -> PairedCase:
        """A case."""
        return load_pair(self.dataset, identifier, self.channels, self.labels)


def score(run: Run) -> None:
    """Score a run's images of the validation cases; nothing if that was done of these weights.

    The file holds the images' scores by case, image and metric: PSNR, SSIM and NMSE as in this package's reports, and
    the distance in the features of the default teacher. A teacher's file has its reconstruction, the bound, and the
    source after the best line.
    """
    model, judge = ImageModel(run), ImageModel(run.other("teacher"))
    made_by = {"weights": model.weights, "features_of": judge.weights}
    kept = read(run.scores)
    if kept is not None and {key: kept.get(key) for key in made_by} == made_by:
        return
    cases = ValidationCases(judge)
    scores = {identifier: _score_case(model, judge, cases.load(identifier)) for identifier in cases.identifiers}
    seconds = model.trained_for()
    run.scores.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(run.scores, json.dumps({**made_by, "epochs_seconds": seconds, "cases": scores}, indent=1))


def read(file: Path) -> dict[str, Any] | None:
    """Scores that were kept, None if there are none yet."""
    return json.loads(file.read_text()) if file.is_file() else None


def images_of(model: ImageModel, case: PairedCase) -> dict[str, np.ndarray]:
    """What there is to score of a run: see `score`."""
    if not isinstance(model.network, Teacher):
        return {SYNTHESISED: model.image(case.source)}
    line = best_line(case.source.numpy(), case.privileged.numpy(), case.inside)
    return {SOURCE: line, RECONSTRUCTED: model.image(case.privileged)}


def _score_case(model: ImageModel, judge: ImageModel, case: PairedCase) -> dict[str, dict[str, float]]:
    truth, teacher = case.privileged.numpy(), judge.network
    assert isinstance(teacher, Teacher)
    image_range = teacher.get_buffer("image_range").tolist()
    patch_size = judge.configuration["patch_size"]
    return {
        name: {
            **image_scores(truth, image, case.inside, image_range),
            FEATURES: feature_distance(teacher, truth, image, patch_size=patch_size),
        }
        for name, image in images_of(model, case).items()
    }


def feature_distance(teacher: Teacher, truth: np.ndarray, image: np.ndarray, *, patch_size: Sequence[int]) -> float:
    """L_dis of the teacher's features of two images: mean over the windows that images are synthesised in.

    Args:
        teacher: frozen.
        truth: (P, D, H, W).
        image: the same shape.
        patch_size: of a window.
    """
    pad: Any = pad_nd_image  # declared without None
    pair, _ = pad(
        torch.from_numpy(np.stack([truth, image])).float(), tuple(patch_size), "constant", {"value": 0}, True, None
    )
    with torch.no_grad():
        errors = [
            feature_error(*(teacher.features(own[(slice(None), slice(None), *box)]) for own in pair.split(1)))
            for box in windows(pair.shape[2:], patch_size, STEP_SIZE)
        ]
    return float(torch.stack(errors).mean())


def values_of(scores: Mapping[str, Any], image: str, metric: str) -> dict[str, float]:
    """One metric of one image by case."""
    return {case: images[image][metric] for case, images in scores["cases"].items()}

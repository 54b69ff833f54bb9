"""Trainings side by side for as many epochs as their seconds allow, scored on arrays: no file is written or read."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.gpu.cost import as_predictor
from benchmarks.gpu.data import SMALL, GPUData
from benchmarks.gpu.parts import Lengths
from benchmarks.gpu.scheduler import Context
from benchmarks.gpu.trainings import build, stop_workers, wait_for
from rehrseg_nnunet.evaluation.metrics import dice
from rehrseg_nnunet.evaluation.surfaces import hd95
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.label_channels import head_labels
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.restoration.report import Comparison, mean_scores
from rehrseg_nnunet.self_sr.export import super_resolve_case
from rehrseg_nnunet.self_sr.report import restoration_scores
from rehrseg_nnunet.slices.slice_profile import degrade_labels

VALIDATION_STEPS = 5
SCORING_SHARE = 0.3  # of a training's seconds, kept for predicting and scoring


class _OutOfTimeError(Exception):
    pass


def train(context: Context, *, name: str, trainer: str, data: str, until: float) -> Iterator[dict[str, Any]]:
    """Train and score.

    Args:
        context: of the task.
        name: of the training.
        trainer: class name.
        data: "thick" or "interpolated".
        until: share of the part's seconds at whose end it must be scored.
    """
    settings = context.settings
    os.environ["nnUNet_n_proc_DA"] = str(settings.lengths.training_workers)
    end = context.part_began + until * (context.part_until - context.part_began)
    stop = end - SCORING_SHARE * max(0.0, end - time.monotonic())
    training = build(trainer, getattr(settings.data, data), SMALL, device=settings.device)
    training.num_iterations_per_epoch = settings.lengths.epoch_steps
    training.num_val_iterations_per_epoch = VALIDATION_STEPS
    training.logger.plot_progress_png = lambda *_: None  # it takes a second an epoch
    torch.backends.cudnn.benchmark = settings.device == "cuda"
    probed: dict[str, float] = {}
    _plan_epochs(training, stop, probed, settings.lengths)
    began = time.monotonic()
    _run(training, stop)
    seconds = time.monotonic() - began
    log = training.logger.get_value("train_losses", step=None)
    yield {
        "name": name,
        "trainer": trainer,
        "data": data,
        "epochs": training.current_epoch,
        "planned_epochs": training.num_epochs,
        "steps": training.current_epoch * training.num_iterations_per_epoch,
        "batch_size": training.batch_size,
        "train_seconds": seconds,
        "losses": [float(loss) for loss in log],
        **probed,
    }
    scores = _restoration if trainer == "SelfSRTrainer" else _segmentation
    yield from ({"name": name, **record} for record in scores(training, context, data, end))


def _plan_epochs(trainer: Any, stop: float, probed: dict[str, float], lengths: Lengths) -> None:
    """After the start of the training, time a few steps beside whatever else runs, undo them, and set the epochs."""
    begin = trainer.on_train_start

    def on_train_start() -> None:
        begin()
        step_s = _step_seconds(trainer, lengths)
        epoch_s = step_s * (trainer.num_iterations_per_epoch + trainer.num_val_iterations_per_epoch / 2)
        epochs = int(0.9 * (stop - time.monotonic()) / epoch_s)
        trainer.num_epochs = min(lengths.most_epochs, max(1, epochs))
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        probed["probed_step_s"] = step_s

    trainer.on_train_start = on_train_start


def _step_seconds(trainer: Any, lengths: Lengths) -> float:
    """Seconds of a step with its batch from the loader, after some to warm up; weights and scaler stay."""
    weights = copy.deepcopy(unwrap(trainer.network).state_dict())
    scale = None if trainer.grad_scaler is None else copy.deepcopy(trainer.grad_scaler.state_dict())
    trainer.on_train_epoch_start()
    for probe in range(lengths.warm_up + lengths.timed_steps):
        if probe == lengths.warm_up:
            wait_for(trainer.device.type)
            began = time.perf_counter()
        trainer.train_step(next(trainer.dataloader_train))
        trainer._step = 0
    wait_for(trainer.device.type)
    seconds = (time.perf_counter() - began) / lengths.timed_steps
    unwrap(trainer.network).load_state_dict(weights)
    if scale is not None:
        trainer.grad_scaler.load_state_dict(scale)
    # what the probe logged is of no epoch
    trainer.logger.local_logger.my_fantastic_logging["lrs"].clear()
    return seconds


def _run(trainer: Any, stop: float) -> None:
    """nnU-Net's training, ended after the epoch in which the time is over."""
    finish_epoch = trainer.on_epoch_end

    def on_epoch_end() -> None:
        finish_epoch()
        if time.monotonic() > stop and trainer.current_epoch < trainer.num_epochs:
            raise _OutOfTimeError

    end_training = trainer.on_train_end

    def on_train_end() -> None:
        stop_workers(trainer)
        end_training()

    trainer.on_epoch_end, trainer.on_train_end = on_epoch_end, on_train_end
    try:
        trainer.run_training()
    except _OutOfTimeError:
        trainer.on_train_end()


def _in_time(context: Context, cases: Sequence[str], end: float) -> Iterator[str]:
    """The first cases, as long as there is time to score another one: at least one."""
    for number, case in enumerate(cases[: context.settings.lengths.scored_cases]):
        if number and time.monotonic() > end:
            return
        yield case


def _restoration(trainer: Any, context: Context, _: str, end: float) -> Iterator[dict[str, Any]]:
    """Image and labels of the validation cases against the true thin slices, beside plain interpolation."""
    data = context.settings.data
    planned, network = data.planned(data.thick), unwrap(trainer.network).eval()
    cases, rows = data.cases(data.thick), []
    for case in _in_time(context, data.validation, end):
        image, labels, _, _ = cases.load_case(case)
        lr = np.asarray(image[:], dtype=np.float32), np.asarray(labels[:]).astype(np.int16)
        truth = data.truth(case)
        comparison = Comparison("true HR", lr, (truth["image"], truth["labels"].astype(np.int16)), planned.spacing_mm)
        config = trainer.config.self_sr.export
        hr = super_resolve_case(network, *lr, planned.label_manager, config=config)
        rows.append(restoration_scores(comparison, hr, planned.label_manager, method="self-SR"))
    for method, scores in mean_scores(rows).items():
        yield {"method": method, "set": "validation", "cases": len(rows), **scores}


def _segmentation(trainer: Any, context: Context, kind: str, end: float) -> Iterator[dict[str, Any]]:
    """Dice and HD95 on thick and thin slices, each set's records when the set is done."""
    data = context.settings.data
    ways = _ways(trainer, data, kind)
    for dataset, cases in (("validation", data.validation), ("test", data.test)):
        rows = [score for case in _in_time(context, cases, end) for score in _case_scores(data, case, ways)]
        yield from _means(rows, dataset)


Segment = Callable[[str, np.ndarray], dict[tuple[str, str], np.ndarray]]


def _ways(trainer: Any, data: GPUData, kind: str) -> Segment:
    """What segments a case (name, thick image): label maps by (resolution, way)."""
    plain = as_predictor(trainer, nnUNetPredictor)
    manager, factor = trainer.label_manager, data.factor

    def labels(predictor: nnUNetPredictor, image: np.ndarray) -> np.ndarray:
        logits = torch.as_tensor(predictor.predict_sliding_window_return_logits(torch.from_numpy(image)))
        return np.asarray(manager.convert_logits_to_segmentation(logits.float().cpu()))

    if kind == "interpolated":
        fine = trainer.dataset_class(trainer.preprocessed_dataset_folder)

        def on_thin_slices(case: str, _: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
            image = np.asarray(fine.load_case(case)[0][:], dtype=np.float32)
            thin = labels(plain, image)
            centres = degrade_labels(torch.from_numpy(thin.astype(np.int16)), factor, 0).numpy()
            return {("HR", "itself"): thin, ("LR", ""): centres}

        return on_thin_slices
    at_hr = as_predictor(trainer, HRPredictor)
    way = "HR head" if hasattr(trainer, "open_pseudo_hr") else "interpolated logits"

    def on_thick_slices(_: str, image: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
        thick = labels(plain, image)
        return {
            ("LR", ""): thick,
            ("HR", "repeated slices"): thick.repeat(factor, 0),
            ("HR", way): labels(at_hr, image),
        }

    return on_thick_slices


def _case_scores(data: GPUData, case: str, segment: Segment) -> Iterator[dict[str, Any]]:
    image, labels, _, _ = data.cases(data.thick).load_case(case)
    planned = data.planned(data.thick)
    slices_mm, *in_plane = planned.spacing_mm
    spacing = {"LR": (slices_mm, *in_plane), "HR": (slices_mm / data.factor, *in_plane)}
    truth = {"LR": np.asarray(labels[:])[0], "HR": data.truth(case)["labels"][0]}
    for (resolution, way), found in segment(case, np.asarray(image[:], dtype=np.float32)).items():
        for group in head_labels(planned.label_manager):
            if group == (0,):
                continue
            pair = np.isin(truth[resolution], group), np.isin(found, group)
            distance = hd95(*pair, spacing[resolution])
            yield {"resolution": resolution, "way": way, "dice": dice(*pair), "hd95_mm": distance}


def _means(rows: Sequence[dict[str, Any]], dataset: str) -> Iterator[dict[str, Any]]:
    """Means over cases and labels; nan, where there is no such structure, left out."""
    for resolution, way in dict.fromkeys((row["resolution"], row["way"]) for row in rows):
        chosen = [row for row in rows if (row["resolution"], row["way"]) == (resolution, way)]
        means = {}
        for metric in ("dice", "hd95_mm"):
            values = [row[metric] for row in chosen if np.isfinite(row[metric])]
            means[metric] = float(np.mean(values)) if values else None
            means[f"{metric}_n"] = len(values)
        yield {"set": dataset, "resolution": resolution, "way": way, **means}

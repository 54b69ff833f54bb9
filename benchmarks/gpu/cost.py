"""Steps and batches a second, memory, and seconds a case."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from benchmarks.gpu.data import DEFAULT, SMALL
from benchmarks.gpu.scheduler import Context
from benchmarks.gpu.trainings import build, peak_gib, show_companions, start, stop_workers, wait_for, without_companions
from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.prediction.fold_validation import use_network_of
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.self_sr.export import super_resolve_case
from rehrseg_nnunet.self_sr.network import build_self_sr_network


def _started(context: Context, trainer: str, plans: str, data: str) -> Any:
    settings = context.settings
    show_companions(trainer, settings.data, context.results)
    training = build(trainer, getattr(settings.data, data), plans, device=settings.device, steps=1)
    without_companions(training)
    start(training)
    return training


def steps(context: Context, *, trainer: str, runs: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    """Time training steps without the loader, and the memory that they take, for plans and data of each run."""
    device = context.settings.device
    torch.backends.cudnn.benchmark = device == "cuda"  # as in nnUNetv2_train
    for plans, data in runs:
        yield _timed_steps(context, trainer, plans, data)
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def _timed_steps(context: Context, trainer: str, plans: str, data: str) -> dict[str, Any]:
    device, lengths = context.settings.device, context.settings.lengths
    training = _started(context, trainer, plans, data)
    batch = next(training.dataloader_train)
    if hasattr(training, "uncertainty_epochs"):
        training.loss.use_uncertainty = True  # the dearer phase
    times: list[float] = []
    while len(times) < lengths.warm_up + lengths.timed_steps and (len(times) < 2 or context.seconds_left > 3):
        training._step = 0  # stage 1's schedule knows no more steps than an epoch has
        began = time.perf_counter()
        training.train_step(batch)
        wait_for(device)
        times.append(time.perf_counter() - began)
    timed = times[min(lengths.warm_up, len(times) - 1) :]
    return {
        "trainer": trainer,
        "plans": plans,
        "data": data,
        "compiled": hasattr(training.network, "_orig_mod"),
        "batch_size": training.batch_size,
        "input": list(batch["data"].shape[1:]),
        "parameters": sum(p.numel() for p in unwrap(training.network).parameters()),
        "timed": len(timed),
        "steps_per_s": 1 / statistics.median(timed),
        "first_step_s": times[0],
        **peak_gib(device),
    }


def loader(context: Context, *, trainer: str, data: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Batches a second of the training loader with its transforms, by data and workers."""
    torch.set_num_threads(1)
    for one, workers in itertools.product(data, context.settings.lengths.workers):
        os.environ["nnUNet_n_proc_DA"] = str(workers)
        training = _started(context, trainer, DEFAULT, one)
        batches = training.dataloader_train
        for _ in range(min(workers, 2) + 6):  # what was made ahead of time
            next(batches)
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < context.settings.lengths.loader_seconds or not count:
            next(batches)
            count += 1
        seconds = time.perf_counter() - began
        stop_workers(training)
        yield {"trainer": trainer, "data": one, "workers": workers, "batches_per_s": count / seconds}


def whole_cases(context: Context, *, data: str) -> Iterator[dict[str, Any]]:
    """Seconds for one case: nnU-Net, thin slices with and without HR head, nnU-Net on interpolated slices, export."""
    settings = context.settings
    dataset, device = getattr(settings.data, data), settings.device
    cases = settings.data.cases(dataset)
    identifier = sorted(cases.identifiers)[0]
    image, labels, _, _ = cases.load_case(identifier)
    thick, labels = np.asarray(image[:], dtype=np.float32), np.asarray(labels[:])
    planned = settings.data.planned(dataset, DEFAULT)
    fine_folder = interpolated_folder(settings.data.cases_folder(dataset), planned.factor)
    fine = np.asarray(type(cases)(str(fine_folder), [identifier]).load_case(identifier)[0][:], dtype=np.float32)
    for name, (predict, volume, patch) in _predictions(context, dataset, thick, fine).items():
        corner = volume[(slice(None), *(slice(size) for size in patch))]
        seconds = _timed(lambda: predict(corner), lambda: predict(volume), device)  # noqa: B023 (called at once)
        yield {"data": data, "what": name, "shape": list(thick.shape), **seconds}
    trainer = build("SelfSRTrainer", dataset, DEFAULT, device=device)
    heads = planned.label_manager.num_segmentation_heads
    network = build_self_sr_network(trainer.config, len(thick), heads).eval().to(device)
    export = trainer.config.self_sr.export

    def write(slices: int) -> None:
        case = thick[:, :slices], labels[:, :slices]
        super_resolve_case(network, *case, planned.label_manager, config=export)

    seconds = _timed(lambda: write(2), lambda: write(thick.shape[1]), device)
    yield {"data": data, "what": "export of a pseudo-HR case", "shape": list(thick.shape), **seconds}


Prediction = tuple[Callable[[np.ndarray], Any], np.ndarray, Sequence[int]]  # function, volume (C, D, H, W), patch


def _predictions(context: Context, dataset: str, thick: np.ndarray, fine: np.ndarray) -> dict[str, Prediction]:
    """By name, what predicts a case; the last has the plans of the interpolated cases where there are any."""
    data, device = context.settings.data, context.settings.device
    plain = build("nnUNetTrainer", dataset, DEFAULT, device=device)
    head = build("REHRSegTrainer", dataset, DEFAULT, device=device)
    rival = build("nnUNetTrainer", data.interpolated, SMALL, device=device) if dataset == data.thick else plain
    for trainer in dict.fromkeys((plain, head, rival)):
        trainer.initialize()

    def predict(trainer: Any, kind: type[nnUNetPredictor], volume: np.ndarray) -> Prediction:
        predictor, patch = as_predictor(trainer, kind), trainer.configuration_manager.patch_size
        return lambda part: predictor.predict_sliding_window_return_logits(torch.from_numpy(part)), volume, patch

    own = "its small plans" if rival is not plain else "the thick slices' patch"
    return {
        "nnU-Net on thick slices": predict(plain, nnUNetPredictor, thick),
        "thin slices by the HR head": predict(head, HRPredictor, thick),
        "thin slices by interpolated logits": predict(plain, HRPredictor, thick),
        f"nnU-Net on interpolated slices ({own})": predict(rival, nnUNetPredictor, fine),
    }


def as_predictor(trainer: Any, kind: type[nnUNetPredictor]) -> nnUNetPredictor:
    """A predictor of a trainer's network as it is, with mirroring as after training."""
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    predictor = kind(device=trainer.device, allow_tqdm=False)
    use_network_of(trainer, predictor)
    return predictor


def _timed(warm_up: Callable[[], Any], call: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds and memory of a call, after one of a small part, which loads the kernels."""
    warm_up()
    wait_for(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    call()
    wait_for(device)
    return {"seconds": time.perf_counter() - began, **peak_gib(device)}

"""nnU-Net's trainers as the tasks need them: built by nnU-Net, shortened, started, with a stand-in for stage 1."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args

from benchmarks.gpu.data import CONFIGURATION, DEFAULT, FOLD, SMALL, GPUData
from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.segmentation.certain_cases import CertainCases
from rehrseg_nnunet.segmentation.distillation import Distillation
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher
from rehrseg_nnunet.self_sr.network import build_self_sr_network


def build(name: str, dataset: str, plans: str, *, device: str, steps: int | None = None, epochs: int = 2) -> Any:
    """A trainer as `nnUNetv2_train` makes it, of a few steps if `steps` says so."""
    trainer = get_trainer_from_args(dataset, CONFIGURATION, FOLD, name, plans, device=torch.device(device))
    if steps is not None:
        trainer.num_epochs, trainer.num_iterations_per_epoch = epochs, steps
        trainer.num_val_iterations_per_epoch = 1
        # no drawing of progress.png: it takes longer than such an epoch
        trainer.logger.plot_progress_png = lambda *_: None
    return trainer


def show_companions(trainer: str, data: GPUData, results: Path) -> None:
    """Let a training in `results` find what `make_workspace` saved: keepers the teachers, others the baseline.

    A teacher's training must not find them: it would write there.
    """

    def found(folder: Path) -> list[Path]:
        if trainer.startswith("KnowledgeKeeperTrainer"):
            return [data.teacher(plans, folder).parent for plans in (SMALL, DEFAULT)]
        return [data.baseline(folder).parent]

    for target, source in zip(found(results), found(data.results("baseline")), strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(source, target_is_directory=True)


def start(trainer: Any) -> None:
    """What comes before the first step."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()


def next_epoch(trainer: Any) -> None:
    """Go on to the next epoch without validation; the logs keep their place."""
    trainer.current_epoch += 1
    trainer.on_train_epoch_start()


def without_companions(trainer: Any) -> None:
    """Train plans without stage 1 and baseline: interpolated cases with U = 0, a teacher of random weights."""
    trainer.start_from_trained = lambda: None
    if not hasattr(trainer, "open_pseudo_hr"):
        return

    def open_pseudo_hr() -> None:
        if not trainer.was_initialized:
            trainer.initialize()
        heads = trainer.label_manager.num_segmentation_heads
        network = build_self_sr_network(trainer.config, trainer.num_input_channels, heads).eval().requires_grad_(False)
        settings = trainer.config.segmentation
        trainer.loss.distillation = Distillation(
            SelfSRTeacher(network.to(trainer.device), trainer.label_manager),
            kind=settings.distillation,
            pool=settings.affinity_pool,
            label_manager=trainer.label_manager,
        )
        trainer.pseudo_hr_folder = interpolated_folder(trainer.preprocessed_dataset_folder, trainer.config.factor)

    cases = trainer.pseudo_hr_cases
    trainer.open_pseudo_hr = open_pseudo_hr
    trainer.pseudo_hr_cases = lambda identifiers: CertainCases(cases(identifiers))


def stop_workers(trainer: Any) -> None:
    """End the workers of a trainer's loaders at once: nnU-Net waits for 10 s or more until each loader has ended."""
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        loader._finish = lambda *_, **__: None  # what nnU-Net calls after a training and when it collects a loader
        loader.abort_event.set()
        for process in loader._processes:
            process.kill()


def wait_for(device: str) -> None:
    """Until the device has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: str) -> dict[str, float]:
    """Peak of the device's memory so far, on the CPU of this process."""
    if device == "cuda":
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return {"peak_gib": allocated / 2**30, "reserved_gib": reserved / 2**30}
    return {"peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}

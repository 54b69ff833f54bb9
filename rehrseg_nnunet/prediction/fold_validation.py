"""HR predictions of a fold's validation cases, from a trainer at the end of its training."""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping
from pathlib import Path
from time import sleep

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.file_path_utilities import check_workers_alive_and_busy
from torch import distributed as dist

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.config.segmentation import HRSource
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.nnunet.whole_files import staging
from rehrseg_nnunet.prediction.output_grid import hr_properties
from rehrseg_nnunet.prediction.predictor import HRPredictor


def use_network_of(trainer: TrainerMixin, predictor: nnUNetPredictor) -> None:
    """Let a predictor have a trainer's network as it is, without deep supervision, and its mirroring."""
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )


def predict_hr_validation(trainer: TrainerMixin, *, hr_from: HRSource) -> None:
    """Write `validation_hr/<case>` for every validation case of a trainer whose network has an HR head.

    As in nnU-Net's own validation: sliding window with mirroring, cases split over DDP ranks, files written by spawned
    workers.

    Args:
        trainer: in training, or of a finished training.
        hr_from: see `HRPredictor`.

    Raises:
        OSError: a file could not be written; named, with the remedy.
    """
    predictor = HRPredictor(device=trainer.device, allow_tqdm=False, hr_from=hr_from)
    use_network_of(trainer, predictor)
    folder = Path(trainer.output_folder, "validation_hr")
    folder.mkdir(exist_ok=True)
    keys = sorted(trainer.do_split()[1])
    if trainer.is_ddp:
        keys = keys[trainer.local_rank :: dist.get_world_size()]
    with staging(remedy="free space there and run again with --val") as stage:
        dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
        _predict_cases(trainer, predictor, dataset, {key: stage(str(folder / key)) for key in keys})
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    compute_gaussian.cache_clear()
    trainer.print_to_log_file(f"HR predictions of {len(keys)} validation cases are in {folder}")


def _predict_cases(trainer: TrainerMixin, predictor: HRPredictor, dataset: Cases, outputs: Mapping[str, str]) -> None:
    with multiprocessing.get_context("spawn").Pool(default_num_processes) as pool:
        workers = list(pool._pool)  # pyright: ignore[reportAttributeAccessIssue] # private, nnU-Net takes it too
        exports = []
        for key in outputs:
            # as in nnU-Net: wait rather than queue large arrays, and notice workers that were killed
            while check_workers_alive_and_busy(pool, workers, exports, allowed_num_queued=2):
                sleep(0.1)
            trainer.print_to_log_file(f"predicting {key} in HR")
            image, _, _, properties = dataset.load_case(key)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:])).cpu().numpy()
            arguments = (
                logits,
                hr_properties(properties, predictor.plans_manager, predictor.factor),
                predictor.configuration_manager,
                predictor.plans_manager,
                trainer.dataset_json,
                outputs[key],
            )
            exports.append(pool.apply_async(export_prediction_from_logits, arguments))
        while not all(export.ready() for export in exports):
            check_workers_alive_and_busy(pool, workers, exports)
            sleep(0.1)
        for export in exports:
            export.get()

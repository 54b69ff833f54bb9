"""HR predictions of a fold's validation cases, from a trainer at the end of its training."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import distributed as dist

from rehrseg_nnunet.inference.hr_predictor import HRPredictor, hr_properties


def predict_hr_validation(trainer: nnUNetTrainer) -> None:
    """Write `validation_hr/<case>` for every validation case of a trainer whose network has an HR head.

    As in nnU-Net's own validation: sliding window with mirroring, cases split over DDP ranks, files written by spawned
    workers.
    """
    predictor = HRPredictor(device=trainer.device, allow_tqdm=False)
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
    folder = Path(trainer.output_folder, "validation_hr")
    folder.mkdir(exist_ok=True)
    keys = sorted(trainer.do_split()[1])
    if trainer.is_ddp:
        keys = keys[trainer.local_rank :: dist.get_world_size()]
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, keys)
    with multiprocessing.get_context("spawn").Pool(default_num_processes) as pool:
        exports = []
        for key in keys:
            trainer.print_to_log_file(f"predicting {key} in HR")
            image, _, _, properties = dataset.load_case(key)
            logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(image[:])).cpu().numpy()
            arguments = (
                logits,
                hr_properties(properties, trainer.plans_manager, predictor.factor),
                predictor.configuration_manager,
                trainer.plans_manager,
                trainer.dataset_json,
                str(folder / key),
            )
            exports.append(pool.apply_async(export_prediction_from_logits, arguments))
        for export in exports:
            export.get()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    compute_gaussian.cache_clear()
    trainer.print_to_log_file(f"HR predictions of {len(keys)} validation cases are in {folder}")

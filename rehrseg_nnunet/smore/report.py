"""How good SMORE is: PSNR, SSIM and label Dice against true HR volumes, beside plain interpolation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.restoration.report import RestorationReport, mean_scores, method_scores, true_hr_case
from rehrseg_nnunet.smore.export import smore_case
from rehrseg_nnunet.smore.network import WDSR

SMORE = "SMORE"


def report_smore(
    network: WDSR,
    dataset: nnUNetBaseDataset,
    *,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: Mapping[str, Any],
    raw_folder: Path | None,
) -> RestorationReport:
    """Score the validation cases whose true HR volumes lie beside the raw data; without any the report is empty.

    Args:
        network: trained.
        dataset: preprocessed LR validation cases.
        plans_manager: nnU-Net's.
        configuration_manager: nnU-Net's.
        dataset_json: nnU-Net's.
        raw_folder: dataset folder in nnUNet_raw, or None where it is not known.
    """
    label_manager = plans_manager.get_label_manager(dataset_json)
    rows = []
    for identifier in sorted(dataset.identifiers) if raw_folder is not None else ():
        image, labels, _, properties = dataset.load_case(identifier)
        lr = np.asarray(image[:], dtype=np.float32), np.asarray(labels[:]).astype(np.int16)
        truth = true_hr_case(
            raw_folder,
            identifier,
            lr[0],
            properties,
            plans_manager=plans_manager,
            dataset_json=dataset_json,
            factor=network.factor,
        )
        if truth is None:
            continue
        restored = {SMORE: smore_case(network, *lr, label_manager)}
        spacing_mm = list(configuration_manager.spacing)
        rows.append(method_scores(restored, lr, truth, label_manager, factor=network.factor, spacing_mm=spacing_mm))
    return (
        RestorationReport({"true HR": mean_scores(rows)}, {"true HR": len(rows)}) if rows else RestorationReport({}, {})
    )

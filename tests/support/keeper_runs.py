"""Folders as finished keepers leave them, without weights, and datasets that they might guide."""

import json
from copy import deepcopy
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT, FoldRun
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset

CONFIGURATIONS = {
    "3d_fullres": {
        "data_identifier": "p_3d_fullres",
        "batch_size": 2,
        "patch_size": [16, 24, 24],
        "spacing": [3.0, 1.0, 1.0],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
                "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            },
            "_kw_requires_import": [],
        },
        "guidance": {"base_features": 4, "keeper": {"kernel": 3}},
    },
    "2d": {
        "data_identifier": "p_2d",
        "batch_size": 2,
        "patch_size": [24, 32],
        "spacing": [1.0, 1.0],
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "conv_op": "torch.nn.modules.conv.Conv2d",
                "strides": [[1, 1], [2, 2]],
                "kernel_sizes": [[3, 3], [3, 3]],
            },
            "_kw_requires_import": [],
        },
    },
}


def plans_of(channels, *, transpose=(0, 1, 2), intensities=None, **changes):
    """Plans with both configurations; changes are of both."""
    configurations = deepcopy(CONFIGURATIONS)
    for configuration in configurations.values():
        configuration["normalization_schemes"] = ["ZScoreNormalization"] * channels
        configuration["use_mask_for_norm"] = [False] * channels
        configuration.update(changes)
    return {
        "dataset_name": "Dataset001_X",
        "plans_name": "p",
        "transpose_forward": list(transpose),
        "foreground_intensity_properties_per_channel": intensities or {},
        "configurations": configurations,
    }


def dataset_json_of(names):
    return {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {"background": 0, "a": 1},
        "file_ending": ".nii.gz",
    }


def write_keeper(
    results: Path,
    dataset="Dataset610_Pairs",
    *,
    trainer="KnowledgeKeeperTrainer",
    plans="p",
    configuration="3d_fullres",
    folds=(0,),
    names=("T1", "T1_7T"),
    **changes,
) -> FoldRun:
    """The last channel is the better scan; returns the first fold."""
    runs = [FoldRun(dataset, trainer, plans, configuration, fold, results) for fold in folds]
    for run in runs:
        run.folder.mkdir(parents=True)
        run.final_checkpoint.touch()
    channels = {"source": list(range(len(names) - 1)), "privileged": [len(names) - 1]}
    content = plans_of(len(names), guidance_channels=channels, **changes)
    (runs[0].folder.parent / "plans.json").write_text(json.dumps(content))
    (runs[0].folder.parent / "dataset.json").write_text(json.dumps(dataset_json_of(names)))
    assert runs[0].final_checkpoint.name == FINAL_CHECKPOINT
    return runs[0]


def planned(names=("T1",), *, configuration="3d_fullres", **changes) -> PlannedDataset:
    """A dataset to be segmented."""
    manager = PlansManager(plans_of(len(names), **changes))
    return PlannedDataset(manager, manager.get_configuration(configuration), dataset_json_of(names))


def training(results: Path, *, trainer="GuidedTrainer", fold=0, configuration="3d_fullres", plans="p") -> FoldRun:
    """The training that looks for a keeper."""
    return FoldRun("Dataset510_Scans", trainer, plans, configuration, fold, results)

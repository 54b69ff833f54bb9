"""A trained model's folder of nnUNetTrainer with random weights: prediction needs no training to be compared."""

import json
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from known_answers import _configuration

FACTOR = 4
SPACING_MM = (4.0, 1.0, 1.0)
ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2]],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}


def write_random_model(results: Path, number=1, *, channels=1, folds=(0,), reader="SimpleITKIO", ending=".nii.gz"):
    """Labels 1 and 2 in patterns; returns `results/DatasetXXX_Random/nnUNetTrainer__nnUNetPlans__3d_fullres`."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configuration = _configuration(
        spacing_mm=SPACING_MM, factor=FACTOR, patch=(4, 16, 16), normalization="ZScoreNormalization"
    )
    configuration |= {
        "architecture": ARCHITECTURE,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
    }
    plans = {
        "dataset_name": f"Dataset{number:03d}_Random",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(channels)},
        "configurations": {"3d_fullres": configuration},
    }
    dataset = {
        "channel_names": {str(channel): f"MRI{channel}" for channel in range(channels)},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": 1,
        "file_ending": ending,
    }
    model = results / plans["dataset_name"] / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    (model / "dataset_fingerprint.json").write_text("{}")
    manager = PlansManager(plans)
    for fold in folds:
        torch.manual_seed(len(str(fold)) + (fold if isinstance(fold, int) else 0))
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration("3d_fullres"), channels, 3, enable_deep_supervision=False
        )
        folder = model / f"fold_{fold}"
        (folder / "validation").mkdir(parents=True)
        (folder / "validation" / "summary.json").write_text("{}")
        (folder / "progress.png").write_bytes(b"png")
        checkpoint = {
            "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres"},
            "network_weights": network.state_dict(),
            "inference_allowed_mirroring_axes": (0, 1, 2),
        }
        torch.save(checkpoint, folder / "checkpoint_final.pth")
    return model


def zipped(results: Path, file: Path) -> Path:
    """A zip file of all models of a results folder, with names as nnUNetv2_export_model_to_zip gives them."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(results.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(results))
    return file


def scan(seed=0, *, size=(18, 20, 5), spacing_mm=(1.0, 1.0, 4.0)) -> sitk.Image:
    """Smooth noise on an oblique grid; sizes in the order x, y, z."""
    values = np.random.default_rng(seed).normal(size=tuple(size)[::-1]).astype(np.float32)
    image = sitk.DiscreteGaussian(sitk.GetImageFromArray(values), 1.0)
    image.SetSpacing(spacing_mm)
    image.SetOrigin((-3.0, 20.5, 7.25))
    angle = np.deg2rad(10)
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    return image

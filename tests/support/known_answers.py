"""Scans of a known surface, and a model that finds it: where predictions must lie in mm, without any training.

Convention:
    A scan shows the height (mm) over a wavy sheet whose normal is the slice axis, linear along that axis:
    interpolating it linearly between slices is exact. Label 1 is above the sheet. The sheet stays between the centres
    of the first and the last slice, beyond which there is nothing to interpolate.
"""

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from workspace import Workspace, environment

TRAINER = "IntensityTrainer"
TRAINERS_FOLDER = Path(__file__).with_name("trainers")
CENTRE_MM = np.array([3.0, 20.0, -31.0])
RESOLUTION = 0.005  # 1 / GAIN: weaker inputs can vanish in the corners of nnU-Net's window, whose weights are 6e-8


@dataclass(frozen=True)
class Scan:
    """A file's grid, slices along one of its axes (0, 1, 2 = x, y, z), and the sheet in it."""

    slices: int = 6
    spacing_mm: tuple[float, float, float] = (4.0, 1.0, 1.1)  # slice axis first
    in_plane: tuple[int, int] = (17, 23)
    axis: int = 2
    rotation: np.ndarray = None
    sheet_mm: float | None = None  # amplitude of the waves

    def file_order(self, values):
        """Slice axis first to file order (x, y, z)."""
        ordered = list(values[1:])
        ordered.insert(self.axis, values[0])
        return ordered

    @property
    def amplitude_mm(self):
        return 0.35 * max(self.slices - 1, 1) * self.spacing_mm[0] if self.sheet_mm is None else self.sheet_mm

    def grid(self):
        """An empty image of the grid."""
        size, spacing = self.file_order((self.slices, *self.in_plane)), np.array(self.file_order(self.spacing_mm))
        rotation = np.eye(3) if self.rotation is None else self.rotation
        image = sitk.Image(size, sitk.sitkFloat32)
        image.SetSpacing(spacing.tolist())
        image.SetDirection(rotation.ravel().tolist())
        image.SetOrigin((CENTRE_MM - rotation @ ((np.array(size) - 1) / 2 * spacing)).tolist())
        return image

    def height_mm(self, image):
        """Height over the sheet at an image's voxels, in array order, from the image's header alone."""
        local, waves = self.local_mm(image), 1.0
        for axis, period_mm in zip((a for a in range(3) if a != self.axis), (11.0, 17.0), strict=True):
            waves = waves * np.cos(2 * np.pi * local[axis] / period_mm + 0.4)
        return local[self.axis] - self.amplitude_mm * waves

    def local_mm(self, image):
        """(3, *array): an image's voxels along the scan's axes x, y, z, from the scan's centre."""
        local = (positions_mm(image) - CENTRE_MM) @ (np.eye(3) if self.rotation is None else self.rotation)
        return local.transpose(3, 2, 1, 0)

    def write(self, file, *, dtype=np.float32, gain=None, lowest=-np.inf):
        """Intensities gain * height, in float at most 1 in size by default; returns the gain."""
        grid = self.grid()
        height = self.height_mm(grid)
        gain = 1 / np.abs(height).max() if gain is None else gain
        values = np.maximum(gain * height, lowest)
        image = sitk.GetImageFromArray((np.round(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype))
        image.CopyInformation(grid)
        sitk.WriteImage(image, str(file), True)
        return gain


def positions_mm(image):
    """(x, y, z index order, 3) physical points of all voxels."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return index @ direction.T + np.array(image.GetOrigin())


def oblique(seed=0):
    """Rotation matrix some twenty degrees off the axes."""
    axis = np.random.default_rng(seed).normal(size=3) * 0.2
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation, _ = np.linalg.qr(np.eye(3) + skew)
    return rotation * np.sign(np.diag(rotation))


def _configuration(*, spacing_mm, factor, patch, normalization):
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing_mm),
        "normalization_schemes": [normalization],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
        "rehrseg": {"factor": factor},
    }
    for kind, order in (("data", 3), ("seg", 1), ("probabilities", 1)):  # nnU-Net's defaults
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        options = {"is_seg": kind == "seg", "order": order, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{kind}_kwargs"] = options
    return configuration


def _planned(reader, example):
    """What nnU-Net's planner makes of one file: axes, that of the largest spacing first, and their spacings."""
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    _, properties = recursive_find_reader_writer_by_name(reader)().read_images([str(example)])
    axis = int(np.argmax(properties["spacing"]))
    forward = [axis, *(a for a in range(3) if a != axis)]
    return forward, [float(properties["spacing"][a]) for a in forward]


def write_model(
    folders: Workspace,
    number,
    *,
    example: Path,
    factor=4,
    spacing_mm=None,
    patch=(8, 16, 16),
    reader="SimpleITKIO",
    ending=".nii.gz",
    normalization="NoNormalization",
    intensities=None,
):
    """A trained model's folder of IntensityTrainer, planned for files like the example, of its spacing by default."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    forward, example_spacing_mm = _planned(reader, example)
    plans = {
        "dataset_name": f"Dataset{number:03d}_Known",
        "plans_name": "tiny",
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "transpose_forward": forward,
        "transpose_backward": [int(a) for a in np.argsort(forward)],
        "foreground_intensity_properties_per_channel": {"0": intensities or {}},
        "configurations": {
            "3d_fullres": _configuration(
                spacing_mm=spacing_mm or example_spacing_mm, factor=factor, patch=patch, normalization=normalization
            )
        },
    }
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "above": 1}, "file_ending": ending}
    fold = folders.results / plans["dataset_name"] / f"{TRAINER}__tiny__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold.parent / "plans.json").write_text(json.dumps(plans))
    (fold.parent / "dataset.json").write_text(json.dumps({**dataset, "numTraining": 5}))
    manager = PlansManager(plans)
    trainer = recursive_find_trainer_class_by_name(TRAINER)
    network = trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 2, False)
    checkpoint = {
        "trainer_name": TRAINER,
        "init_args": {"configuration": "3d_fullres"},
        "network_weights": network.state_dict(),
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, fold / "checkpoint_final.pth")


@contextmanager
def known_trainer(folders: Workspace):
    """nnU-Net finds IntensityTrainer beside the others."""
    with environment(nnUNet_extTrainer=os.pathsep.join([os.environ["nnUNet_extTrainer"], str(TRAINERS_FOLDER)])):
        yield folders

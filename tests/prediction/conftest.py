"""A ball whose place in mm is known, and a network that thresholds: predictions must lie where the ball is."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.segmentation.hr_head import add_hr_head

FACTOR = 4
SPACING = (4.0, 1.0, 1.1)
CENTRE_MM = np.array([3.0, 20.0, -31.0])
RADIUS_MM = 5.0


class _Encoder(nn.Module):
    strides = ((1, 1, 1), (1, 2, 2))
    output_channels = (1, 1)

    def forward(self, x):
        return [x, nn.functional.avg_pool3d(x, (1, 2, 2))]


class _Decoder(nn.Module):
    deep_supervision = False

    def __init__(self, heads):
        super().__init__()
        self.seg_layers = nn.ModuleList([nn.Conv3d(1, heads, 1)])

    def forward(self, skips):
        return self.seg_layers[-1](skips[0])


class ThresholdNetwork(nn.Module):
    """Logit of the last head is 3 times the image; with two heads the first is 0."""

    def __init__(self, heads):
        super().__init__()
        self.encoder = _Encoder()
        self.decoder = _Decoder(heads)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def threshold_network(heads=2, factor=FACTOR):
    """HR logits are the LR logits, interpolated linearly along z."""
    config = HRHeadConfig(label_mode="direct", upsampling="interpolate", hidden_features=2)
    network = add_hr_head(ThresholdNetwork(heads), factor=factor, teacher_channels=1, config=config)
    layer = network.decoder.seg_layers[-1]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        layer.weight[-1] = 3
        # relu(x) - relu(-x) = x lets the features pass
        layer.hr_head.first.weight[:, 0, 1, 1, 1] = torch.tensor([1.0, -1.0])
        layer.hr_head.second.weight[-1, :, 2, 2, 2] = torch.tensor([3.0, -3.0])
    return network


def plans(
    *,
    axis=0,
    reader="SimpleITKIO",
    patch=(4, 16, 16),
    resampling="resample_data_or_seg_to_shape",
    block=None,
    spacing_of_plans=SPACING,
    previous_stage=None,
):
    """Plans of a thick-slice dataset whose slices lie along one axis of the array, or of other voxels."""
    options = {"order": 1, "order_z": 0, "force_separate_z": None}
    if resampling == "resample_torch_fornnunet":
        options = {"mode": "linear", "force_separate_z": None}  # as nnU-Net plans it: nothing of the slice axis
    others = [a for a in range(3) if a != axis]
    forward = [axis, *others]
    configuration = {
        "data_identifier": "tiny",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(patch),
        "spacing": list(spacing_of_plans),
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    if previous_stage is not None:
        configuration["previous_stage"] = previous_stage
    elif spacing_of_plans == SPACING:
        configuration["rehrseg"] = {"factor": FACTOR, **(block or {})}
    for kind in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{kind}"] = resampling
        configuration[f"resampling_fn_{kind}_kwargs"] = {"is_seg": kind == "seg", **options}
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": reader,
        "label_manager": "LabelManager",
        "transpose_forward": forward,
        "transpose_backward": [int(a) for a in np.argsort(forward)],
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def dataset_json(*, regions=False):
    labels = {"background": 0, "whole": [1, 2], "part": [2]} if regions else {"background": 0, "ball": 1}
    extra = {"regions_class_order": [1, 2]} if regions else {}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz", **extra}


def positions_mm(image):
    """(x, y, z index order, 3) physical points of all voxels, from the file's header alone."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    direction = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    return index @ direction.T + np.array(image.GetOrigin())


def blank(size, spacing, *, rotation=None, centre=CENTRE_MM):
    """Image of a grid whose field of view is centred at a point."""
    image = sitk.Image([int(n) for n in size], sitk.sitkFloat32)
    image.SetSpacing([float(s) for s in spacing])
    rotation = np.eye(3) if rotation is None else rotation
    image.SetDirection(rotation.ravel().tolist())
    half = (np.array(size) - 1) / 2 * np.array(spacing)
    image.SetOrigin((np.array(centre) - rotation @ half).tolist())
    return image


def ball(grid, *, border=1):
    """Radius minus distance from the centre, in mm: positive inside. A border of exact zeros makes nnU-Net crop."""
    values = RADIUS_MM - np.linalg.norm(positions_mm(grid) - CENTRE_MM, axis=-1) + 1e-4
    inside = tuple(slice(border, n - border) for n in values.shape)
    cropped = np.zeros_like(values)
    cropped[inside] = values[inside]
    image = sitk.GetImageFromArray(cropped.transpose(2, 1, 0).astype(np.float32))
    image.CopyInformation(grid)
    return image


def centroid_mm(image):
    """Centroid of a label map's foreground."""
    mask = sitk.GetArrayFromImage(image).transpose(2, 1, 0) > 0
    return positions_mm(image)[mask].mean(0)


def oblique(seed=0):
    """Rotation matrix some twenty degrees off the axes."""
    axis = np.random.default_rng(seed).normal(size=3) * 0.2
    skew = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation, _ = np.linalg.qr(np.eye(3) + skew)
    return rotation * np.sign(np.diag(rotation))


def predictor(
    *,
    network=None,
    grid=None,
    mirror=True,
    gaussian=True,
    regions=False,
    parameters=None,
    hr_from=None,
    writers=(),
    **plan_options,
):
    manager = PlansManager(plans(**plan_options))
    network = threshold_network() if network is None else network
    result = HRPredictor(
        grid=grid,
        hr_from=hr_from,
        writers=writers,
        use_mirroring=mirror,
        use_gaussian=gaussian,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    result.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()] if parameters is None else parameters,
        dataset_json(regions=regions),
        "REHRSegTrainer",
        (0, 1, 2),
    )
    return result


@pytest.fixture
def tiny():
    """The functions above."""
    from types import SimpleNamespace

    return SimpleNamespace(**{name: value for name, value in globals().items() if not name.startswith("__")})


def same_grid(a, b):
    return (
        a.GetSize() == b.GetSize()
        and np.allclose(a.GetOrigin(), b.GetOrigin(), atol=1e-3)
        and np.allclose(a.GetSpacing(), b.GetSpacing(), atol=1e-4)
        and np.allclose(a.GetDirection(), b.GetDirection(), atol=1e-4)
    )


@pytest.fixture
def predict_ball(tiny, tmp_path):
    """Predict the ball on a grid and return the input and the result."""

    def predict(grid, *, size=(24, 22, 7), spacing=(1.1, 1.0, 4.0), rotation=None, name="ball", **kwargs):
        tmp_path.joinpath("out").mkdir(exist_ok=True)
        path, output = tmp_path / f"{name}_0000.nii.gz", tmp_path / "out" / name
        sitk.WriteImage(tiny.ball(tiny.blank(size, spacing, rotation=rotation)), str(path))
        predictor = tiny.predictor(grid=grid, **kwargs)
        predictor.predict_from_files_sequential([[str(path)]], [str(output)], save_probabilities=True)
        return sitk.ReadImage(str(path)), sitk.ReadImage(f"{output}.nii.gz"), np.load(f"{output}.npz")["probabilities"]

    return predict

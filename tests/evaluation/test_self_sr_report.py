"""The self-SR's report: comparisons with known truth, and the true HR volumes in the preprocessed frame."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.cli.simulate import simulate
from rehrseg_nnunet.config import ExportConfig, SelfSRConfig
from rehrseg_nnunet.evaluation.self_sr_report import (
    NEAREST,
    SELF_SR,
    SIGNED_DISTANCE,
    SelfSRReport,
    mean_scores,
    report_self_sr,
    restoration_scores,
    simulated_case,
    true_hr_case,
)
from rehrseg_nnunet.metrics import psnr, ssim
from rehrseg_nnunet.networks.self_sr import SelfSROutput, interpolate_middle
from rehrseg_nnunet.phantom import make_phantom
from rehrseg_nnunet.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slice_profile import degrade, degrade_labels, interpolate

FACTOR = 2
NETWORK_ALONE = ExportConfig(self_ensemble=False, shape_prior_weight=0, back_projection_steps=0)
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)
IGNORE = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2, "ignore": 3}, None)


class Oracle(nn.Module):
    """Interface of the self-SR network; knows the HR volume and adds a known error, which U ranks."""

    def __init__(self, image, labels, error=0.05):
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.factor = FACTOR
        self.weight = nn.Parameter(torch.zeros(1))
        self.error = error * torch.rand(image.shape[1:], generator=rng)
        one_hot = torch.stack([torch.from_numpy(labels[0] == label) for label in range(3)]).float()
        self.volume = torch.cat([torch.from_numpy(image) + self.error, one_hot, self.error[None]])
        self.next = -1

    def forward(self, window):
        parts = []
        for _ in window:
            first = FACTOR * self.next + FACTOR // 2
            index = torch.arange(first, first + FACTOR).clamp(0, self.volume.shape[1] - 1)
            parts.append(self.volume[:, index])
            self.next = -1 if self.next == self.volume.shape[1] // FACTOR - 1 else self.next + 1
        batch = torch.stack(parts)
        return SelfSROutput(batch[:, :-4], batch[:, -4:-1], batch[:, -1:])


class Interpolating(nn.Module):
    """The same interface; interpolates linearly."""

    def __init__(self, image_channels=1, factor=FACTOR):
        super().__init__()
        self.factor, self.image_channels = factor, image_channels
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, window):
        maps = interpolate_middle(window, self.factor)
        image, labels = maps[:, : self.image_channels], maps[:, self.image_channels :]
        return SelfSROutput(image, labels, torch.rand_like(image[:, :1]))


@pytest.fixture(scope="module")
def phantom():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    return (image[None] / 50).astype(np.float32), labels[None].astype(np.int16)


def thick(image, labels):
    return (
        degrade(torch.from_numpy(image), FACTOR, 1).numpy(),
        degrade_labels(torch.from_numpy(labels), FACTOR, 1).numpy(),
    )


def test_scores_of_three_ways(phantom):
    image, labels = phantom
    lr = thick(image, labels)
    scores = restoration_scores(Oracle(image, labels), lr, phantom, PLAIN, spacing_mm=(2, 1, 1), config=NETWORK_ALONE)
    assert list(scores) == [NEAREST, SIGNED_DISTANCE, SELF_SR]
    span = float(np.ptp(image))
    spline = interpolate(torch.from_numpy(lr[0]), FACTOR, 1).numpy()
    for method in (NEAREST, SIGNED_DISTANCE):
        assert scores[method]["psnr"] == pytest.approx(psnr(image[0], spline[0], data_range=span))
        assert scores[method]["ssim"] == pytest.approx(ssim(image[0], spline[0], data_range=span))
    upsampled = {
        NEAREST: lr[1].repeat(FACTOR, axis=1)[0],
        SIGNED_DISTANCE: interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=(2, 1, 1)),
        SELF_SR: labels[0],
    }
    for method, result in upsampled.items():
        overlaps = [
            2 * ((result == c) & (labels[0] == c)).sum() / ((result == c).sum() + (labels[0] == c).sum())
            for c in (1, 2)
        ]
        assert scores[method]["dice"] == pytest.approx(np.mean(overlaps))
    assert scores[SELF_SR]["dice"] == 1
    assert scores[SELF_SR]["spearman"] == pytest.approx(1, abs=1e-3)
    assert scores[SELF_SR]["psnr"] > scores[NEAREST]["psnr"] + 10


def test_ignored_voxels_do_not_count(phantom):
    image, labels = phantom
    ignored = labels.copy()
    ignored[..., :8] = 3
    lr = thick(image, labels)
    expected = restoration_scores(
        Interpolating(),
        (lr[0][..., 8:], lr[1][..., 8:]),
        (image[..., 8:], labels[..., 8:]),
        PLAIN,
        spacing_mm=(2, 1, 1),
        config=NETWORK_ALONE,
    )[NEAREST]["dice"]
    lr[1][..., :8] = 3
    for truth in (ignored, labels):  # the true HR labels of `rehrseg simulate` know more than a sparse annotation
        found = restoration_scores(
            Interpolating(), lr, (image, truth), IGNORE, spacing_mm=(2, 1, 1), config=NETWORK_ALONE
        )
        assert found[NEAREST]["dice"] == pytest.approx(expected)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_simulated_case_is_the_degraded_volume_with_its_slices_first(phantom, axis):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 9, 11)).astype(np.float32)
    labels = rng.integers(-1, 3, size=(1, 6, 9, 11)).astype(np.int8)
    before = image.copy()
    (lr, lr_labels), (truth, true_labels) = simulated_case(image, labels, 4, axis, label_profile="centre")
    expected = image[:, :, :8].transpose(0, 2, 1, 3) if axis == 1 else image[..., :8].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(truth, expected)
    assert lr.shape == (2, 2, 6, 11 if axis == 1 else 9)
    assert true_labels.shape == (1, *truth.shape[1:])
    np.testing.assert_allclose(lr, degrade(torch.from_numpy(truth), 4, 1).numpy())
    np.testing.assert_array_equal(lr_labels, degrade_labels(torch.from_numpy(true_labels), 4, 1).numpy())
    np.testing.assert_array_equal(image, before)


# The true HR volumes, through `rehrseg simulate` and nnU-Net's preprocessing.


def plans(slice_axis, *, spacing=(2.0, 1.0, 1.0), scheme="ZScoreNormalization", upper=135.0):
    forward = [slice_axis, *(a for a in range(3) if a != slice_axis)]
    configuration = {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "spacing": list(spacing),
        "patch_size": [8, 8, 8],
        "normalization_schemes": [scheme] * 2,
        "use_mask_for_norm": [False] * 2,
        "architecture": {},
    }
    for kind in ("data", "seg", "probabilities"):
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = {
            "is_seg": kind == "seg",
            "order": 1,
            "order_z": 0,
            "force_separate_z": None,
        }
    properties = {"mean": 100.0, "std": 20.0, "percentile_00_5": -50.0, "percentile_99_5": upper}
    return PlansManager(
        {
            "plans_name": "p",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": forward,
            "transpose_backward": [int(a) for a in np.argsort(forward)],
            "foreground_intensity_properties_per_channel": {"0": properties, "1": properties},
            "configurations": {"3d_fullres": configuration},
        }
    )


DATASET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "a": 1, "b": 2},
    "numTraining": 1,
    "file_ending": ".nrrd",
}


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Isotropic dataset with a border of zeros, which nnU-Net crops."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    folder = tmp_path / "Dataset001_Iso"
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for channel in range(2):
        image = np.zeros((24, 26, 25), np.float32)
        image[9:22, 9:23, 9:21] = rng.normal(100, 20, size=(13, 14, 12))
        sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "imagesTr" / f"a_{channel:04d}.nrrd"))
    labels = np.zeros((24, 26, 25), np.uint8)
    labels[9:22, 9:23, 9:21] = rng.integers(0, 3, size=(13, 14, 12))
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(folder / "labelsTr" / "a.nrrd"))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder


def preprocess(target, manager):
    files = [str(target / "imagesTr" / f"a_{c:04d}.nrrd") for c in range(2)]
    data, seg, properties = DefaultPreprocessor(verbose=False).run_case(
        files, str(target / "labelsTr" / "a.nrrd"), manager, manager.get_configuration("3d_fullres"), DATASET
    )
    return data, seg, properties


def true_case(target, manager, data, properties, factor=FACTOR):
    return true_hr_case(target, "a", data, properties, plans_manager=manager, dataset_json=DATASET, factor=factor)


@pytest.mark.parametrize(("axis", "slice_axis"), [("z", 0), ("y", 1), ("x", 2)])
def test_the_truth_lies_in_the_frame_of_the_preprocessed_case(raw, axis, slice_axis):
    target = simulate("1", 2, factor=FACTOR, axis=axis, label_mode="centre")
    manager = plans(slice_axis)
    data, seg, properties = preprocess(target, manager)
    assert np.prod(data.shape[1:]) < np.prod(properties["shape_before_cropping"]) / 2  # it was cropped
    image, labels = true_case(target, manager, data, properties)
    assert image.shape == (2, data.shape[1] * FACTOR, *data.shape[2:])
    assert labels.shape == (1, *image.shape[1:])
    assert (image.dtype, labels.dtype) == (np.float32, np.int16)
    # thick slices of the truth are the case, where the crop does not cut the profile
    again = degrade(torch.from_numpy(image), FACTOR, 1).numpy()
    np.testing.assert_allclose(again[:, 2:-2], data[:, 2:-2], atol=1e-3)
    thick_labels = degrade_labels(torch.from_numpy(labels), FACTOR, 1).numpy()
    inside = seg >= 0
    np.testing.assert_array_equal(thick_labels[inside], seg[inside])
    # and its values are those of the source, normalised with the LR case's mean and deviation
    lr = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "imagesTr" / "a_0001.nrrd"))).astype(np.float64)
    box = [slice(*edges) for edges in properties["bbox_used_for_cropping"]]
    cropped = lr.transpose(manager.transpose_forward)[tuple(box)]
    source = sitk.GetArrayFromImage(sitk.ReadImage(str(raw / "imagesTr" / "a_0001.nrrd")))
    source = source.transpose(manager.transpose_forward)
    source = source[box[0].start * FACTOR : box[0].stop * FACTOR, box[1], box[2]]
    np.testing.assert_allclose(image[1], (source - cropped.mean()) / cropped.std(), atol=1e-3)


def test_no_truth_where_it_cannot_be_had(raw):
    target = simulate("1", 2, factor=FACTOR, axis="z", label_mode="centre")
    manager = plans(0)
    data, _, properties = preprocess(target, manager)
    assert true_case(target, manager, data, properties) is not None
    for factor in (3, 4):  # plans whose factor is not the one that was simulated
        assert true_case(target, manager, data, properties, factor) is None
    highest = sitk.GetArrayFromImage(sitk.ReadImage(str(target / "imagesTr" / "a_0000.nrrd"))).max()
    for upper, usable in ((highest - 3, False), (1000.0, True)):  # clips a voxel or two, or none
        clipped = plans(0, scheme="CTNormalization", upper=float(upper))
        assert (true_case(target, clipped, *preprocess(target, clipped)[::2]) is not None) == usable
    resampled = plans(0, spacing=(2.5, 1.0, 1.0))
    assert true_case(target, resampled, *preprocess(target, resampled)[::2]) is None
    assert true_case(raw, manager, data, properties) is None  # not simulated: no HR files
    (target / "labelsTrHR" / "a.nrrd").unlink()
    assert true_case(target, manager, data, properties) is None


def test_plans_of_a_smaller_factor_get_no_truth(raw):
    target = simulate("1", 2, factor=4, axis="z", label_mode="centre")
    manager = plans(0, spacing=(4.0, 1.0, 1.0))
    data, _, properties = preprocess(target, manager)
    assert true_case(target, manager, data, properties, 2) is None
    assert true_case(target, manager, data, properties, 4) is not None


def test_means_leave_undefined_values_out():
    rows = [{"x": {"dice": 0.5, "psnr": 20.0}}, {"x": {"dice": float("nan"), "psnr": 30.0}}]
    assert mean_scores(rows) == {"x": {"dice": 0.5, "psnr": 25.0}}
    assert mean_scores([]) == {}


def test_the_table_and_the_json():
    report = SelfSRReport(
        {"true HR": {NEAREST: {"dice": 0.5}, SELF_SR: {"dice": 0.75, "spearman": 0.25}}}, {"true HR": 3}
    )
    lines = report.as_table().splitlines()
    assert lines[0].split()[-3:] == ["method", "dice", "spearman"]
    assert "true HR (n=3)" in lines[2]
    assert lines[2].rstrip().endswith("0.5000")
    assert lines[3].split()[-2:] == ["0.7500", "0.2500"]
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert SelfSRReport({}, {}).as_table() == "no cases"


def memory_dataset(cases):
    return SimpleNamespace(identifiers=list(cases), load_case=lambda i: (*cases[i], None, {"spacing": [2, 1, 1]}))


def test_the_whole_report(phantom, tmp_path):
    image, labels = phantom
    lr = thick(image, labels)
    cases = dict.fromkeys(("b", "a"), lr)
    fine = {name: (image, interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=(2, 1, 1))[None]) for name in cases}
    manager = SimpleNamespace(get_label_manager=lambda _: PLAIN)
    report = report_self_sr(
        Interpolating(),
        memory_dataset(cases),
        memory_dataset(fine),
        plans_manager=manager,
        configuration_manager=SimpleNamespace(spacing=[2.0, 0.5, 1.5]),
        dataset_json=DATASET,
        raw_folder=tmp_path / "Dataset001_None",
        figure_folder=tmp_path,
        config=SelfSRConfig(),
        figures=1,
    )
    assert report.cases == {"simulated along y": 2, "simulated along x": 2}
    for axis, name, spacing in ((1, "simulated along y", (1, 1, 1.5)), (2, "simulated along x", (3, 1, 0.5))):
        simulated, truth = simulated_case(*fine["a"], FACTOR, axis, label_profile="centre")
        expected = restoration_scores(
            Interpolating(), simulated, truth, PLAIN, spacing_mm=spacing, config=ExportConfig()
        )
        for method in (NEAREST, SIGNED_DISTANCE):
            assert report.comparisons[name][method] == pytest.approx(expected[method])
        assert report.comparisons[name][SELF_SR]["psnr"] == pytest.approx(expected[SELF_SR]["psnr"])
    assert [file.name for file in tmp_path.iterdir()] == ["pseudo_hr_a.png"]
    assert "simulated along x (n=2)" in report.as_table()

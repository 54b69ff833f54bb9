"""The true HR volumes, through `rehrseg simulate` and nnU-Net's preprocessing, the scores and the report."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.cli.simulate import simulate
from rehrseg_nnunet.evaluation.metrics import psnr, ssim
from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset
from rehrseg_nnunet.restoration.report import (
    NEAREST,
    SIGNED_DISTANCE,
    Comparison,
    RestorationReport,
    load_volumes,
    mean_scores,
    method_scores,
    true_hr_case,
)
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, interpolate

FACTOR = 2
SPACING = (2, 1, 1)
PLAIN = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2}, None)
IGNORE = LabelManager({"background": 0, "tube": 1, "ellipsoid": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "both": (1, 2), "ellipsoid": 2}, [1, 2])


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
    planned = PlannedDataset(manager, manager.get_configuration("3d_fullres"), DATASET, factor, target)
    return true_hr_case(planned, "a", data, properties)


@pytest.mark.parametrize(("axis", "slice_axis"), [("z", 0), ("y", 1), ("x", 2)])
def test_the_truth_lies_in_the_frame_of_the_preprocessed_case(raw, axis, slice_axis):
    target = simulate("1", 2, factor=FACTOR, axis=axis)
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
    target = simulate("1", 2, factor=FACTOR, axis="z")
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
    assert true_case(None, manager, data, properties) is None  # nnUNet_raw is not set
    (target / "labelsTrHR" / "a.nrrd").unlink()
    assert true_case(target, manager, data, properties) is None


def test_plans_of_a_smaller_factor_get_no_truth(raw):
    target = simulate("1", 2, factor=4, axis="z")
    manager = plans(0, spacing=(4.0, 1.0, 1.0))
    data, _, properties = preprocess(target, manager)
    assert true_case(target, manager, data, properties, 2) is None
    assert true_case(target, manager, data, properties, 4) is not None


@pytest.fixture(scope="module")
def phantom():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    return (image[None] / 50).astype(np.float32), labels[None].astype(np.int16)


def thick(image, labels):
    return (
        degrade(torch.from_numpy(image), FACTOR, 1).numpy(),
        degrade_labels(torch.from_numpy(labels), FACTOR, 1).numpy(),
    )


@pytest.mark.parametrize(("manager", "groups"), [(PLAIN, [(1,), (2,)]), (REGIONS, [(1, 2), (2,)])])
def test_scores_of_every_method(phantom, manager, groups):
    image, labels = phantom
    lr = thick(image, labels)
    given = {"better": (image + 0.01, labels), "worse": (image + np.linspace(0, 1, 16, dtype=np.float32), labels * 0)}
    scores = method_scores(Comparison("x", lr, phantom, SPACING), given, manager)
    assert list(scores) == [NEAREST, SIGNED_DISTANCE, "better", "worse"]
    span = float(np.ptp(image))
    spline = interpolate(torch.from_numpy(lr[0]), FACTOR, 1).numpy()
    volumes = {
        NEAREST: (spline, lr[1].repeat(FACTOR, axis=1)),
        SIGNED_DISTANCE: (spline, interpolate_labels(lr[1][0], FACTOR, 0, spacing_mm=SPACING)[None]),
        **given,
    }
    for method, (restored, found) in volumes.items():
        assert scores[method]["psnr"] == pytest.approx(psnr(image[0], restored[0], data_range=span))
        assert scores[method]["ssim"] == pytest.approx(ssim(image[0], restored[0], data_range=span))
        overlaps = []
        for group in groups:
            ours, true = np.isin(found, group), np.isin(labels, group)
            overlaps.append(2 * (ours & true).sum() / (ours.sum() + true.sum()))
        assert scores[method]["dice"] == pytest.approx(np.mean(overlaps))
    assert scores["better"]["dice"] == 1
    assert scores["worse"]["dice"] == 0


def test_the_factor_is_that_of_the_volumes(phantom):
    assert Comparison("x", thick(*phantom), phantom, SPACING).factor == FACTOR


def test_constant_channels_have_no_scores(phantom):
    image, labels = phantom
    constant = np.ones_like(image)
    both = (np.concatenate([image, constant]), labels)
    found = method_scores(Comparison("x", thick(*both), both, SPACING), {}, PLAIN)
    one = method_scores(Comparison("x", thick(*phantom), phantom, SPACING), {}, PLAIN)
    assert found[NEAREST] == pytest.approx(one[NEAREST])
    none = method_scores(Comparison("x", thick(constant, labels * 0), (constant, labels * 0), SPACING), {}, PLAIN)
    assert all(np.isnan(value) for value in none[NEAREST].values())


def test_ignored_voxels_do_not_count(phantom):
    image, labels = phantom
    ignored = labels.copy()
    ignored[..., :8] = 3
    lr = thick(image, labels)
    right = [tuple(part[..., 8:] for part in volumes) for volumes in (lr, phantom)]
    expected = method_scores(Comparison("x", *right, SPACING), {}, PLAIN)[NEAREST]["dice"]
    lr[1][..., :8] = 3
    for truth in (ignored, labels):  # the true HR labels of `rehrseg simulate` know more than a sparse annotation
        found = method_scores(Comparison("x", lr, (image, truth), SPACING), {}, IGNORE)
        assert found[NEAREST]["dice"] == pytest.approx(expected)


def test_volumes_are_read_whole_in_the_types_that_are_scored():
    image, labels = np.ones((1, 2, 3, 4)), np.full((1, 2, 3, 4), -1, dtype=np.int8)
    dataset = SimpleNamespace(load_case={"a": (image, labels, None, {})}.__getitem__)
    for volume, expected, dtype in zip(
        load_volumes(dataset, "a"), (image, labels), (np.float32, np.int16), strict=True
    ):
        assert volume.dtype == dtype
        np.testing.assert_array_equal(volume, expected)


def test_a_report_is_the_means_and_numbers_of_its_cases():
    cases = [{"x": {"dice": 0.5}}, {"x": {"dice": 1.0}}]
    report = RestorationReport.of_cases({"true HR": cases, "simulated": cases[:1]})
    assert report.cases == {"true HR": 2, "simulated": 1}
    assert report.comparisons == {"true HR": {"x": {"dice": 0.75}}, "simulated": {"x": {"dice": 0.5}}}
    assert RestorationReport.of_cases({}).as_table() == "no cases"


def test_means_leave_undefined_values_out():
    rows = [{"x": {"dice": 0.5, "psnr": 20.0}}, {"x": {"dice": float("nan"), "psnr": 30.0}}]
    assert mean_scores(rows) == {"x": {"dice": 0.5, "psnr": 25.0}}
    assert mean_scores([]) == {}


def test_the_table_and_the_json():
    report = RestorationReport(
        {"true HR": {NEAREST: {"dice": 0.5}, "self-SR": {"dice": 0.75, "spearman": 0.25}}}, {"true HR": 3}
    )
    lines = report.as_table().splitlines()
    assert lines[0].split()[-3:] == ["method", "dice", "spearman"]
    assert "true HR (n=3)" in lines[2]
    assert lines[2].rstrip().endswith("0.5000")
    assert lines[3].split()[-2:] == ["0.7500", "0.2500"]
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()
    assert RestorationReport({}, {}).as_table() == "no cases"

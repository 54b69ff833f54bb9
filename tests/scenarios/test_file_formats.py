"""Predictions lie where they belong in mm, whatever the file's format, axes, spacing and size: a network that
thresholds the image predicts scans of a surface of known height (tests/support/known_answers.py)."""

from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from known_answers import RESOLUTION, TRAINER, Scan, known_trainer, oblique, write_model
from workspace import assert_same_field_of_view

from rehrseg_nnunet.slices.slice_profile import degrade_labels

pytestmark = pytest.mark.slow

FORMATS = [
    ("SimpleITKIO", ".nii.gz"),
    ("NibabelIO", ".nii.gz"),
    ("NibabelIOWithReorient", ".nii.gz"),
    ("SimpleITKIO", ".nrrd"),
    ("SimpleITKIO", ".mha"),
]
FLIPPED = oblique(1) @ np.diag([-1.0, 1.0, -1.0])


class Predicted:
    """A scan, its two predictions, and what the network must have seen as 0: `threshold_mm` above the sheet."""

    def __init__(self, scan, files, *, threshold_mm, resolution_mm):
        self.scan, self.threshold_mm, self.resolution_mm = scan, threshold_mm, resolution_mm
        self.source, self.lr, self.hr = (sitk.ReadImage(str(file)) for file in files)

    def wrong(self, image, *, band_mm=0.0):
        """Voxels with the wrong label, by the header's positions, further than the band from the surface."""
        height = self.scan.height_mm(image) - self.threshold_mm
        return (np.abs(height) > band_mm + self.resolution_mm) & ((height > 0) != sitk.GetArrayFromImage(image))

    def decimated_is_wrong(self, factor, *, band_mm):
        """Voxels further than the band from the surface where HR label, decimated, and LR label differ."""
        height = self.scan.height_mm(self.lr) - self.threshold_mm
        hr = torch.from_numpy(sitk.GetArrayFromImage(self.hr))
        decimated = degrade_labels(hr, factor, 2 - self.scan.axis).numpy()
        return (np.abs(height) > band_mm + self.resolution_mm) & (decimated != sitk.GetArrayFromImage(self.lr))


@pytest.fixture(scope="module")
def known(nnunet):
    """nnU-Net folders with a trainer that needs no training."""
    with known_trainer(nnunet) as folders:
        yield folders


@pytest.fixture
def predict(known, tmp_path):
    """Write scans and a model planned for files like the first, and predict with both commands."""
    number = 100 + len(list(known.results.iterdir()))

    def run(scans, *, ending=".nii.gz", options=(), written=None, threshold=None, normal_std=None, **model):
        (tmp_path / "in").mkdir()
        gains = {
            name: scan.write(tmp_path / "in" / f"{name}_0000{ending}", **(written or {}))
            for name, scan in scans.items()
        }
        example = tmp_path / "in" / f"{next(iter(scans))}_0000{ending}"
        write_model(known, number, example=example, ending=ending, **model)
        known.predict(tmp_path / "in", tmp_path / "lr", number, trainer=TRAINER)
        known.predict_hr(tmp_path / "in", tmp_path / "hr", number, *options, trainer=TRAINER)
        results = {}
        for name, scan in scans.items():
            source, lr, hr = (tmp_path / folder / f"{name}{end}{ending}" for folder, end in FOLDERS)
            intensities = sitk.GetArrayFromImage(sitk.ReadImage(str(source)))
            zero, one = (0.0, 1.0) if threshold is None else threshold(intensities)
            # integers are half an intensity off
            resolution = RESOLUTION * one + (0.5 if np.issubdtype(intensities.dtype, np.integer) else 0.0)
            results[name] = Predicted(
                scan, (source, lr, hr), threshold_mm=zero / gains[name], resolution_mm=resolution / gains[name]
            )
        return results

    return run


FOLDERS = (("in", "_0000"), ("lr", ""), ("hr", ""))


def assert_known(case, factor):
    """No resampling: the labels are exact, on either grid."""
    assert_same_field_of_view(case.source, case.hr, factor=factor, axis=case.scan.axis)
    assert_same_field_of_view(case.source, case.lr, factor=1)
    assert 0.1 < sitk.GetArrayFromImage(case.hr).mean() < 0.9
    assert not case.wrong(case.lr).any()
    if case.scan.slices > 1:  # else there is nothing to interpolate
        assert not case.wrong(case.hr).any()
    # Odd r: the middle HR slice is the LR slice. Even r: the two middle ones are 1/(2r) of the way to the neighbours,
    # where the height is c/(2r) larger and smaller; further from the surface both have the LR label.
    band_mm = 0.0 if factor % 2 else case.scan.spacing_mm[0] / (2 * factor)
    assert not case.decimated_is_wrong(factor, band_mm=band_mm).any()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize(("reader", "ending"), FORMATS)
def test_slice_axis_and_direction_in_every_format(predict, reader, ending, axis):
    turned = oblique(0) if reader == "NibabelIO" else FLIPPED
    scans = {"straight": Scan(axis=axis), "oblique": Scan(axis=axis, rotation=turned, slices=5)}
    for case in predict(scans, reader=reader, ending=ending).values():
        assert_known(case, 4)


@pytest.mark.parametrize(
    ("spacing_mm", "factor"), [((4.8, 0.68, 0.68), 7), ((3.0, 1.0, 1.0), 3), ((5.0, 1.0, 0.9), 5), ((2.0, 1.0, 1.1), 2)]
)
def test_factors_and_few_slices(predict, spacing_mm, factor):
    scans = {
        f"slices_{slices}": Scan(slices=slices, spacing_mm=spacing_mm, rotation=FLIPPED, in_plane=in_plane)
        for slices, in_plane in ((8, (17, 23)), (1, (19, 31)), (2, (17, 21)), (3, (5, 23)))
    }
    predicted = predict(scans, factor=factor, ending=".mha")
    for case in predicted.values():
        assert_known(case, factor)
    single = predicted["slices_1"]
    labels = [sitk.GetArrayFromImage(image) for image in (single.lr, single.hr)]
    np.testing.assert_array_equal(np.repeat(labels[0], factor, 0), labels[1])


HOUNSFIELD = {"mean": 40.0, "std": 500.0, "percentile_00_5": -990.0, "percentile_99_5": 1400.0}


@pytest.mark.parametrize(
    ("normalization", "threshold"),
    [
        ("CTNormalization", lambda image: (HOUNSFIELD["mean"], HOUNSFIELD["std"])),
        ("ZScoreNormalization", lambda image: (image.mean(), image.std())),
    ],
)
def test_ct_in_integers_with_air_around(predict, normalization, threshold):
    scans = {"a": Scan(axis=0, rotation=oblique(2)), "b": Scan(axis=0, slices=4)}
    predicted = predict(
        scans,
        ending=".nrrd",
        written={"dtype": np.int16, "gain": 120.0, "lowest": -1000.0},
        normalization=normalization,
        intensities=HOUNSFIELD,
        threshold=threshold,
    )
    for case in predicted.values():
        assert sitk.GetArrayFromImage(case.source).min() == -1000
        assert_known(case, 4)


def test_spacings_that_differ_from_the_plans(predict):
    scans = {
        "planned": Scan(slices=7, axis=1),
        "thicker": Scan(slices=6, spacing_mm=(5.5, 1.0, 1.1), axis=1, rotation=FLIPPED),
        "thinner": Scan(slices=11, spacing_mm=(2.5, 1.0, 1.1), axis=1, rotation=FLIPPED),
        "thin_and_other_pixels": Scan(slices=24, spacing_mm=(1.0, 0.9, 1.3), axis=1, rotation=FLIPPED, sheet_mm=3.0),
    }
    predicted = predict(scans, patch=(8, 24, 24))
    assert_known(predicted.pop("planned"), 4)
    for name, case in predicted.items():
        c, in_plane = case.scan.spacing_mm[0], slice(None)
        assert_same_field_of_view(case.source, case.hr, factor=4, axis=1)
        # Preprocessing takes the nearest slice (at most c/2 away) for each planned one. HR labels interpolate those
        # linearly: as far off. LR labels are those of the nearest planned slice, 4 mm thick: another 2 mm.
        hr_band = c / 2
        if case.scan.spacing_mm[1:] != (1.0, 1.1):
            # linear interpolation of the waves: 1.1^2 / 8 times their second derivatives; borders are repeated
            hr_band += 1.1**2 / 8 * 3.0 * ((2 * np.pi / 11) ** 2 + (2 * np.pi / 17) ** 2)
            in_plane = slice(2, -2)
        interpolated = slice(8, -8)  # between the centres of the first and the last planned slice
        assert not case.wrong(case.hr, band_mm=hr_band)[in_plane, interpolated, in_plane].any(), name
        assert not case.decimated_is_wrong(4, band_mm=hr_band + 2)[in_plane, 2:-2, in_plane].any(), name
        if c > 2:  # ties of thinner slices all go one way
            surface_is_off_mm = mean_height_mm(case.hr, case.scan) - mean_height_mm(case.source > 0, case.scan)
            assert abs(surface_is_off_mm) < c * (4 - 1) / (2 * 4) / 2  # half of what a wrong origin would do


def mean_height_mm(image, scan):
    """Mean height of the surface over the volume's lower face, from the number of voxels above it."""
    above = np.moveaxis(sitk.GetArrayFromImage(image), 2 - scan.axis, 0).mean((1, 2))
    return (1 - above).sum() * image.GetSpacing()[scan.axis]


def neighbours_alike(image, axis=2):
    """For each pair of neighbouring slices, whether they are identical."""
    slices = np.moveaxis(sitk.GetArrayFromImage(image), 2 - axis, 0)
    return np.array([(a == b).all() for a, b in pairwise(slices)])


def share_of_change(scan, image, level_mm):
    """For each pair of neighbouring slices, the share of pixels that have the surface between them."""
    above = np.moveaxis(scan.height_mm(image) > level_mm, 2 - scan.axis, 0)
    return np.array([(a != b).mean() for a, b in pairwise(above)])


@pytest.mark.parametrize("axis", [0, 2])
def test_native_grid_on_scans_thinner_than_the_plans_slices(predict, axis):
    """nnU-Net's issues 2731, 2951, 2657: the stock command repeats slices of a model trained on thick ones."""
    scans = {
        "thick": Scan(sheet_mm=6.0, axis=axis),
        "thin": Scan(slices=24, spacing_mm=(1.0, 1.0, 1.1), axis=axis, sheet_mm=8.0, rotation=FLIPPED),
    }
    predicted = predict(scans, options=("--grid", "native"), patch=(8, 24, 24))
    thick, thin = predicted.values()
    for case in (thick, thin):
        assert_same_field_of_view(case.source, case.hr, factor=1)
    # planned slices lie half-way between two thin ones, of which preprocessing takes one: the surface is 0.5 mm off
    changes = np.min([share_of_change(thin.scan, thin.source, level) for level in (0.0, -0.5, 0.5)], 0) > 0.02
    assert changes.sum() >= 13
    assert not neighbours_alike(thin.hr, axis)[changes].any()
    # 24 slices of 1 mm are planned as 6, each of which comes back as a run of 4
    stock = neighbours_alike(thin.lr, axis)
    assert stock.reshape(-1)[[i for i in range(23) if i % 4 != 3]].all()
    assert stock[changes].sum() >= 10
    # and the stock labels are further from the truth
    stock_errors, errors = (thin.wrong(image)[..., 4:-4].mean() for image in (thin.lr, thin.hr))
    assert errors < 0.5 * stock_errors


@pytest.mark.parametrize("as_folder", [False, True], ids=["file", "folder"])
def test_grid_of_another_file(predict, tmp_path, as_folder):
    """References with the slices along another axis, axes permuted and flipped, other slices, and another extent."""
    scans = {"a": Scan(rotation=oblique(0)), "b": Scan(rotation=oblique(0), slices=5)}
    (tmp_path / "references").mkdir()
    for name in scans:
        sitk.WriteImage(turned_reference(scans["a"]), str(tmp_path / "references" / f"{name}.mha"))
    reference = tmp_path / "references" / ("" if as_folder else "a.mha")
    for case in predict(scans, ending=".mha", options=("--grid", str(reference))).values():
        expected = turned_reference(scans["a"])
        assert case.hr.GetSize() == expected.GetSize()
        for point in np.ndindex(2, 2, 2):
            index = [(n - 1) * p for n, p in zip(expected.GetSize(), point, strict=True)]
            corners = [image.TransformIndexToPhysicalPoint(index) for image in (case.hr, expected)]
            np.testing.assert_allclose(*corners, atol=1e-3)
        labels, height = sitk.GetArrayFromImage(case.hr), case.scan.height_mm(case.hr)
        middle = np.abs(case.scan.local_mm(case.hr)[2]) < (case.scan.slices - 1) / 2 * 4.0
        outside = np.abs(case.scan.local_mm(case.hr)[2]) > case.scan.slices / 2 * 4.0
        # pixels coincide; probabilities jump between HR slices, 1 mm apart, so that the surface is half of that off
        wrong = (np.abs(height) > 0.5 + case.resolution_mm) & ((height > 0) != labels)
        assert labels[middle].any()
        assert not wrong[middle].any()
        assert outside.any()
        assert not labels[outside].any()


def turned_reference(scan):
    """A grid on the scan's pixels, its slices 1.5 mm apart along the file's first axis, beyond the scan's ends."""
    grid = scan.grid()
    slices = 4 * scan.slices
    direction = np.array(grid.GetDirection()).reshape(3, 3)
    size, spacing = grid.GetSize(), grid.GetSpacing()
    turned = sitk.Image([slices, size[1], size[0]], sitk.sitkUInt8)
    turned.SetSpacing([1.5, spacing[1], spacing[0]])
    turned.SetDirection((direction @ np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]])).ravel().tolist())
    first = [size[0] - 1, 0, (scan.slices - 1) / 2 - (slices - 1) / 2 * 1.5 / spacing[2]]
    turned.SetOrigin(grid.TransformContinuousIndexToPhysicalPoint([float(i) for i in first]))
    return turned

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.output_grid import NativeGrid
from rehrseg_nnunet.prediction.spacing_grid import SpacingGrid, parse_spacing

ISOTROPIC = (1.9, 2.0, 2.1)


@pytest.fixture
def thin_network(tiny):
    """A network without an HR head, for models without thick slices."""
    import torch

    network = tiny.ThresholdNetwork(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.decoder.seg_layers[-1].weight[-1] = 3
    return network


def centre_and_extent(image):
    size = np.array(image.GetSize())
    centre = image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist())
    return np.array(centre), size * np.array(image.GetSpacing())


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "SimpleITKIOWithReorient"])
def test_voxels_of_that_size_over_the_whole_field_of_view(tiny, predict_ball, thin_network, reader):
    rotation = tiny.oblique()[:, [1, 2, 0]]  # the file's axes in another order than the patient's
    rotation[:, 0] *= np.sign(np.linalg.det(rotation))
    if reader == "NibabelIO":
        rotation = tiny.oblique()
    source, result, _ = predict_ball(
        SpacingGrid((0.7, 1.0, 1.5)),
        size=(12, 13, 11),
        spacing=ISOTROPIC,
        rotation=rotation,
        network=thin_network,
        reader=reader,
        spacing_of_plans=(2.0, 2.0, 2.0),
    )
    np.testing.assert_allclose(result.GetSpacing(), (0.7, 1.0, 1.5), atol=1e-5)
    (centre, extent), (expected_centre, expected_extent) = centre_and_extent(result), centre_and_extent(source)
    np.testing.assert_allclose(centre, expected_centre, atol=1e-3)
    assert (extent >= expected_extent - 1e-3).all()
    assert (extent < expected_extent + np.array([0.7, 1.0, 1.5])).all()
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)
    volume_mm3 = sitk.GetArrayFromImage(result).sum() * np.prod(result.GetSpacing())
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * tiny.RADIUS_MM**3, rel=0.05)


def test_thick_slices_on_isotropic_voxels(tiny, predict_ball):
    _, result, probabilities = predict_ball(SpacingGrid((1.0, 1.0, 1.0)))
    assert result.GetSize() == (27, 22, 28)  # 26.4 mm are rounded up
    assert probabilities.shape == (2, 28, 22, 27)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.1)


def test_a_whole_number_of_voxels_is_not_rounded_up_by_the_headers_rounding(tiny, thin_network):
    predictor = tiny.predictor(grid=NativeGrid(), network=thin_network, spacing_of_plans=(2.0, 2.0, 2.0))
    properties = {
        "spacing": [2.0000001, 2.0, 1.9999999],
        "shape_before_cropping": (4, 5, 6),
        "bbox_used_for_cropping": [[0, 4], [0, 5], [0, 6]],
    }
    result = SpacingGrid((1.0, 1.0, 1.0)).properties(properties, predictor.plans_manager, factor=1, case=None)
    assert result["shape_before_cropping"] == (8, 10, 12)
    np.testing.assert_allclose(result["spacing"], [1, 1, 1])


def test_native_of_a_model_without_thick_slices_is_the_inputs_grid(tiny, predict_ball, thin_network):
    source, result, probabilities = predict_ball(
        None,
        size=(20, 19, 6),
        spacing=(1.1, 1.0, 4.0),
        rotation=tiny.oblique(),
        network=thin_network,
        spacing_of_plans=(2.0, 2.0, 2.0),
    )
    assert tiny.same_grid(source, result)
    assert probabilities.shape == (2, 6, 19, 20)
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.3)


@pytest.mark.parametrize(
    ("value", "expected", "name"),
    [
        ("0.5,0.5,0.5", (0.5, 0.5, 0.5), "0.5mm"),
        ("1", (1, 1, 1), "1mm"),
        ("0.5,0.5,3", (0.5, 0.5, 3), "0.5x0.5x3mm"),
    ],
)
def test_parse_spacing(value, expected, name):
    grid = parse_spacing(value)
    assert grid == SpacingGrid(expected)
    assert grid.name == name


def test_refuses_impossible_voxels():
    assert parse_spacing("nothing.nii.gz") is None
    for value in ("0.5,0.5", "1,2,3,4", "0,1,1", "-1", "nan,1,1", "inf"):
        with pytest.raises(ValueError, match="one or three voxel sizes above 0 in mm"):
            parse_spacing(value)


@pytest.mark.parametrize(("size", "message"), [("0.001", "must fit into memory"), ("1e7", "must have voxels")])
def test_sizes_that_no_memory_holds_are_refused_with_the_scans_name(tiny, tmp_path, size, message):
    sitk.WriteImage(tiny.blank((24, 22, 7), (1.1, 1.0, 4.0)), str(tmp_path / "ball_0000.nii.gz"))
    predictor = tiny.predictor(grid=parse_spacing(size))
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    with pytest.raises(UnusableImageError, match=rf"ball_0000\.nii\.gz: --grid {message}"):
        preprocessor.run_case(
            [str(tmp_path / "ball_0000.nii.gz")],
            None,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.dataset_json,
        )

import logging

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.prediction.output_grid import HRGrid
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid


def test_reference_equal_to_the_hr_grid_changes_nothing(tiny, predict_ball, tmp_path):
    _, hr, expected = predict_ball(HRGrid(), rotation=tiny.oblique())
    sitk.WriteImage(hr, str(tmp_path / "reference.nii.gz"))
    _, result, probabilities = predict_ball(ReferenceGrid(tmp_path / "reference.nii.gz"), rotation=tiny.oblique())
    assert tiny.same_grid(hr, result)
    # probabilities at the outermost voxels of the crop may touch its border
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("axis", [0, 2])
def test_reference_is_met_in_mm(tiny, predict_ball, tmp_path, reader, axis):
    size, spacing = ((24, 22, 7), (1.1, 1.0, 4.0)) if axis == 0 else ((7, 22, 24), (4.0, 1.0, 1.1))
    # turned, shifted, with other spacings, and reaching beyond the input
    reference = tiny.blank(
        (26, 24, 30),
        (0.9, 1.3, 0.8),
        rotation=tiny.oblique(3) @ np.diag([1.0, -1.0, -1.0]),
        centre=tiny.CENTRE_MM + np.array([2, 3, -1.5]),
    )
    sitk.WriteImage(reference, str(tmp_path / "reference.nii.gz"))
    _, result, probabilities = predict_ball(
        ReferenceGrid(tmp_path / "reference.nii.gz"),
        size=size,
        spacing=spacing,
        rotation=tiny.oblique(5),
        axis=axis,
        reader=reader,
    )
    assert tiny.same_grid(reference, result)
    labels = sitk.GetArrayFromImage(result)
    if reader != "NibabelIOWithReorient":  # which stores arrays of another axis order
        np.testing.assert_array_equal(probabilities.argmax(0), labels)
    distance = np.linalg.norm(tiny.positions_mm(result) - tiny.CENTRE_MM, axis=-1).transpose(2, 1, 0)
    # linear interpolation between slices 4 mm apart blurs the ball's poles; off the surface the label is certain
    assert labels[distance < tiny.RADIUS_MM - 1.6].all()
    assert not labels[distance > tiny.RADIUS_MM + 1.6].any()
    assert (labels > 0).sum() > 100
    np.testing.assert_allclose(tiny.centroid_mm(result), tiny.CENTRE_MM, atol=0.2)


def test_outside_the_field_of_view_is_background(tiny, predict_ball, tmp_path, caplog):
    reference = tiny.blank((6, 6, 6), (1.0, 1.0, 1.0), centre=tiny.CENTRE_MM + 100)
    sitk.WriteImage(reference, str(tmp_path / "reference.nii.gz"))
    with caplog.at_level(logging.WARNING):
        _, result, probabilities = predict_ball(ReferenceGrid(tmp_path / "reference.nii.gz"))
    assert not sitk.GetArrayFromImage(result).any()
    np.testing.assert_allclose(probabilities[0], 1, atol=1e-5)
    assert "outside the input's field of view" in caplog.text


def test_folder_takes_the_namesake(tmp_path):
    for name in ("a.nii.gz", "b_0000.nii.gz", "c.d_e.mha"):
        (tmp_path / name).touch()
    grid = ReferenceGrid(tmp_path)
    assert grid.file("a") == tmp_path / "a.nii.gz"
    assert grid.file("b") == tmp_path / "b_0000.nii.gz"
    assert grid.file("c.d_e") == tmp_path / "c.d_e.mha"
    assert grid.missing(["a", "x"]) == ["x"]
    assert grid.file(None) is None


def test_folder_without_a_case_is_refused_before_anything_is_predicted(tiny, predict_ball, tmp_path):
    references = tmp_path / "references"
    references.mkdir()
    with pytest.raises(FileNotFoundError, match=r"such as ball\.nii\.gz, got none for ball; add them"):
        predict_ball(ReferenceGrid(references))
    assert not list((tmp_path / "out").glob("ball*"))
    with pytest.raises(FileNotFoundError, match="needs the name of a case"):
        tiny.predictor(grid=ReferenceGrid(references)).predict_single_npy_array(
            np.ones((1, 4, 16, 16), dtype=np.float32), {"spacing": tiny.SPACING}
        )


def test_refuses_readers_without_geometry(tiny, tmp_path):
    sitk.WriteImage(tiny.blank((6, 6, 6), (1, 1, 1)), str(tmp_path / "reference.nii.gz"))
    grid = ReferenceGrid(tmp_path / "reference.nii.gz")
    with pytest.raises(NotImplementedError, match="needs nnU-Net's SimpleITK or nibabel readers"):
        tiny.predictor(grid=grid).predict_single_npy_array(
            np.ones((1, 4, 16, 16), dtype=np.float32), {"spacing": tiny.SPACING}
        )

"""What ties to one side do to labels."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from benchmarks.ties import interpolated, main, table_row
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade_labels


@pytest.fixture
def ball():
    """Radius 9 HR voxels, centred on a voxel boundary, so that nothing but the rule tells its two ends apart."""
    z, y, x = np.indices((48, 24, 24)) - np.array([23.5, 11.5, 11.5]).reshape(3, 1, 1, 1)
    return (z**2 + y**2 + x**2 < 81).astype(np.int16)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_where_meant_it_is_the_interpolation_of_the_package(ball, factor):
    thick = degrade_labels(torch.from_numpy(ball), factor, 0).numpy()
    expected = interpolate_labels(thick, factor, 0, spacing_mm=(factor, 1, 1))
    np.testing.assert_array_equal(interpolated(thick, factor, offset=0.0), expected)


def test_half_a_voxel_either_way_is_mirrored(ball):
    thick = degrade_labels(torch.from_numpy(ball), 4, 0).numpy()
    lower, upper = interpolated(thick, 4, offset=-0.5), interpolated(thick[::-1], 4, offset=0.5)
    np.testing.assert_array_equal(lower[::-1], upper)


def test_ties_to_the_lower_side_fit_half_a_voxel_lower_and_no_ties_do_not(ball):
    even, odd = table_row([ball], 2, "z"), table_row([ball], 3, "z")
    assert even["lower ties, half an HR voxel lower"] > even["lower ties, where meant"]
    assert odd["lower ties, half an HR voxel lower"] < odd["lower ties, where meant"]
    assert odd["lower ties, where meant"] == odd["ties in turn, where meant"]


def test_ties_in_turn_prefer_neither_side(ball):
    """What the lower side does to a volume the upper one does to its mirror image."""
    half = ball.copy()
    half[24:] = 0
    meant = []
    for volume in (half, half[::-1].copy()):
        both, alone = table_row([volume, volume[::-1].copy()], 2, "z"), table_row([volume], 2, "z")
        assert both["ties in turn, where meant"] == alone["lower ties, where meant"]
        meant.append(alone["lower ties, where meant"])
    assert meant[0] != meant[1]


@pytest.mark.parametrize("factor", [2, 4])
def test_every_other_case_has_upper_ties(ball, factor):
    row = table_row([ball, ball], factor, "z")
    assert row["ties in turn, half an HR voxel lower"] < row["lower ties, half an HR voxel lower"]
    alone = table_row([ball], factor, "z")
    assert alone["ties in turn, half an HR voxel lower"] == alone["lower ties, half an HR voxel lower"]


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_axis_is_the_one_that_is_named(ball, factor):
    along_z = table_row([ball], factor, "z")
    for axis, lying in (("y", ball.swapaxes(0, 1)), ("x", ball.swapaxes(0, 2))):
        assert table_row([lying], factor, axis) == {**along_z, "axis": axis}


def test_slices_that_fill_no_thick_one_are_left_out(ball):
    assert len(ball) % 5 == 3
    assert table_row([ball], 5, "z") == table_row([ball[:-3]], 5, "z")


@pytest.mark.parametrize("options", [["--factors", "1"], ["--skip", "-1"], ["--every", "0"]])
def test_impossible_counts_are_one_line(options, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--source", str(tmp_path), *options])
    assert "error: --factors must be at least 2, --skip at least 0 and --every at least 1" in capsys.readouterr().err


def test_command_prints_a_row_per_factor_and_axis(ball, tmp_path, capsys):
    (tmp_path / "labelsTr").mkdir()
    for name in ("a", "b", "c"):
        sitk.WriteImage(sitk.GetImageFromArray(ball), str(tmp_path / "labelsTr" / f"{name}.nii.gz"))
    main(["--source", str(tmp_path), "--factors", "2", "3", "--axes", "z", "x", "--skip", "1"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[:2] for line in lines[-4:]] == [["2", "z"], ["2", "x"], ["3", "z"], ["3", "x"]]
    with pytest.raises(SystemExit):
        main(["--source", str(tmp_path), "--skip", "3"])
    assert "no cases are left" in capsys.readouterr().err

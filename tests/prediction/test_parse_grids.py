import pytest

from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid
from rehrseg_nnunet.prediction.parse_grids import parse_grid, parse_grids
from rehrseg_nnunet.prediction.reference_grid import ReferenceGrid
from rehrseg_nnunet.prediction.spacing_grid import SpacingGrid


def test_parse_grid(tmp_path):
    assert parse_grid("hr") == HRGrid()
    assert parse_grid("native") == NativeGrid()
    assert parse_grid("1,2,3") == SpacingGrid((1, 2, 3))
    assert parse_grid(str(tmp_path)) == ReferenceGrid(tmp_path)
    with pytest.raises(FileNotFoundError, match="--grid must be hr, native, voxel sizes"):
        parse_grid(str(tmp_path / "none.nii.gz"))
    with pytest.raises(ValueError, match="above 0"):
        parse_grid("0,1,1")


def test_every_grid_has_a_name_of_its_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "scan.nii.gz").touch()
    files = [str(tmp_path / folder / "scan.nii.gz") for folder in ("a", "b")]
    assert [grid.name for grid in parse_grids(["hr", "native", "0.5", files[0]])] == ["hr", "native", "0.5mm", "scan"]
    for values in (["hr", "hr"], files, ["1,1,1", "1"]):
        with pytest.raises(ValueError, match="different names"):
            parse_grids(values)


def test_voxel_sizes_with_blanks_between_are_told_what_they_need():
    for values in (["0.5", "0.5", "1"], ["0.5,", "0.5,", "1"]):
        with pytest.raises(ValueError, match=r"--grid must have commas .*, no blanks: write 0\.5,0\.5,1$"):
            parse_grids(values)
    assert len(parse_grids(["0.5", "1", "native"])) == 3


def test_an_empty_value_is_no_folder():
    with pytest.raises(FileNotFoundError, match="or an existing file or folder, got nothing"):
        parse_grid("")

"""What 3D Slicer and ITK-SNAP read: geometry, names, colours."""

import sys

import numpy as np
import pytest
import SimpleITK as sitk
import slicerio
from balls import grid_of, oblique, orientations

from rehrseg_nnunet.nnunet.raw_files import image_files, other_images
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError
from rehrseg_nnunet.slices.grids import Grid, grid_from_properties
from rehrseg_nnunet.surfaces.structures import structures_of
from rehrseg_nnunet.surfaces.viewers import require_slicer, write_itk_snap_labels, write_segmentation

SHAPE = (4, 5, 6)
PLAIN = structures_of({"labels": {"background": 0, "left\nlobe": 1, "right": 2, "ignore": 3}})
REGIONS = structures_of(
    {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, "regions_class_order": [1, 2, 3]}
)
LABELS = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.int32)


@pytest.mark.parametrize("directions", [*orientations(), oblique(), -oblique()])
def test_geometry_as_other_readers_have_it(tmp_path, directions):
    grid = grid_of(directions, shape=SHAPE, spacing_mm=(3.0, 0.5, 0.7))
    file = write_segmentation(LABELS.clip(0, 2), grid, PLAIN, tmp_path / "c")
    image = sitk.ReadImage(str(file))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), LABELS.clip(0, 2))
    geometry = {"spacing": image.GetSpacing(), "origin": image.GetOrigin(), "direction": image.GetDirection()}
    np.testing.assert_allclose(grid_from_properties({"sitk_stuff": geometry}, SHAPE).affine, grid.affine, atol=1e-6)
    read = slicerio.read_segmentation(str(file))
    np.testing.assert_allclose(read["ijkToLPS"], grid.affine[:, [2, 1, 0, 3]], atol=1e-6)


def test_labels_keep_value_name_and_colour(tmp_path):
    read = slicerio.read_segmentation(str(write_segmentation(LABELS, Grid(SHAPE, np.eye(4)), PLAIN, tmp_path / "case")))
    found = [(segment["name"], segment["labelValue"]) for segment in read["segments"]]
    assert found == [("left lobe", 1), ("right", 2)]
    np.testing.assert_allclose(np.array(read["segments"][0]["color"]) * 255, (230, 159, 0), atol=1e-3)
    np.testing.assert_array_equal(slicerio.segment_mask(read, "right"), LABELS.transpose(2, 1, 0) == 2)
    assert set(np.unique(read["voxels"])) == {0, 1, 2}  # the ignore label is no structure


def test_regions_share_voxels(tmp_path):
    read = slicerio.read_segmentation(
        str(write_segmentation(LABELS, Grid(SHAPE, np.eye(4)), REGIONS, tmp_path / "case"))
    )
    assert slicerio.segment_names(read) == ["whole", "core", "enhancing"]
    for name, values in (("whole", [1, 2, 3]), ("core", [2, 3]), ("enhancing", [3])):
        np.testing.assert_array_equal(slicerio.segment_mask(read, name), np.isin(LABELS, values).transpose(2, 1, 0))


def test_many_labels(tmp_path):
    many = structures_of({"labels": {"background": 0, **{f"s{value}": value for value in range(1, 301)}}})
    labels = np.arange(np.prod(SHAPE)).reshape(SHAPE) + 190
    read = slicerio.read_segmentation(str(write_segmentation(labels, Grid(SHAPE, np.eye(4)), many, tmp_path / "c")))
    np.testing.assert_array_equal(read["voxels"], np.where(labels > 300, 0, labels).transpose(2, 1, 0))


def itk_snap(file):
    rows = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return {int(row.split()[0]): (tuple(map(int, row.split()[1:4])), row.split('"')[1]) for row in rows}


def test_itk_snaps_file_has_every_label(tmp_path):
    found = itk_snap(write_itk_snap_labels(PLAIN, tmp_path))
    assert found == {0: ((0, 0, 0), "background"), 1: ((230, 159, 0), "left lobe"), 2: ((86, 180, 233), "right")}


def test_itk_snap_has_the_names_of_all_regions_of_a_label(tmp_path):
    found = itk_snap(write_itk_snap_labels(REGIONS, tmp_path))
    assert {label: name for label, (_, name) in found.items()} == {
        0: "background",
        1: "whole",
        2: "whole + core",
        3: "whole + core + enhancing",
    }
    assert found[3][0] == REGIONS.colour(REGIONS.all[2])


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("slicerio.write_segmentation", full)
    with pytest.raises(UnwrittenFileError, match=r"c\.seg\.nrrd could not be written: No space left"):
        write_segmentation(LABELS, Grid(SHAPE, np.eye(4)), PLAIN, tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_other_commands_do_not_take_it_for_a_label_image(tmp_path):
    for name in ("a.nrrd", "a.seg.nrrd"):
        (tmp_path / name).touch()
    assert [file.name for file in image_files(tmp_path, ".nrrd")] == ["a.nrrd"]
    assert other_images(tmp_path, ".nii.gz") == ["a.nrrd"]


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "slicerio", None)
    with pytest.raises(RuntimeError, match=r"seg\.nrrd files need slicerio, .*pip install 'rehrseg-nnunet\[slicer\]'"):
        require_slicer()


def test_names_are_those_that_the_format_can_hold(tmp_path):
    """NRRD headers are ASCII; ITK-SNAP's file is UTF-8."""
    named = structures_of({"labels": {"background": 0, "Hüfte": 1, "肝": 2, "": 3}})
    read = slicerio.read_segmentation(str(write_segmentation(LABELS, Grid(SHAPE, np.eye(4)), named, tmp_path / "c")))
    assert [segment["name"] for segment in read["segments"]] == ["Hufte", "Label 2", "Label 3"]
    assert '"Hüfte"' in write_itk_snap_labels(named, tmp_path).read_text(encoding="utf-8")

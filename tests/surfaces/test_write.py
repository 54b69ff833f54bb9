"""Files of a case: which, where, whole."""

import errno
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import trimesh
from balls import ball_margin, oblique, orientations, two_classes

from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError, whole_files_of
from rehrseg_nnunet.slices.grids import Grid, grid_from_properties
from rehrseg_nnunet.surfaces.structures import structures_of
from rehrseg_nnunet.surfaces.write import SurfaceOptions, check_names, write_label_surfaces, write_surfaces

BALL = structures_of({"labels": {"background": 0, "ball": 1}})
THREE = structures_of({"labels": {"background": 0, "ball": 1, "no/thing": 2, "other ball": 3}})
SHAPE, CENTRE, RADIUS = (12, 13, 14), np.array([5.6, 6.2, 6.9]), 4.0
GRID = Grid(SHAPE, np.diag([3.0, 1.0, 1.0, 1.0]))
STL = SurfaceOptions(("stl",))


def logits():
    """A ball of label 1, nothing of label 2, a smaller one of label 3."""
    ball, small = ball_margin(SHAPE, CENTRE, RADIUS), ball_margin(SHAPE, (2, 2, 2), 1.4)
    return np.stack([np.zeros(SHAPE), ball, np.full(SHAPE, -9.0), small]).astype(np.float16)


def names(folder):
    return sorted(file.name for file in folder.rglob("*"))


def image_file(folder, directions, ending):
    """An image whose file axes (fastest first) have these directions."""
    image = sitk.GetImageFromArray((ball_margin(SHAPE, CENTRE, RADIUS) > 0).astype(np.uint8))
    image.SetSpacing((0.5, 0.8, 1.2))
    image.SetOrigin((-31.0, 17.0, 250.0))
    image.SetDirection(directions.ravel())
    sitk.WriteImage(image, str(folder / f"a{ending}"))
    return image


@pytest.mark.parametrize("ras", [False, True], ids=["lps", "ras"])
@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_positions_are_those_of_other_readers(tmp_path, ending, ras):
    """The centre is where SimpleITK (which speaks LPS) has it, from the file's geometry, in 50 orientations."""
    for directions in (*orientations(), oblique(), -oblique()):
        if ending == ".nii.gz" and np.linalg.det(directions) < 0:
            continue  # SimpleITK writes no left-handed NIfTI
        image = image_file(tmp_path, directions, ending)
        reader = whole_files_of({"file_ending": ending}, tmp_path / f"a{ending}")
        _, properties = reader.read_seg(str(tmp_path / f"a{ending}"))
        grid = grid_from_properties(properties, SHAPE)
        margin = two_classes(ball_margin(SHAPE, CENTRE, RADIUS))
        (written,) = write_surfaces(margin, grid, BALL, tmp_path / "a", SurfaceOptions(("stl",), ras=ras))
        mesh = trimesh.load(written.files[0])
        expected = np.array(image.TransformContinuousIndexToPhysicalPoint(CENTRE[::-1].tolist()))
        if ras:
            expected[:2] *= -1
        np.testing.assert_allclose(mesh.center_mass, expected, atol=0.1)
        assert mesh.is_watertight
        assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3 * 0.48, rel=5e-3)


def test_one_file_for_each_structure_and_format(tmp_path):
    written = write_surfaces(logits(), GRID, THREE, tmp_path / "case_7", SurfaceOptions(("stl", "ply")))
    expected = [f"case_7_{name}.{ending}" for name in ("ball", "other_ball") for ending in ("ply", "stl")]
    assert names(tmp_path) == sorted(expected)
    assert [(surface.name, len(surface.files)) for surface in written] == [
        ("ball", 2),
        ("no/thing", 0),
        ("other ball", 2),
    ]
    assert written[0].volume_mm3 == pytest.approx(trimesh.load(written[0].files[0]).volume, rel=1e-4)


def test_an_empty_label_is_said_and_its_former_file_goes(tmp_path, caplog):
    former = tmp_path / "c_no_thing.stl"
    former.touch()
    write_surfaces(logits(), GRID, THREE, tmp_path / "c", STL)
    assert [record.getMessage() for record in caplog.records] == ["c: no/thing is empty, no surface is written"]
    assert not former.exists()


def test_labels_as_they_are(tmp_path):
    labels = (ball_margin(SHAPE, CENTRE, RADIUS) > 0).astype(np.uint8)
    (stairs,) = write_label_surfaces(labels, GRID, BALL, tmp_path / "c", STL)
    (smooth,) = write_surfaces(two_classes(ball_margin(SHAPE, CENTRE, RADIUS)), GRID, BALL, tmp_path / "d", STL)
    assert stairs.volume_mm3 == pytest.approx(3 * labels.sum(), rel=0.05)
    assert stairs.area_mm2 > 1.05 * smooth.area_mm2


def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    write, count = Path.write_bytes, []

    def full(file, content):
        count.append(file)
        if len(count) == 2:
            write(file, content[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UnwrittenFileError, match=rf"{tmp_path}/c_other_ball.stl could not be written: No space left"):
        write_surfaces(logits(), GRID, THREE, tmp_path / "c", STL)
    assert names(tmp_path) == []


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("rehrseg_nnunet.surfaces.write._write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_surfaces(logits(), GRID, THREE, tmp_path / "c", STL)
    assert names(tmp_path) == []


def test_cases_whose_surfaces_would_share_a_file_are_refused():
    bones = structures_of({"labels": {"background": 0, "left bone": 1, "bone": 2}})
    check_names({"knee": bones, "knee_right": bones, "ankle_left": bones})
    with pytest.raises(ValueError, match=r"knee and knee_left would both write knee_left_\w+; rename one of them"):
        check_names({"knee": bones, "knee_left": bones})

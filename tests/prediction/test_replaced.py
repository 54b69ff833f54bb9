"""What goes with a segmentation that is replaced, and what stays."""

import os

import pytest

from rehrseg_nnunet.prediction.replaced import replacing

DATASET = {"labels": {"background": 0, "the bone": 1, "left": 2}}
OWN = ("knee.npz", "knee.pkl", "knee.seg.nrrd", "knee_the_bone.stl", "knee_left.glb")
OTHERS = ("knee_2.npz", "knee_left.nii.gz", "knee_cartilage.stl", "ankle_left.stl", "knee.txt")


@pytest.fixture
def folder(tmp_path):
    for name in (*OWN, *OTHERS):
        (tmp_path / name).touch()
    return tmp_path


def names(folder):
    return {file.name for file in folder.iterdir()}


def write(folder, name="knee.nii.gz", *, later=0):
    (folder / name).write_bytes(b"new")
    stat = (folder / name).stat()
    os.utime(folder / name, ns=(stat.st_atime_ns, stat.st_mtime_ns + later))


def test_all_that_was_made_of_the_segmentation_goes_and_nothing_else(folder):
    write(folder, later=1)
    with replacing(folder / "knee.nii.gz", ".nii.gz", DATASET):
        assert names(folder) == {*OWN, *OTHERS, "knee.nii.gz"}  # until the new one is there
        write(folder)
    assert names(folder) == {*OTHERS, "knee.nii.gz"}


def test_what_is_written_with_the_new_one_stays(folder):
    write(folder, later=1)
    with replacing(folder / "knee.nii.gz", ".nii.gz", DATASET):
        write(folder, "knee_left.glb", later=2)
    assert names(folder) == {*OTHERS, "knee.nii.gz", "knee_left.glb"}


def test_where_no_segmentation_is_replaced_files_are_somebody_elses(folder):
    with replacing(folder / "knee.nii.gz", ".nii.gz", DATASET):
        write(folder)
    assert names(folder) == {*OWN, *OTHERS, "knee.nii.gz"}


def test_what_was_made_since_stays_with_a_warning(folder, caplog):
    """A copy that was corrected in 3D Slicer."""
    write(folder, later=1)
    write(folder, "knee.seg.nrrd", later=10**9)
    with replacing(folder / "knee.nii.gz", ".nii.gz", DATASET):
        write(folder)
    assert names(folder) == {*OTHERS, "knee.nii.gz", "knee.seg.nrrd"}
    assert "knee.seg.nrrd stays, which is newer than the segmentation" in caplog.text


def test_a_run_that_fails_leaves_all(folder):
    write(folder, later=1)
    with pytest.raises(OSError, match="full"), replacing(folder / "knee.nii.gz", ".nii.gz", DATASET):
        raise OSError("full")
    assert names(folder) == {*OWN, *OTHERS, "knee.nii.gz"}

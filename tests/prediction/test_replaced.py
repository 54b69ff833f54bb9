"""What goes with a segmentation that is replaced, and what stays."""

from rehrseg_nnunet.prediction.replaced import remove_companions

DATASET = {"labels": {"background": 0, "the bone": 1, "left": 2}}


def test_all_that_was_made_of_the_segmentation_goes_and_nothing_else(tmp_path):
    own = ["knee.npz", "knee.pkl", "knee.seg.nrrd", "knee_the_bone.stl", "knee_left.glb"]
    others = ["knee.nii.gz", "knee_2.npz", "knee_left.nii.gz", "knee_cartilage.stl", "ankle_left.stl", "knee.txt"]
    for name in (*own, *others):
        (tmp_path / name).touch()
    remove_companions(tmp_path / "knee", DATASET)
    assert {file.name for file in tmp_path.iterdir()} == set(others)

"""Segmentations that exist: what is found, what is refused."""

import pickle

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.surfaces.stored import StoredCase, find_cases, find_dataset_json, read_labels, read_logits
from rehrseg_nnunet.surfaces.structures import structures_of

SHAPE = (4, 5, 6)
PLAIN = {"labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nrrd"}
REGIONS = {"labels": {"background": 0, "w": [1, 2], "c": 2}, "regions_class_order": [1, 2], "file_ending": ".nrrd"}
GEOMETRY = {"spacing": (1.0, 2.0, 3.0), "origin": (5.0, 6.0, 7.0), "direction": tuple(np.eye(3).ravel())}


def save(folder, content=PLAIN, *, name="c"):
    """The npz and pkl that nnU-Net would write; returns the logits."""
    manager = LabelManager(content["labels"], content.get("regions_class_order"))
    logits = np.random.default_rng(0).normal(size=(manager.num_segmentation_heads, *SHAPE), scale=3).astype(np.float32)
    probabilities = manager.apply_inference_nonlin(torch.from_numpy(logits)).numpy()
    np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities)
    properties = {"sitk_stuff": GEOMETRY, "spacing": [3.0, 2.0, 1.0], "shape_before_cropping": SHAPE}
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(properties))
    return logits


def write_labels(folder, values, name="c.nrrd"):
    sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / name))


def read(folder, content=PLAIN):
    return read_logits(StoredCase("c", folder / "c.npz"), structures_of(content))


def test_probabilities_win_over_labels(tmp_path):
    for name in ("c.nrrd", "d.nrrd", "d.seg.nrrd"):
        write_labels(tmp_path, np.zeros(SHAPE, np.uint8), name)
    save(tmp_path)
    assert [case.file.name for case in find_cases(tmp_path, PLAIN)] == ["c.npz", "d.nrrd"]
    assert [case.file.name for case in find_cases(tmp_path, None, labels_only=True)] == ["c.nrrd", "d.nrrd"]
    assert find_cases(tmp_path / "d.nrrd", PLAIN) == [StoredCase("d", tmp_path / "d.nrrd")]


def test_a_folder_without_cases(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold label images .*npz files of probabilities, got none"):
        find_cases(tmp_path, PLAIN)
    with pytest.raises(FileNotFoundError, match=r"-i must be an existing file or folder, got .*x"):
        find_cases(tmp_path / "x", PLAIN)


@pytest.mark.parametrize("name", ["a.seg.nrrd", "a.npz"])
def test_what_is_no_label_image_is_refused_where_one_is_wanted(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=rf"-i must be a label image, .* got .*{name}"):
        find_cases(tmp_path / name, PLAIN, labels_only=True)


@pytest.mark.parametrize("content", [PLAIN, REGIONS], ids=["classes", "regions"])
def test_logits_come_back_from_probabilities(tmp_path, content):
    logits = save(tmp_path, content)
    found, grid = read(tmp_path, content)
    differences = found - logits
    if "regions_class_order" not in content:
        differences -= differences[:1]  # softmax forgets what is added to all
    np.testing.assert_allclose(differences, 0, atol=1e-2)
    np.testing.assert_allclose(grid.affine[:3, 3], GEOMETRY["origin"])
    np.testing.assert_allclose(grid.spacing_mm, (3, 2, 1))


def test_without_pkl(tmp_path):
    save(tmp_path)
    (tmp_path / "c.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"c\.pkl is missing: .*copy it too"):
        read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({}), pickle.dumps([1])])
def test_a_damaged_pkl(tmp_path, content):
    save(tmp_path)
    (tmp_path / "c.pkl").write_bytes(content)
    with pytest.raises(UnusableImageError, match=r"c\.pkl must hold the properties"):
        read(tmp_path)


def test_a_pkl_of_another_case(tmp_path):
    save(tmp_path)
    properties = {"sitk_stuff": GEOMETRY, "spacing": [3.0, 2.0, 1.0], "shape_before_cropping": (4, 5, 7)}
    (tmp_path / "c.pkl").write_bytes(pickle.dumps(properties))
    with pytest.raises(UnusableImageError, match=r"c\.pkl must belong to c\.npz"):
        read(tmp_path)


def test_a_damaged_npz(tmp_path):
    save(tmp_path)
    file = tmp_path / "c.npz"
    whole = file.read_bytes()
    for content in (b"", whole[:200], b"x" * 300):
        file.write_bytes(content)
        with pytest.raises(UnusableImageError, match=r"c\.npz must be a whole npz file"):
            read(tmp_path)
    np.savez(file, other=np.zeros(3))
    with pytest.raises(UnusableImageError, match=r"c\.npz must be a whole npz file"):
        read(tmp_path)
    np.savez(file, probabilities=np.full((3, *SHAPE), np.nan))
    with pytest.raises(UnusableImageError, match=r"c\.npz must hold finite probabilities"):
        read(tmp_path)


def test_probabilities_of_another_dataset(tmp_path):
    save(tmp_path)
    with pytest.raises(UnusableImageError, match=r"c\.npz must hold 2 probabilities a voxel, .*got 3; .*-djfile"):
        read(tmp_path, REGIONS)


def test_labels_and_what_dataset_json_does_not_know(tmp_path, caplog):
    write_labels(tmp_path, np.full(SHAPE, 7, np.uint8))
    labels, grid, structures = read_labels(StoredCase("c", tmp_path / "c.nrrd"), PLAIN)
    assert (labels == 7).all()
    assert grid.shape == SHAPE
    assert "has label 7, which dataset.json does not have: left out" in caplog.text
    assert [structure.name for structure in structures.all] == ["a", "b"]
    assert [s.name for s in read_labels(StoredCase("c", tmp_path / "c.nrrd"), None)[2].all] == ["label_7"]


def test_labels_that_are_no_integers(tmp_path):
    write_labels(tmp_path, np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(UnusableImageError, match=r"c\.nrrd must hold integer labels, got 0\.5"):
        read_labels(StoredCase("c", tmp_path / "c.nrrd"), None)


def test_dataset_json_beside_the_files_or_given(tmp_path):
    assert find_dataset_json(tmp_path, None) is None
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0}}')
    assert find_dataset_json(tmp_path, None) == find_dataset_json(tmp_path / "c.npz", None) != None  # noqa: E711
    with pytest.raises(FileNotFoundError, match=r"-djfile names the dataset\.json of the model"):
        find_dataset_json(tmp_path, tmp_path / "x.json")

"""The generated phantom: reproducible, and with structures that thick slices cannot show."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.cases.phantom import LABELS, NOISE, TISSUE, make_phantom, write_phantom_dataset

SHAPE = (16, 20, 24)


def phantom(seed=0, shape=SHAPE):
    return make_phantom(shape, np.random.default_rng(seed))


def test_shape_types_and_labels():
    image, labels = phantom()
    assert image.shape == labels.shape == SHAPE
    assert (image.dtype, labels.dtype) == (np.float32, np.uint8)
    assert set(np.unique(labels)) == set(LABELS.values())


def test_the_same_seed_gives_the_same_phantom():
    for first, again, other in zip(phantom(3), phantom(3), phantom(4), strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_tube_runs_through_all_slices_and_winds(seed):
    _, labels = phantom(seed)
    centres = np.array([np.argwhere(section == 1).mean(0) for section in labels])
    assert len(centres) == SHAPE[0]
    assert (np.ptp(centres, axis=0) > 4).all()
    assert np.abs(np.diff(centres, axis=0)).max() < 4  # it does not jump either


@pytest.mark.parametrize("seed", range(5))
def test_the_ellipsoid_is_oblique(seed):
    _, labels = phantom(seed)
    centres = np.array([np.argwhere(section == 2).mean(0) for section in labels if (section == 2).any()])
    assert len(centres) >= 4
    assert np.abs(centres[-1] - centres[0]).max() > 1


def test_intensities_are_those_of_the_tissues():
    image, labels = phantom(shape=(32, 40, 40))
    for label, mean in enumerate(TISSUE):
        inside = image[labels == label]
        assert abs(np.median(inside) - mean) < 25
    background = image[labels == 0]
    assert background.std() > NOISE / 2


@pytest.mark.parametrize("shape", [(15, 20, 20), (20, 20), (20, 20, 3)])
def test_too_small_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape must have three entries of at least 16"):
        phantom(shape=shape)


def test_a_dataset_as_nnunet_wants_it(tmp_path):
    for name in ("first", "again"):
        write_phantom_dataset(tmp_path / name / "Dataset900_Phantom", cases=2, shape=SHAPE, seed=1)
    folder = tmp_path / "first" / "Dataset900_Phantom"
    dataset = json.loads((folder / "dataset.json").read_text())
    assert dataset["numTraining"] == len(list((folder / "imagesTr").iterdir())) == 2
    assert dataset["labels"] == LABELS
    images = []
    for case in ("phantom_000", "phantom_001"):
        image = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000{dataset['file_ending']}"))
        labels = sitk.ReadImage(str(folder / "labelsTr" / f"{case}{dataset['file_ending']}"))
        assert image.GetSize() == labels.GetSize() == SHAPE[::-1]
        assert image.GetSpacing() == (1, 1, 1)
        images.append(sitk.GetArrayFromImage(image))
        again = sitk.ReadImage(str(tmp_path / "again" / folder.name / "imagesTr" / f"{case}_0000.nii.gz"))
        np.testing.assert_array_equal(images[-1], sitk.GetArrayFromImage(again))
    assert (images[0] != images[1]).any()

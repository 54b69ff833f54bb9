"""Offsets that make volumes what thick labels say."""

import json

import numpy as np
import pytest

from benchmarks.quality.unbiased import choose_offsets, choose_on_folder, decide, decide_folder


def soft(seed, shape=(12, 10, 10), classes=4):
    logits = np.random.default_rng(seed).normal(size=(classes, *shape)).astype(np.float32)
    logits[0] += 1.5
    exponents = np.exp(logits)
    return exponents / exponents.sum(axis=0)


def counts(cases, offsets):
    return [sum(int((decide(case, offsets) == label).sum()) for case in cases) for label in range(1, len(offsets))]


@pytest.mark.parametrize("voxels", [[300, 200, 100], [250, 60, 400]])
def test_every_class_gets_its_voxels_over_all_cases(voxels):
    cases = [soft(0), soft(1, shape=(8, 6, 7))]
    offsets = choose_offsets(cases, voxels)
    assert offsets[0] == 0
    assert counts(cases, offsets) == pytest.approx(voxels, abs=3)


def test_without_offsets_the_most_probable_class_is_taken():
    case = soft(3)
    np.testing.assert_array_equal(decide(case, np.zeros(4)), case.argmax(axis=0))
    case[:, 0] = 0  # a network that says nothing
    case[1, 0] = 1
    assert (decide(case, np.zeros(4))[0] == 1).all()


def test_folders(tmp_path, write_volume):
    """Thick labels of the predicted cases alone count, r times."""
    for number in range(3):
        thick = np.zeros((3, 10, 10), dtype=np.uint8)
        thick[1, : 2 + 3 * number, :5] = 1
        write_volume(tmp_path / "thick" / f"case_{number}.nii.gz", thick)
    for number in range(2):
        case = soft(number, classes=2)
        write_volume(tmp_path / "predicted" / f"case_{number}.nii.gz", case.argmax(axis=0).astype(np.uint8))
        np.savez_compressed(tmp_path / "predicted" / f"case_{number}.npz", probabilities=case)
    offsets = choose_on_folder(
        tmp_path / "predicted", tmp_path / "thick", classes=2, factor=4, file=tmp_path / "offsets.json"
    )
    assert json.loads((tmp_path / "offsets.json").read_text())["wanted_voxels"] == [4 * 5 * (2 + 5)]
    decide_folder(tmp_path / "predicted", tmp_path / "decided", offsets)
    assert counts([soft(0, classes=2), soft(1, classes=2)], offsets) == pytest.approx([140], abs=1)
    assert len(list((tmp_path / "decided").iterdir())) == 2

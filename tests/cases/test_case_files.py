"""Class locations, and a disk that does not take everything."""

import resource
from contextlib import contextmanager

import blosc2
import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases import case_files
from rehrseg_nnunet.cases.case_files import SUFFIXES, class_locations, save_case

DATA_BYTES = 2 * 24**3 * 4
MANAGERS = {
    "labels": LabelManager({"background": 0, "a": 1, "b": 2}, None),
    "ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
    "regions": LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2]),
}


@pytest.mark.parametrize("kind", MANAGERS)
def test_class_locations_are_those_of_the_labels(kind):
    labels = np.random.default_rng(0).integers(-1, 4, size=(1, 8, 6, 7)).astype(np.int16)
    locations = class_locations(labels, MANAGERS[kind])
    members = {1: [1], 2: [2], (1, 2): [1, 2], (-1, 0, 1, 2): [-1, 0, 1, 2]}
    expected_keys = {"labels": [1, 2], "ignore": [1, 2, (-1, 0, 1, 2)], "regions": [(1, 2), 2, (-1, 0, 1, 2)]}
    assert list(locations) == expected_keys[kind]
    for key, voxels in locations.items():
        assert {tuple(v) for v in voxels} == {tuple(v) for v in np.argwhere(np.isin(labels, members[key]))}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, 24, 24, 24)).astype(np.float32), rng.integers(-1, 3, size=(1, 24, 24, 24))


def save(folder, seed=0, properties=None):
    data, labels = arrays(seed)
    return save_case(
        folder / "cases",
        "case",
        data,
        labels,
        properties or {"spacing": [1.0]},
        patch_size=(16, 16, 16),
        scratch=folder / "scratch",
    )


@contextmanager
def largest_file(size):
    """The system refuses to let any file grow beyond `size` bytes, as a full disk would."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def assert_holds(folder, seed):
    data, labels, _, _ = nnUNetDatasetBlosc2(str(folder / "cases")).load_case("case")
    np.testing.assert_array_equal(data[:], arrays(seed)[0])
    np.testing.assert_array_equal(labels[:], arrays(seed)[1])


def test_what_is_read_is_what_was_written(tmp_path):
    sizes = save(tmp_path)
    assert_holds(tmp_path, 0)
    assert {path.name: path.stat().st_size for path in (tmp_path / "cases").iterdir()} == sizes
    assert set(sizes) == {f"case{suffix}" for suffix in SUFFIXES}
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]


@pytest.mark.parametrize("size", [0, 1000, DATA_BYTES // 2, DATA_BYTES])  # image header, image, end of image
def test_a_full_disk_is_noticed_and_leaves_the_former_case(tmp_path, size):
    save(tmp_path)
    message = rf"{tmp_path / 'cases' / 'case'}.b2nd could not be written completely .*free space .*--c .*--val"
    with largest_file(size), pytest.raises(OSError, match=message):
        save(tmp_path, seed=1)
    assert_holds(tmp_path, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["cases"]
    save(tmp_path, seed=1)
    assert_holds(tmp_path, 1)


def test_a_full_disk_is_noticed_at_the_properties_too(tmp_path):
    with largest_file(DATA_BYTES * 2), pytest.raises(OSError, match="could not be written completely"):
        save(tmp_path, properties={"many": np.arange(DATA_BYTES)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".b2nd", "_seg.b2nd"])
def test_arrays_that_were_lost_without_an_error_are_noticed(tmp_path, monkeypatch, suffix):
    stock = nnUNetDatasetBlosc2.save_case

    def loses_a_slice(data, labels, properties, file, **kwargs):
        stock(data, labels, properties, file, **kwargs)
        blosc2.open(urlpath=f"{file}{suffix}", mode="a")[:, -1:] = 7

    monkeypatch.setattr(case_files.nnUNetDatasetBlosc2, "save_case", staticmethod(loses_a_slice))
    with pytest.raises(OSError, match=rf"could not be written completely \(case{suffix} differs from what was written"):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Interpolated cases: content, reruns and interruptions."""

import contextlib
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan

from rehrseg_nnunet.cases import case_files, interpolated
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.interpolated import interpolated_folder, write_interpolated_cases
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import interpolate

IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
SPACING = (3.0, 1.0, 1.0)
FACTOR = 3


def save(folder, identifier, seed=0, labels=None):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 4, 6, 7)).astype(np.float32)
    if labels is None:
        labels = rng.integers(-1, 4, size=(1, 2, 2, 1)).repeat(2, 1).repeat(3, 2).repeat(7, 3).astype(np.int8)
    for suffix in case_files.SUFFIXES:  # blosc2 does not overwrite; nnU-Net deletes its folder first
        (folder / f"{identifier}{suffix}").unlink(missing_ok=True)
    nnUNetDatasetBlosc2.save_case(
        image,
        labels,
        {"spacing": list(SPACING), "class_locations": {1: "stale"}},
        str(folder / identifier),
        chunks=(1, 4, 6, 7),
        blocks=(1, 4, 6, 7),
    )
    return image, labels


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "nnUNetPlans_3d_fullres"
    folder.mkdir()
    for number, identifier in enumerate(("case_1", "case_10", "case_2")):
        save(folder, identifier, number)
    return folder


def write(source, identifiers=("case_1",), factor=FACTOR):
    """The folder of the interpolated cases."""
    planned = plan(IGNORE, factor=factor, spacing_mm=SPACING, patch_size=(2, 6, 6))
    dataset = nnUNetDatasetBlosc2(str(source), list(identifiers))
    written = write_interpolated_cases(dataset, iter(identifiers), planned)
    assert sorted(written.identifiers) == sorted(identifiers)
    return Path(written.source_folder)


def times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}


def rewrite(source, identifier, seed):
    """nnU-Net preprocesses a case again, later."""
    result = save(source, identifier, seed)
    for suffix in case_files.SUFFIXES:
        os.utime(source / f"{identifier}{suffix}", ns=(2**60, 2**60))
    return result


def test_the_folder_lies_beside_nnunets():
    folder = interpolated_folder("/data/Dataset009_X/nnUNetPlans_3d_fullres", 4)
    assert folder.as_posix() == "/data/Dataset009_X/nnUNetPlans_3d_fullres_rehrseg_r4"


@pytest.mark.parametrize("factor", [2, 3])
def test_content(source, factor):
    image, labels, _, _ = nnUNetDatasetBlosc2(str(source)).load_case("case_1")
    folder = write(source, factor=factor)
    assert folder == interpolated_folder(source, factor)
    dataset = nnUNetDatasetBlosc2(str(folder))
    assert dataset.identifiers == ["case_1"]
    fine, fine_labels, _, properties = dataset.load_case("case_1")
    assert fine.dtype == np.float32
    np.testing.assert_array_equal(fine[:], interpolate(torch.from_numpy(image[:]), factor, 1).numpy())
    expected = interpolate_labels(labels[0], factor, 0, spacing_mm=SPACING)
    np.testing.assert_array_equal(fine_labels[:][0], expected)
    assert set(np.unique(fine_labels[:])) == set(np.unique(labels[:]))
    assert properties["spacing"] == list(SPACING)
    assert IntensityUnit.of_properties(properties) == IntensityUnit.of_case(image[:])


def test_minus_one_and_the_ignore_label_survive(source):
    labels = np.full((1, 4, 6, 7), 0, dtype=np.int8)
    labels[0, :, :2], labels[0, :, 4:] = -1, 3
    save(source, "case_1", labels=labels)
    _, fine, _, properties = nnUNetDatasetBlosc2(str(write(source))).load_case("case_1")
    np.testing.assert_array_equal(fine[:], labels.repeat(FACTOR, axis=1))
    annotated = properties["class_locations"][(-1, 0, 1, 2)]
    assert (fine[:][tuple(annotated.T)] != 3).all()
    assert len(annotated) == (labels != 3).sum() * FACTOR
    assert len(properties["class_locations"][1]) == 0


def test_class_locations_are_those_of_the_interpolated_labels(source):
    for identifier in ("case_1", "case_2"):
        _, fine, _, properties = nnUNetDatasetBlosc2(str(write(source, [identifier]))).load_case(identifier)
        for label in (1, 2):
            voxels = {tuple(v) for v in properties["class_locations"][label]}
            assert voxels == {tuple(v) for v in np.argwhere(fine[:] == label)}


def test_a_rerun_writes_nothing(source):
    folder = write(source, ["case_1", "case_10"])
    before = times(folder)
    assert write(source, ["case_1", "case_10"]) == folder
    assert times(folder) == before
    write(source, [])
    assert times(folder) == before
    write(source, ["case_2", "case_1"])
    after = times(folder)
    assert {name: after[name] for name in before} == before
    assert len(after) == 9


def test_unpacked_arrays_change_nothing(source):
    folder = write(source)
    before = times(folder)
    np.save(source / "case_1.npy", np.zeros(3))
    write(source)
    assert times(folder) == before


def test_only_the_changed_case_is_written_anew(source):
    folder = write(source, ["case_1", "case_10"])
    before = times(folder)
    image, _ = rewrite(source, "case_1", seed=7)
    write(source, ["case_1", "case_10"])
    after = times(folder)
    assert {name for name in before if before[name] != after[name]} == {f"case_1{s}" for s in case_files.SUFFIXES}
    fine = nnUNetDatasetBlosc2(str(folder)).load_case("case_1")[0]
    np.testing.assert_array_equal(fine[:], interpolate(torch.from_numpy(image), FACTOR, 1).numpy())


def test_changes_of_cases_with_brackets_in_their_name_are_seen(source):
    save(source, "case[1]")
    before = times(write(source, ["case[1]"]))
    rewrite(source, "case[1]", seed=7)
    after = times(write(source, ["case[1]"]))
    assert all(before[name] != after[name] for name in before)


@pytest.mark.parametrize("where", ["while interpolating", "while saving", "while moving the first file"])
def test_nothing_half_written_appears(source, monkeypatch, where):
    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "while interpolating":
        monkeypatch.setattr(interpolated, "interpolate", fail)
    elif where == "while saving":
        monkeypatch.setattr(nnUNetDatasetBlosc2, "save_case", staticmethod(fail))
    else:
        monkeypatch.setattr(case_files, "move_into_place", fail)
    with pytest.raises(KeyboardInterrupt):
        write(source)
    monkeypatch.undo()
    folder = interpolated_folder(source, FACTOR)
    assert list(folder.iterdir()) == []
    assert {path.name for path in source.parent.iterdir()} == {source.name, folder.name, f"{folder.name}.lock"}
    assert len(list(write(source).iterdir())) == 3


@pytest.mark.parametrize("moves", [1, 2])
def test_a_case_interrupted_between_its_files_is_written_again(source, monkeypatch, moves):
    folder = write(source)
    image, _ = rewrite(source, "case_1", seed=7)
    move, done = case_files.move_into_place, []

    def fail_later(*args):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(move(*args))

    monkeypatch.setattr(case_files, "move_into_place", fail_later)
    with pytest.raises(KeyboardInterrupt):
        write(source)
    monkeypatch.undo()
    write(source)
    fine = nnUNetDatasetBlosc2(str(folder)).load_case("case_1")[0]
    np.testing.assert_array_equal(fine[:], interpolate(torch.from_numpy(image), FACTOR, 1).numpy())


def test_bad_cases_are_refused_before_anything_is_interpolated(source):
    labels = np.full((1, 4, 6, 7), 7, dtype=np.int8)
    save(source, "case_2", labels=labels)
    with pytest.raises(ValueError, match=r"case_2 has label 7, which dataset.json does not have"):
        write(source, ["case_1", "case_2"])
    assert not interpolated_folder(source, FACTOR).exists()
    assert len(list(write(source, ["case_1"]).iterdir())) == 3


def test_another_process_that_writes_the_same_cases_is_waited_for(source, monkeypatch):
    """The waiting one finds them written and interpolates nothing."""
    saved, started, go_on = [], threading.Event(), threading.Event()
    stock = interpolated.save_case

    def slow(folder, identifier, *args, **kwargs):
        started.set()
        go_on.wait(10)
        saved.append(identifier)
        return stock(folder, identifier, *args, **kwargs)

    monkeypatch.setattr(interpolated, "save_case", slow)
    threads = [threading.Thread(target=write, args=(source, cases)) for cases in (["case_1"], ["case_1", "case_2"])]
    for thread in threads:
        thread.start()
        started.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(timeout=20)
    assert sorted(saved) == ["case_1", "case_2"]
    write(source, ["case_1", "case_2"])
    assert len(saved) == 2


def test_leftovers_of_a_killed_process_are_removed(source):
    scratch = source.parent / f"{source.name}_rehrseg_r{FACTOR}_tmp"
    scratch.mkdir()
    (scratch / "case_1.b2nd").write_bytes(b"half")
    write(source)
    assert not scratch.exists()


def test_without_locks_processes_have_scratch_folders_of_their_own(source, monkeypatch):
    scratches, stock = [], interpolated.save_case

    def saved(*args, scratch, **kwargs):
        scratches.append(scratch.name)
        return stock(*args, scratch=scratch, **kwargs)

    monkeypatch.setattr(interpolated, "save_case", saved)
    monkeypatch.setattr(interpolated, "exclusive", lambda *args, **kwargs: contextlib.nullcontext(False))
    for process in (11, 12):
        monkeypatch.setattr(interpolated.os, "getpid", lambda process=process: process)
        write(source, [f"case_{process - 10}"])
    assert [name.rsplit("_", 1)[1] for name in scratches] == ["11", "12"]


def test_truncated_properties_count_as_missing(source):
    file = write(source) / "case_1.pkl"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    write(source)
    assert file.stat().st_size == len(content)

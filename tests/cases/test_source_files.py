"""When a case made from preprocessed files is out of date."""

import os
import pickle
import shutil

import numpy as np
import pytest

from rehrseg_nnunet.cases.intensity_unit import INTENSITY_UNIT, IntensityUnit
from rehrseg_nnunet.cases.source_files import derived_properties, is_current, source_state

IMAGE = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "preprocessed"
    folder.mkdir()
    for suffix, content in ((".b2nd", b"image"), ("_seg.b2nd", b"labels"), (".pkl", b"properties")):
        (folder / f"a{suffix}").write_bytes(content)
    (folder / "b.pkl").write_bytes(b"another case")
    return folder


@pytest.fixture
def derived(tmp_path, source):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(derived_properties(source, "a", IMAGE, {"spacing": [4, 1, 1]})))
    return file


def test_properties_of_the_case_and_its_intensity_unit_are_kept(derived):
    properties = pickle.loads(derived.read_bytes())
    assert properties["spacing"] == [4, 1, 1]
    assert IntensityUnit.of_properties(properties) == IntensityUnit.of_case(IMAGE)


def test_a_case_of_before_intensity_units_is_not_current(source, derived):
    properties = pickle.loads(derived.read_bytes())
    del properties[INTENSITY_UNIT]
    derived.write_bytes(pickle.dumps(properties))
    assert not is_current(derived, source, "a")


def test_untouched_files_are_current(source, derived):
    assert set(source_state(source, "a")) == {"a.b2nd", "a_seg.b2nd", "a.pkl"}
    assert is_current(derived, source, "a")


def test_files_of_the_same_content_are_current_wherever_and_whenever_written(source, derived, tmp_path):
    other = shutil.copytree(source, tmp_path / "other disk", copy_function=shutil.copyfile)
    os.utime(other / "a.b2nd", ns=(1, 1))
    assert is_current(derived, other, "a")


@pytest.mark.parametrize("content", [b"LABELS", b"more labels"])
def test_another_content_of_any_size_is_not(source, derived, content):
    (source / "a_seg.b2nd").write_bytes(content)
    os.utime(source / "a_seg.b2nd", ns=(1, 1))
    assert not is_current(derived, source, "a")


def test_neither_are_a_file_more_or_less(source, derived):
    (source / "a.npz").write_bytes(b"x")
    assert not is_current(derived, source, "a")
    (source / "a.npz").unlink()
    (source / "a.b2nd").unlink()
    assert not is_current(derived, source, "a")


@pytest.mark.parametrize("content", [pickle.dumps({}), pickle.dumps({"a": 1})[:-3], b""])
def test_properties_that_do_not_say_what_they_were_made_from(source, derived, content):
    derived.write_bytes(content)
    assert not is_current(derived, source, "a")
    derived.unlink()
    assert not is_current(derived, source, "a")

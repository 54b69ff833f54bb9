"""dataset.json: what nnU-Net would stumble over, or take without a word, is one message."""

import json

import pytest

from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json, read_plans

CONTENT = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}


def read(folder, text):
    (folder / "dataset.json").write_text(text)
    return read_dataset_json(folder / "dataset.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("labels", [], r"labels of \S+dataset\.json must give a number for each name, got \[\]"),
        ("labels", None, "labels of .* got null"),
        ("channel_names", ["T1"], r"channel_names of .* must give a name for each number, got \["),
        ("channel_names", {}, "channel_names of .* must give a name for each number, got {}"),
        ("file_ending", "nii.gz", 'file_ending of .* must be text that begins with a dot, got "nii.gz"'),
        ("file_ending", None, "file_ending of .* got null"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, json.dumps({**CONTENT, key: value}))


def test_a_key_with_two_values_is_named(tmp_path):
    twice = json.dumps(CONTENT).replace('"a": 1', '"a": 1, "b": 2, "a": 3')
    with pytest.raises(ValueError, match=r"dataset\.json must have every key once, got other values under .* key a$"):
        read(tmp_path, twice)
    harmless = json.dumps(CONTENT).replace('"a": 1', '"a": 1, "a": 1')
    assert read(tmp_path, harmless) == CONTENT


@pytest.mark.parametrize("content", [{}, {"configurations": None}, {"configurations": {"3d_fullres": None}}])
def test_what_has_no_configurations_is_no_plans(tmp_path, content):
    (tmp_path / "plans.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"plans\.json must be nnU-Net plans, got no configurations in it; plan anew"):
        read_plans(tmp_path / "plans.json", remedy="plan anew")

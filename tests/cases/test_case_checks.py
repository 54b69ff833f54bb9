"""Cases that nothing can be trained on."""

import json

import numpy as np
import pytest
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_checks import check_cases

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2])
SHAPE = (4, 5, 6)


def dataset(folder, **cases):
    """Cases by name, each the value of one voxel of the image and one of the labels."""
    folder.mkdir()
    for name, (intensity, label) in cases.items():
        image = np.zeros((2, *SHAPE), np.float32)
        labels = np.resize(np.array([-1, 0, 1, 2], np.int8), (1, *SHAPE))
        image[1, 2, 3, 4], labels[0, 3, 4, 5] = intensity, label
        nnUNetDatasetBlosc2.save_case(image, labels, {}, str(folder / name), chunks=(1, *SHAPE), blocks=(1, *SHAPE))
    return nnUNetDatasetBlosc2(str(folder))


@pytest.mark.parametrize(("manager", "label"), [(PLAIN, 2), (IGNORE, 3), (REGIONS, 3)])
def test_good_cases_pass(tmp_path, manager, label):
    cases = dataset(tmp_path / "lr", good=(1.5, label))
    check_cases(cases, ["good"], label_manager=manager)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    cases = dataset(tmp_path / "lr", good=(0, 0), bad=(value, 0))
    check_cases(cases, ["good"], label_manager=PLAIN)
    message = rf"bad has nan or inf in its image \({tmp_path}/lr/bad\); mend the files, .*--verify_dataset_integrity"
    with pytest.raises(ValueError, match=message) as error:
        check_cases(cases, ["good", "bad"], label_manager=PLAIN)
    assert "good" not in str(error.value)


@pytest.mark.parametrize(("manager", "label"), [(PLAIN, 3), (PLAIN, 7), (IGNORE, 4), (REGIONS, 7), (PLAIN, -2)])
def test_labels_that_dataset_json_does_not_have_are_refused(tmp_path, manager, label):
    cases = dataset(tmp_path / "lr", bad=(0, label))
    with pytest.raises(ValueError, match=f"bad has label {label}, which dataset.json does not have"):
        check_cases(cases, ["bad"], label_manager=manager)


def test_all_bad_cases_are_named_at_once_but_not_more_than_fit_a_line(tmp_path):
    cases = dataset(tmp_path / "lr", **{f"bad{i}": (np.nan, 0) for i in range(4)}, seven=(0, 7), nine=(0, 9))
    identifiers = ["bad0", "bad1", "seven", "bad2", "bad3", "nine"]
    with pytest.raises(ValueError, match=r"bad0 has nan .*; seven has label 7, .* and 1 more; mend") as error:
        check_cases(cases, identifiers, label_manager=PLAIN)
    assert "nine" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("listed", [True, False])
def test_raw_files_are_named_where_they_are_known(tmp_path, listed):
    cases, raw = dataset(tmp_path / "lr", bad=(np.nan, 0)), tmp_path / "raw"
    for folder, name in (("imagesTr", "bad_0000.nrrd"), ("imagesTr", "bad_0001.nrrd"), ("labelsTr", "bad.nrrd")):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        (raw / folder / name).touch()
    content = {"file_ending": ".nrrd"}
    if listed:
        content["dataset"] = {"bad": {"images": ["elsewhere.nrrd"], "label": "labelsTr/bad.nrrd"}}
    (raw / "dataset.json").write_text(json.dumps(content))
    names = [raw / ("elsewhere.nrrd" if listed else "imagesTr/bad_0000.nrrd"), raw / "labelsTr/bad.nrrd"]
    with pytest.raises(ValueError, match=r"bad has nan") as error:
        check_cases(cases, ["bad"], label_manager=PLAIN, raw_folder=raw)
    assert all(str(name) in str(error.value) for name in names)

"""Integers are labels, what is nearly one becomes one, what is none is refused."""

import re

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.nnunet.label_values import (
    describe_unknown,
    integer_labels,
    known_labels,
    label_manager_of,
    unknown_labels,
)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float32])
def test_integers_pass_without_a_word(caplog, dtype):
    labels = np.array([0, 1, 300, -1])
    result = integer_labels(labels.astype(dtype), file="a")
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, labels)
    assert caplog.messages == []


def test_a_hair_off_is_rounded_both_ways_and_said(caplog):
    """Cutting the fraction off, as nnU-Net's preprocessing does, loses label 1."""
    np.testing.assert_array_equal(integer_labels(np.array([0.9999, 2.0005]), file="a.nii"), [1, 2])
    assert caplog.messages == ["a.nii: labels up to 0.0005 off an integer are rounded; save the file as integers"]


@pytest.mark.parametrize("value", [1.002, 0.5, -0.1])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=f"a.nii must hold integer labels, got {value}; label maps must be resampled"):
        integer_labels(np.array([0.0, value]), file="a.nii")


@pytest.mark.parametrize("labels", [[0, 1, 5], [-1, 0, 1, 5], [0, 1, 5, 70000]])
def test_unknown_labels(labels):
    assert unknown_labels(np.array(labels), {0, 1, 2}) == [label for label in labels if label not in (0, 1)]


def test_known_labels_include_background_ignore_label_and_those_given_as_text():
    assert known_labels(LabelManager({"background": 0, "a": "1", "ignore": 2}, None)) == {0, 1, 2}
    assert unknown_labels(np.zeros(0, np.int32), {1}) == []
    assert describe_unknown([4, 5]) == "has label 4, 5, which dataset.json does not have"


@pytest.mark.parametrize("value", [2.0**31, -(2.0**40)])
@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_labels_that_do_not_fit_are_refused(value, dtype):
    message = f"a.nii must hold integer labels up to 2147483647, got {value:.10g}; number them anew"
    with pytest.raises(ValueError, match=re.escape(message)):
        integer_labels(np.array([0, value]).astype(dtype), file="a.nii")


def test_large_labels_are_named_in_full_and_many_are_counted():
    assert describe_unknown([1234567]) == "has label 1234567, which dataset.json does not have"
    assert describe_unknown(range(3, 200)) == "has label 3, 4, 5, 6, 7 and 192 more, which dataset.json does not have"


@pytest.mark.parametrize(
    "labels", [{}, {"a": 1}, {"background": 1}, {"background": 0, "a": "x"}, {"background": 0, "a": None}]
)
def test_labels_that_nnunet_does_not_accept_are_one_message(labels):
    with pytest.raises(ValueError, match=r"labels of D/dataset\.json must be what nnU-Net accepts, got "):
        label_manager_of({"labels": labels}, source="D/dataset.json")


def test_regions_need_an_order():
    with pytest.raises(ValueError, match=r"must be what nnU-Net accepts, .* regions_class_order"):
        label_manager_of({"labels": {"background": 0, "a": [1, 2], "b": 2}})


def test_labels_are_not_cut_to_integers():
    with pytest.raises(ValueError, match=r"labels of dataset\.json must be integers, got .* 1\.5"):
        label_manager_of({"labels": {"background": 0, "a": 1.5}})
    assert label_manager_of({"labels": {"background": "0", "a": 1.0}}).all_labels == [0, 1]

"""HR label maps: what the logits say, and what nobody knows."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.restoration.label_maps import to_label_map

FACTOR = 3
PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
REGIONS_IGNORE = LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2])


def lr_labels(manager, seed=0):
    highest = 3 if manager.has_ignore_label else 2
    return np.random.default_rng(seed).integers(-1, highest + 1, size=(1, 4, 6, 7)).astype(np.int8)


def hr_logits(truth, manager):
    """Logits that say what `truth` (r*D, H, W) has."""
    groups = [(1, 2), (2,)] if manager.has_regions else [(0,), (1,), (2,)]
    return torch.stack([torch.from_numpy(np.isin(truth, group)).float() - 0.5 for group in groups])


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS, REGIONS_IGNORE])
def test_the_logits_decide_where_the_nearest_slice_is_known(manager):
    labels = lr_labels(manager)
    before = labels.copy()
    truth = np.random.default_rng(1).integers(0, 3, size=(12, 6, 7))
    found = to_label_map(hr_logits(truth, manager), labels, FACTOR, manager)
    assert found.shape == (1, 12, 6, 7)
    assert found.dtype == np.int16
    nearest = labels.repeat(FACTOR, axis=1)
    unknown = np.isin(nearest, (-1, 3))
    np.testing.assert_array_equal(found, np.where(unknown, nearest, truth))
    np.testing.assert_array_equal(labels, before)


def test_without_an_ignore_label_only_minus_one_is_unknown():
    labels = np.array([2, -1, 1, 0], dtype=np.int8).reshape(1, 4, 1, 1)
    found = to_label_map(hr_logits(np.zeros((12, 1, 1)), PLAIN), labels, FACTOR, PLAIN)
    assert found.ravel().tolist() == [0] * 3 + [-1] * 3 + [0] * 6

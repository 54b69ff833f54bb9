import numpy as np
import pytest

from rehrseg_nnunet.surfaces.structures import Structure, structures_in, structures_of


def test_labels_without_background_and_ignore_label():
    found = structures_of({"labels": {"background": 0, "b": 2, "a": 1, "ignore": 3}})
    assert found.all == (Structure("a", (1,), 1), Structure("b", (2,), 2))
    assert (found.heads, found.class_order) == (3, ())


def test_regions_in_the_order_of_their_heads():
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    found = structures_of({"labels": labels, "regions_class_order": [1, 2]})
    assert found.all == (Structure("whole", (1, 2), 0), Structure("core", (2,), 1))
    assert (found.heads, found.class_order) == (2, (1, 2))


def test_a_map_without_dataset_json():
    found = structures_in(np.array([0, 7, 3, 3]))
    assert [structure.name for structure in found.all] == ["label_3", "label_7"]


def test_label_1_and_the_first_region_have_the_first_colour():
    plain = structures_of({"labels": {"background": 0, "a": 1, "b": 2}})
    regions = structures_of({"labels": {"background": 0, "w": [1, 2], "c": 2}, "regions_class_order": [1, 2]})
    assert [plain.colour(s) for s in plain.all] == [regions.colour(s) for s in regions.all]
    assert plain.colour(plain.all[0]) == (230, 159, 0)


def test_labels_that_nnunet_refuses():
    with pytest.raises(ValueError, match="labels of x must be what nnU-Net accepts"):
        structures_of({"labels": {"a": 1}}, source="x")

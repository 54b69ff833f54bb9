"""Margins have the sign of nnU-Net's label map."""

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.surfaces.margins import label_pieces, logit_pieces
from rehrseg_nnunet.surfaces.structures import structures_of

SHAPE = (7, 8, 9)
CLASSES = {"background": 0, "a": 1, "b": 2, "c": 3}
NESTED = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
APART = {"background": 0, "left": [1, 2], "right": 3, "both": [2, 3]}


def dataset(labels, order=None):
    return {"labels": labels, "regions_class_order": order}


CASES = [dataset(CLASSES), dataset(NESTED, [1, 2, 3]), dataset(APART, [1, 3, 2]), dataset(NESTED, [3, 1, 2])]


def placed(piece):
    """Where a margin is positive, in the image."""
    inside = np.zeros(SHAPE, bool)
    if piece is None:
        return inside
    for index in np.argwhere(piece.values > 0) + piece.start:
        inside[tuple(index)] = True
    return inside


def logits_of(content, *, step):
    heads = structures_of(content).heads
    noise = np.random.default_rng(1).normal(size=(heads, *SHAPE))
    return (np.round(noise / step) * step).astype(np.float16) if step else noise.astype(np.float32)


@pytest.mark.parametrize("step", [0, 0.5], ids=["", "ties"])
@pytest.mark.parametrize("content", CASES, ids=lambda content: str(content["regions_class_order"]))
def test_the_sign_is_that_of_nnunets_label_map(content, step):
    logits = logits_of(content, step=step)
    manager = LabelManager(content["labels"], content["regions_class_order"])
    labels = np.asarray(manager.convert_logits_to_segmentation(torch.from_numpy(logits).float()))
    structures = structures_of(content)
    for structure, piece in logit_pieces(logits, structures):
        np.testing.assert_array_equal(placed(piece), np.isin(labels, structure.labels), err_msg=structure.name)
    for structure, piece in label_pieces(labels, structures):
        np.testing.assert_array_equal(placed(piece), np.isin(labels, structure.labels), err_msg=structure.name)


def naive(logits, head):
    others = [values for other, values in enumerate(logits) if other != head]
    return logits[head] - np.max(others, axis=0)


def test_margins_of_classes():
    logits = logits_of(CASES[0], step=0)
    for structure, piece in logit_pieces(logits, structures_of(CASES[0])):
        expected = np.pad(naive(logits, structure.head), 2)
        clear = np.pad(np.abs(naive(logits, structure.head)) > 0.1, 2)
        np.testing.assert_allclose(piece.values[clear], expected[clear], rtol=1e-5)


def test_the_margin_of_nested_regions_is_the_regions_own_logit():
    """Inside another one's border too, where the label map changes and the region does not end."""
    distance = np.linalg.norm(np.stack(np.indices(SHAPE)) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2, axis=0)
    logits = np.stack([3.4 - distance, 2.3 - distance, 1.2 - distance])
    content = dataset(NESTED, [1, 2, 3])
    for structure, piece in logit_pieces(logits, structures_of(content)):
        here = tuple(slice(2, -2) for _ in range(3))
        part = tuple(slice(s + 2, s + n - 2) for s, n in zip(piece.start, piece.values.shape, strict=True))
        np.testing.assert_allclose(piece.values[here], logits[structure.head][part], rtol=1e-5)


def test_margins_are_never_0_and_negative_all_around():
    for content in CASES:
        for _, piece in logit_pieces(logits_of(content, step=0.5), structures_of(content)):
            assert (piece.values != 0).all()
            shell = np.pad(np.zeros(np.array(piece.values.shape) - 2, bool), 1, constant_values=True)
            assert (piece.values[shell] < 0).all()


def test_beyond_the_image_the_margin_is_mirrored():
    logits = np.stack([np.zeros(SHAPE), np.arange(1.0, 1 + np.prod(SHAPE)).reshape(SHAPE)])
    ((_, piece),) = logit_pieces(logits, structures_of(dataset({"background": 0, "a": 1})))
    np.testing.assert_array_equal(piece.values[1, 2:-2, 2:-2], -piece.values[2, 2:-2, 2:-2])
    np.testing.assert_array_equal(piece.values[0, 2:-2, 2:-2], -piece.values[3, 2:-2, 2:-2])


def test_empty_structures_have_no_margin():
    logits = np.stack([np.ones(SHAPE), np.zeros(SHAPE), np.full(SHAPE, 2.0), np.zeros(SHAPE)])
    found = {structure.name: piece is None for structure, piece in logit_pieces(logits, structures_of(CASES[0]))}
    assert found == {"a": True, "b": False, "c": True}
    labels = np.full(SHAPE, 2)
    assert {s.name: p is None for s, p in label_pieces(labels, structures_of(CASES[0]))} == found
    regions = [piece for _, piece in logit_pieces(np.full((3, *SHAPE), -1.0), structures_of(CASES[1]))]
    assert regions == [None, None, None]


def test_logits_are_not_changed():
    for content in CASES:
        logits = logits_of(content, step=0)
        before = logits.copy()
        list(logit_pieces(logits, structures_of(content)))
        np.testing.assert_array_equal(logits, before)


def test_a_region_ends_where_another_one_writes_over_it():
    """Where a later region's logit becomes positive, between two voxels, the earlier one's margin is minus that."""
    content = dataset({"background": 0, "left": [1], "right": [2], "both": [1, 2]}, [1, 2, 1])
    later = np.broadcast_to(np.arange(SHAPE[2]) - 3.25, SHAPE)
    logits = np.stack([np.full(SHAPE, 5.0), later, np.full(SHAPE, -9.0)])
    pieces = {structure.name: piece for structure, piece in logit_pieces(logits, structures_of(content))}
    for name, sign in (("left", -1), ("right", 1)):
        values, start = pieces[name].values, pieces[name].start
        middle = values[values.shape[0] // 2, values.shape[1] // 2]
        np.testing.assert_allclose(middle[3 - start[2]], sign * -0.25)
        np.testing.assert_allclose(middle[4 - start[2]], sign * 0.75)

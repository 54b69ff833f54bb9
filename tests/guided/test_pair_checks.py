"""Edges of the two scans of a pair: what they agree on, and which pairs stand out."""

import numpy as np
import pytest

from rehrseg_nnunet.guided.low_field import LowField, case_generator, low_field_twin
from rehrseg_nnunet.guided.pair_checks import doubtful_pairs, edge_correlation

SHAPE = (16, 16, 16)
EVERYWHERE = np.ones(SHAPE, bool)


def head(seed):
    """Two balls at random places."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    image = np.full(SHAPE, 20.0)
    for radius, value in ((5, 60.0), (3, 100.0)):
        centre = rng.uniform(5, 11, 3)
        image[sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < radius**2] = value
    return image[None]


def test_contrast_scale_and_offset_do_not_matter():
    image = head(0)
    for other in (image, 3 * image + 7, 200 - image):
        assert edge_correlation(image, other, EVERYWHERE) == pytest.approx(1)
    assert edge_correlation(image, np.concatenate([image, 50 - image]), EVERYWHERE) == pytest.approx(1)


def test_it_falls_with_every_voxel_of_a_shift():
    image = head(0)
    values = [edge_correlation(image, np.roll(image, shift, axis=2), EVERYWHERE) for shift in range(5)]
    assert (np.diff(values) < -0.05).all()


def test_only_what_is_inside_counts():
    image, inside = head(0), EVERYWHERE.copy()
    inside[8:] = False
    other = image.copy()
    other[0, 12:] = np.random.default_rng(0).normal(0, 0.1, (4, 16, 16))
    assert edge_correlation(image, other, inside) > edge_correlation(image, other, EVERYWHERE)


def test_a_constant_scan_has_no_edges():
    assert np.isnan(edge_correlation(head(0), np.ones((1, *SHAPE)), EVERYWHERE))


def test_a_misregistered_pair_stands_out_among_noisy_ones():
    correlations = {}
    for case in range(6):
        image = head(case)[0]
        scanner = LowField(2.0, 12.0, 0.7)
        twin = low_field_twin(image, (1, 1, 1), scanner, head=EVERYWHERE, random=case_generator(0, str(case)))
        moved = np.roll(twin, 3, axis=1) if case == 4 else twin
        correlations[str(case)] = edge_correlation(moved[None], image[None], EVERYWHERE)
    assert list(doubtful_pairs(correlations)) == ["4"]


def test_few_pairs_and_constant_ones_are_not_judged():
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1}) == {}
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1, "d": float("nan")}) == {}
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.9, "e": float("nan")}) == {"c": (0.1, 0.9)}

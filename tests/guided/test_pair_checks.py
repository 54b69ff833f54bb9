"""Edges of the two scans of a pair: what they agree on, and which pairs stand out."""

import numpy as np
import pytest

from rehrseg_nnunet.guided.low_field import LowField, case_generator, low_field_twin
from rehrseg_nnunet.guided.pair_checks import OTHER_MASK, doubtful_pairs, edge_correlation, mask_difference

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


def stripped(*, last):
    """A scan with data in a box that ends at a voxel of the last axis."""
    image = np.zeros((1, *SHAPE))
    image[:, 2:12, 2:12, 2:last] = 5
    return image


def test_masks_are_compared_by_what_one_scan_alone_shows():
    assert mask_difference(stripped(last=12), stripped(last=11)) == pytest.approx(0.1)
    assert mask_difference(stripped(last=11), 3 * stripped(last=12)) == pytest.approx(0.1)
    assert mask_difference(np.ones((1, *SHAPE)), stripped(last=12)) == pytest.approx(1 - 1000 / 16**3)
    both = np.concatenate([stripped(last=11), stripped(last=12)])
    assert mask_difference(both, stripped(last=12)) == 0  # nnU-Net's mask is of all channels


def test_holes_of_a_mask_do_not_count():
    image = stripped(last=12)
    image[:, 5:8, 5:8, 5:8] = 0
    assert mask_difference(image, stripped(last=12)) == 0


def test_scans_without_masks_have_none_that_differ():
    image = np.random.default_rng(0).integers(0, 100, (1, *SHAPE))  # zeros of air
    assert mask_difference(image, image[:, ::-1]) == 0
    assert mask_difference(stripped(last=12), np.zeros((1, *SHAPE))) == 0  # which is said as constant


def test_under_the_threshold_intensities_move_little():
    values = np.random.default_rng(0).normal(100, 25, 100_000)

    def moved(share):
        both = np.append(values, np.zeros(int(share / (1 - share) * len(values))))
        usual = np.array([50.0, 100, 150])
        return np.abs((usual - both.mean()) / both.std() - (usual - values.mean()) / values.std()).max()

    assert moved(OTHER_MASK) < 0.2
    assert moved(0.07) > 0.7

"""Where a pair is cut in plane."""

import numpy as np
import pytest

from rehrseg_nnunet.restoration.pairs import random_interval


def drawn(size, edge, contain=None, times=200):
    rng = np.random.default_rng(0)
    return {tuple(random_interval(size, edge, rng, contain)) for _ in range(times)}


def test_every_interval_inside_is_drawn():
    assert drawn(6, 3) == {(0, 3), (1, 4), (2, 5), (3, 6)}


@pytest.mark.parametrize(
    ("voxel", "expected"),
    [(0, {(0, 3)}), (1, {(0, 3), (1, 4)}), (2, {(0, 3), (1, 4), (2, 5)}), (4, {(2, 5), (3, 6)}), (5, {(3, 6)})],
)
def test_every_interval_with_the_voxel_is_drawn(voxel, expected):
    assert drawn(6, 3, voxel) == expected


@pytest.mark.parametrize(
    ("size", "edge", "expected"), [(6, 6, (0, 6)), (4, 6, (-1, 5)), (3, 6, (-1, 5)), (1, 4, (-1, 3))]
)
@pytest.mark.parametrize("voxel", [None, 0])
def test_one_that_does_not_fit_is_centred(size, edge, expected, voxel):
    assert drawn(size, edge, voxel) == {expected}

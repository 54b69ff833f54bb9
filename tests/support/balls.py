"""Margins of bodies whose volume, area and place are known, on grids of any orientation."""

import itertools

import numpy as np

from rehrseg_nnunet.slices.grids import Grid


def positions(shape):
    """(D, H, W, 3) indices of voxels."""
    return np.stack(np.indices(shape), axis=-1).astype(np.float64)


def ball_margin(shape, centre, radius):
    """Signed distance to a sphere in voxels, positive inside."""
    return radius - np.linalg.norm(positions(shape) - centre, axis=-1)


def two_classes(margin):
    """Logits (2, ...) of background and a label with this margin."""
    return np.stack([np.zeros_like(margin), margin])


def orientations():
    """The 48 ways in which the axes of an array can lie along those of the patient."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            yield np.eye(3)[list(order)] * np.array(signs)


def oblique():
    """A rotation about an axis that is none of the array's."""
    turned, _ = np.linalg.qr(np.array([[3.0, 1.0, 0.5], [-1.0, 2.0, 0.7], [0.2, -0.6, 1.5]]))
    return turned


def grid_of(directions, *, shape, spacing_mm=(1.0, 1.0, 1.0), origin_mm=(-31.0, 17.0, 250.0)):
    """A grid whose array axes have these directions, the columns of a (3, 3) matrix."""
    affine = np.eye(4)
    affine[:3, :3] = directions * np.array(spacing_mm)
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def to_mm(grid, index):
    """Position of a (fractional) index."""
    return grid.affine[:3, :3] @ index + grid.affine[:3, 3]

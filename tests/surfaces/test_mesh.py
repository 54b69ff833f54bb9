"""Surfaces of bodies whose volume, area and place are known."""

import numpy as np
import pytest
import trimesh
from balls import ball_margin, grid_of, oblique, orientations, positions, to_mm, two_classes

from rehrseg_nnunet.surfaces.margins import label_pieces, logit_pieces
from rehrseg_nnunet.surfaces.mesh import surface_of
from rehrseg_nnunet.surfaces.structures import structures_of

BALL = structures_of({"labels": {"background": 0, "ball": 1}})
TWO = structures_of({"labels": {"background": 0, "a": 1, "b": 2}})
RADIUS = 15
SHAPE = (38, 39, 40)
CENTRE = np.array([18.3, 19.1, 19.8])


def surfaces(logits, structures=BALL, affine=None):
    affine = np.eye(4) if affine is None else affine
    return {s.name: surface_of(piece, affine, smooth=True) for s, piece in logit_pieces(logits, structures)}


def checked(surface):
    """The surface as trimesh has it: closed, and facing outwards everywhere."""
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(surface.volume_mm3)
    assert mesh.area == pytest.approx(surface.area_mm2)
    return mesh


@pytest.mark.parametrize("radius", [15, 18.5, 22])
@pytest.mark.parametrize(
    "logit",
    [lambda d: d, lambda d: 12 * np.tanh(d / 3), lambda d: 0.02 * d, lambda d: d + 0.02 * d**2],
    ids=["distance", "saturated", "flat", "curved"],
)
def test_volume_and_area_of_a_ball(radius, logit):
    shape = (int(2 * radius) + 8,) * 3
    centre = np.array(shape) / 2 + np.array([0.2, -0.3, 0.1])
    mesh = checked(surfaces(two_classes(logit(ball_margin(shape, centre, radius))).astype(np.float32))["ball"])
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=1e-3)
    assert mesh.area == pytest.approx(4 * np.pi * radius**2, rel=1e-2)
    assert np.abs(np.linalg.norm(mesh.vertices - centre, axis=1) - radius).max() < 0.05


def test_a_small_ball_keeps_its_volume_too():
    mesh = checked(surfaces(two_classes(ball_margin((14, 14, 14), (6.3, 6.9, 6.6), 4)))["ball"])
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 4**3, rel=5e-3)


@pytest.mark.parametrize("directions", [*orientations(), oblique(), -oblique()])
def test_position_in_every_orientation(directions):
    """Anisotropic voxels: the ball of the array is an ellipsoid in mm."""
    radius, shape, centre = 5.0, (13, 14, 15), np.array([6.2, 6.9, 7.1])
    spacing = (1.2, 0.8, 0.5)
    grid = grid_of(directions, shape=shape, spacing_mm=spacing)
    mesh = checked(surfaces(two_classes(ball_margin(shape, centre, radius)), affine=grid.affine)["ball"])
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * radius**3 * np.prod(spacing), rel=5e-3)
    np.testing.assert_allclose(mesh.center_mass, to_mm(grid, centre), atol=0.1)
    index = (mesh.vertices - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    assert np.abs(np.linalg.norm(index - centre, axis=1) - radius).max() < 0.1


def test_a_shear_is_kept():
    affine = np.eye(4)
    affine[0, 1] = 0.4
    mesh = checked(surfaces(two_classes(ball_margin(SHAPE, CENTRE, RADIUS)), affine=affine)["ball"])
    np.testing.assert_allclose(mesh.center_mass, affine[:3, :3] @ CENTRE, atol=0.01)


def test_touching_ellipsoids_share_their_border():
    shape = (30, 40, 30)
    spread = np.array([1.0, 0.8, 1.2])

    def margin(centre):
        return 9 - np.linalg.norm((positions(shape) - centre) * spread, axis=-1)

    a, b = margin((14.2, 12.7, 14.9)), margin((14.8, 26.1, 15.2))
    logits = np.stack([np.zeros(shape), a, b])
    found = {name: checked(surface) for name, surface in surfaces(logits, TWO).items()}
    labels = logits.argmax(0)
    for value, mesh in enumerate(found.values(), start=1):
        assert mesh.volume == pytest.approx((labels == value).sum(), rel=0.01)
    assert (np.abs(a - b)[(a > 0) & (b > 0)]).min() < 1  # they do touch
    nearest = np.linalg.norm(found["a"].vertices[:, None] - found["b"].vertices, axis=2).min(axis=1)
    assert (nearest < 0.1).sum() > 20


def test_what_the_border_cuts_is_closed_at_the_outer_face():
    """Half a ball: its plane lies half a voxel beyond the centres of the first voxels."""
    mesh = checked(surfaces(two_classes(ball_margin((24, 40, 40), (-0.5, 19.6, 19.3), RADIUS)))["ball"])
    assert mesh.volume == pytest.approx(2 / 3 * np.pi * RADIUS**3, rel=0.01)
    assert mesh.bounds[0, 0] == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("smooth", [True, False])
def test_an_image_full_of_one_label_is_a_box(smooth):
    piece = next(logit_pieces(two_classes(np.full((8, 9, 10), 3.0)), BALL))[1]
    mesh = checked(surface_of(piece, np.eye(4), smooth=smooth))
    np.testing.assert_allclose(mesh.bounds, [[-0.5] * 3, [7.5, 8.5, 9.5]], atol=0.1)


@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_noise_is_closed_too(sharpness):
    """White noise has every arrangement of neighbours, ties among them."""
    noise = np.random.default_rng(0).normal(size=(3, 16, 17, 18))
    logits = np.round(noise, 1) if sharpness else noise
    for surface in surfaces(logits, TWO).values():
        checked(surface)
    labels = logits.argmax(0)
    for _, piece in label_pieces(labels, TWO):
        checked(surface_of(piece, np.eye(4), smooth=False))


def test_labels_stay_as_they_are():
    """A box keeps its faces between the voxels, and its volume but for edges and corners."""
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[4:16, 5:15, 6:14] = 1
    mesh = checked(surface_of(next(label_pieces(labels, BALL))[1], np.eye(4), smooth=False))
    np.testing.assert_allclose(mesh.bounds, [[3.5, 4.5, 5.5], [15.5, 14.5, 13.5]], atol=1e-5)
    assert mesh.volume == pytest.approx(12 * 10 * 8, rel=0.02)


def test_offsets_common_to_all_classes_and_scale_change_nothing():
    margin = ball_margin((15, 15, 15), (7.1, 7.3, 6.8), 5)
    logits = two_classes(margin)
    reference = surfaces(logits)["ball"]
    other = surfaces(3.0 * logits + np.sin(positions(margin.shape)[..., 0]))["ball"]
    np.testing.assert_allclose(other.vertices, reference.vertices, atol=1e-4)
    np.testing.assert_array_equal(other.faces, reference.faces)

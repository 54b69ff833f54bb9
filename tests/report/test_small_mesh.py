"""Small surfaces are the surfaces."""

import gzip
import struct

import numpy as np
import pytest
import trimesh

from rehrseg_nnunet.report.small_mesh import SmallMesh


@pytest.fixture
def sphere():
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=20)
    return SmallMesh(mesh.vertices + np.array([5, -60, 100]), mesh.faces)


def decoded(mesh):
    """Read by what the format's description says, https://github.com/neurolabusc/surf-ice."""
    content = gzip.decompress(mesh.encoded())
    magic, attributes, faces, vertices, skip = struct.unpack_from("<HHIII", content)
    assert (magic, attributes, skip) == (23117, 3, 0)
    triangles = np.frombuffer(content, "<i4", 3 * faces, 16).reshape(-1, 3)
    return np.frombuffer(content, "<f4", 3 * vertices, 16 + 12 * faces).reshape(-1, 3), triangles


def test_vertices_are_right_within_a_hundredth_of_a_millimetre(sphere):
    vertices, faces = decoded(sphere)
    np.testing.assert_array_equal(faces, sphere.faces)
    assert np.abs(vertices - sphere.vertices).max() < 0.01


def test_a_coarser_sphere_is_a_sphere(sphere):
    coarse = sphere.coarser()
    assert len(coarse.encoded()) < 0.7 * len(sphere.encoded())
    mesh = trimesh.Trimesh(coarse.vertices, coarse.faces, process=False)
    assert mesh.is_winding_consistent
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.03)
    np.testing.assert_allclose(mesh.centroid, [5, -60, 100], atol=0.3)


def test_a_surface_of_few_triangles_stays(sphere):
    mesh = sphere
    while (coarse := mesh.coarser()) is not None:
        assert len(coarse.faces) < len(mesh.faces)
        mesh = coarse
    assert 20 < len(mesh.faces) < 400

"""Surface files that were written are read as they were."""

import numpy as np
import pytest
import trimesh

from rehrseg_nnunet.surfaces.formats import FORMATS, encoded
from rehrseg_nnunet.surfaces.mesh import Surface
from rehrseg_nnunet.surfaces.read import read_surface


@pytest.fixture
def surface():
    mesh = trimesh.creation.box((2, 4, 6))
    return Surface(mesh.vertices + np.array([10, 20, -30]), np.array(mesh.faces))


@pytest.mark.parametrize("file_format", FORMATS)
def test_lps_files_are_read_in_their_place(surface, file_format, tmp_path):
    file = tmp_path / f"case_label.{file_format}"
    file.write_bytes(encoded(surface, file_format, space="LPS", colour=(10, 20, 30)))
    found, colour = read_surface(file)
    np.testing.assert_allclose(found.vertices.min(axis=0), surface.vertices.min(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.vertices.max(axis=0), surface.vertices.max(axis=0), atol=1e-4)
    assert found.volume_mm3 == pytest.approx(48, rel=1e-4)
    assert colour == ((10, 20, 30) if file_format in ("ply", "glb") else None)


@pytest.mark.parametrize("file_format", [name for name in FORMATS if name != "3mf"])  # which names no coordinates
def test_ras_files_are_turned_to_lps(surface, file_format, tmp_path):
    file = tmp_path / f"case_label.{file_format}"
    turned = Surface(surface.vertices * [-1, -1, 1], surface.faces)
    file.write_bytes(encoded(turned, file_format, space="RAS", colour=(10, 20, 30)))
    found, _ = read_surface(file)
    np.testing.assert_allclose(found.vertices.mean(axis=0), surface.vertices.mean(axis=0), atol=1e-4)
    assert found.volume_mm3 == pytest.approx(48, rel=1e-4)


def test_what_is_no_surface_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"surfaces must be stl, .* files, got .*case\.vtk"):
        read_surface(tmp_path / "case.vtk")
    broken = tmp_path / "case.ply"
    broken.write_bytes(b"ply\nnothing")
    with pytest.raises(ValueError, match=r"case\.ply could not be read as a surface: "):
        read_surface(broken)

"""Every format holds the same millimetres."""

import io
import sys
import zipfile

import numpy as np
import pytest
import trimesh
from balls import ball_margin, two_classes

from rehrseg_nnunet.surfaces.formats import FORMATS, encoded, file_names, require_formats
from rehrseg_nnunet.surfaces.margins import logit_pieces
from rehrseg_nnunet.surfaces.mesh import surface_of
from rehrseg_nnunet.surfaces.structures import structures_of

COLOUR = (230, 159, 0)


@pytest.fixture(scope="module")
def surface():
    ((_, piece),) = logit_pieces(
        two_classes(ball_margin((12, 13, 14), (5.6, 6.2, 6.9), 4)), structures_of({"labels": {"background": 0, "a": 1}})
    )
    affine = np.diag([0.7, 1.1, -0.6, 1])
    affine[:3, 3] = (-120.5, 33.25, 801.125)
    return surface_of(piece, affine, smooth=True)


def content(surface, file_format, *, space="LPS"):
    return encoded(surface, file_format, space=space, colour=COLOUR)


def read(data, file_format):
    return trimesh.load(io.BytesIO(data), file_type=file_format, force="mesh")


@pytest.mark.parametrize("file_format", FORMATS)
def test_reading_back_gives_the_same_millimetres(surface, file_format):
    mesh = read(content(surface, file_format), file_format)
    if file_format == "glb":  # metres, as its standard says
        assert mesh.extents.max() < 0.01
        mesh.apply_scale(1000)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(surface.volume_mm3, rel=1e-3)
    assert len(mesh.faces) == len(surface.faces)
    np.testing.assert_allclose(np.sort(mesh.vertices, axis=0), np.sort(surface.vertices, axis=0), atol=1e-3)


@pytest.mark.parametrize("space", ["LPS", "RAS"])
def test_the_coordinates_are_named_as_3d_slicer_reads_them(surface, space):
    stl, ply, obj = (content(surface, file_format, space=space) for file_format in ("stl", "ply", "obj"))
    assert f"SPACE={space} unit=mm".encode() in stl[:80]
    assert not stl.startswith(b"solid")
    assert f"\ncomment rehrseg-nnunet SPACE={space} unit=mm\n".encode() in ply.split(b"end_header")[0]
    assert obj.startswith(f"# rehrseg-nnunet SPACE={space} unit=mm\n".encode())
    assert f'"SPACE":"{space}"'.encode() in content(surface, "glb", space=space).replace(b": ", b":")


def test_3mf_says_millimetres(surface):
    with zipfile.ZipFile(io.BytesIO(content(surface, "3mf"))) as archive:
        model = next(name for name in archive.namelist() if name.endswith(".model"))
        assert b'unit="millimeter"' in archive.read(model)


@pytest.mark.parametrize("file_format", ["ply", "glb"])
def test_formats_with_colours_have_the_labels(surface, file_format):
    mesh = read(content(surface, file_format), file_format)
    np.testing.assert_array_equal(mesh.visual.vertex_colors[:, :3], np.tile(COLOUR, (len(mesh.vertices), 1)))


def test_file_names_are_safe_and_differ():
    names = ["a/b", "a b", "A B", "..", "Grade II (left)", "Hüfte", "a\\b\n"]
    safe = file_names(names)
    assert safe == ["a_b", "a_b_2", "A_B_3", "label", "Grade_II_left", "Hüfte", "a_b_4"]
    assert file_names(["x" * 300, "x" * 301]) == ["x" * 50, "x" * 50 + "_2"]


@pytest.mark.parametrize(("module", "formats"), [("trimesh", ["stl"]), ("skimage", ["glb"]), ("lxml", ["stl", "3mf"])])
def test_missing_packages_are_named_with_the_extra(monkeypatch, module, formats):
    monkeypatch.setitem(sys.modules, module, None)
    package = {"skimage": "scikit-image"}.get(module, module)
    with pytest.raises(RuntimeError, match=rf"need {package}, .*pip install 'rehrseg-nnunet\[surfaces\]'"):
        require_formats(formats)
    if module == "lxml":
        require_formats(["stl"])

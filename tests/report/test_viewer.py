"""What the viewer puts into a page. How it looks and works is tested in a browser."""

import base64
import gzip
import hashlib
import json
import re
from importlib.resources import files

import nibabel
import numpy as np
import pytest
from nibabel.affines import apply_affine
from viewer_cases import CENTRES, SHAPE, THIN_AFFINE, thin_labels, viewer_case, viewer_html

from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.report.browse import as_nifti
from rehrseg_nnunet.report.viewer import NIIVUE_FILE, NIIVUE_SHA256, ViewerCase, ViewerLayer
from rehrseg_nnunet.slices.grids import Grid

DATA = files("rehrseg_nnunet.report") / "data"


def described(html):
    return json.loads(re.search(r'<script type="application/json" id="viewer-cases">(.*?)</script>', html)[1])


def content(html, key):
    return gzip.decompress(base64.b64decode(re.search(rf'id="{key}">([^<]*)<', html)[1]))


def volume(html, key):
    return nibabel.Nifti1Image.from_bytes(content(html, key))


def test_niivue_is_the_pinned_file_and_fits_into_a_script():
    code = (DATA / NIIVUE_FILE).read_bytes()
    assert hashlib.sha256(code).hexdigest() == NIIVUE_SHA256
    assert b"</script" not in code
    assert b"0.69.0" in code


def test_licences_name_the_file_and_every_part():
    text = (DATA / "niivue-licences.txt").read_text()
    assert NIIVUE_SHA256 in text
    parts = dict(re.findall(r"^(\S.*) \(([\w.-]+)\)$", text, re.MULTILINE))
    assert len(parts) > 15
    for licence in set(parts.values()):
        assert f"\n{licence}\n{'-' * 80}" in text, licence


def test_the_page_has_niivue_and_its_licences():
    html = viewer_html([viewer_case("one")])
    assert hashlib.sha256(content(html, "viewer-niivue")).hexdigest() == NIIVUE_SHA256
    assert "Copyright (c) 2021, Niivue" in html


def test_no_cases_no_viewer():
    assert viewer_html([]) == ""


def test_names_and_titles_are_text_not_code():
    case = viewer_case("<b>&</script>")
    layer = ViewerLayer("</script><i>", case.layers[0].image, "labels")
    html = viewer_html([ViewerCase(case.name, case.scan, [layer])])
    assert "<b>" not in html
    assert "<i>" not in html
    assert described(html)[0]["volumes"][1]["title"] == "</script><i>"
    assert html.count("<script") == html.count("</script")


def test_every_layer_lies_where_it_was(tmp_path):
    html = viewer_html([viewer_case("one", tmp_path)])
    case = described(html)[0]
    assert [layer["title"] for layer in case["volumes"]] == ["Scan", "Thin labels", "Acquired labels", "Uncertainty"]
    assert [surface["title"] for surface in case["surfaces"]] == ["Surface anterior", "Surface posterior"]
    thin = volume(html, case["volumes"][1]["data"])
    for value, centre in enumerate(CENTRES, start=1):
        expected = apply_affine(THIN_AFFINE, np.argwhere(thin_labels() == value)).mean(axis=0)
        np.testing.assert_allclose(expected, apply_affine(THIN_AFFINE, centre), atol=0.1)
        found = apply_affine(thin.affine, np.argwhere(thin.get_fdata() == value)).mean(axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        mz3 = content(html, case["surfaces"][value - 1]["data"])
        faces, vertices = np.frombuffer(mz3, "<u4", 2, 4)
        points = np.frombuffer(mz3, "<f4", 3 * vertices, 16 + 12 * faces).reshape(-1, 3)
        np.testing.assert_allclose((points.min(axis=0) + points.max(axis=0)) / 2, expected, atol=0.1)
    grid = volume(html, case["grid"])
    np.testing.assert_allclose(grid.affine, thin.affine)
    assert grid.shape == thin.shape


def test_colours_and_names_are_the_layers():
    _, thin, acquired, uncertainty = described(viewer_html([viewer_case("one")]))[0]["volumes"]
    assert thin["colours"] == acquired["colours"] == [[255, 0, 0], [0, 0, 255]]
    assert thin["names"] == ["anterior", ""]
    assert uncertainty["colours"] == []
    assert uncertainty["window"] == [0, 1]


def test_a_case_without_labels_is_shown_whole():
    case = viewer_case("one")
    empty = ViewerLayer("Labels", nibabel.Nifti1Image(np.zeros(SHAPE, np.uint8), THIN_AFFINE), "labels")
    html = viewer_html([ViewerCase("one", case.scan, [empty])])
    assert volume(html, described(html)[0]["volumes"][0]["data"]).shape == case.scan.shape


def large_case(name):
    """Noise, which nothing makes small, with a structure all over it: 9 million thin voxels."""
    generator = np.random.default_rng(3)
    affine = np.diag([0.7, 0.7, 4.0, 1.0])
    thin = np.diag([0.7, 0.7, 1.0, 1.0])
    labels = np.zeros((300, 300, 100), np.uint8)
    labels[5:-5, 5:-5, 5:-5] = 1
    return ViewerCase(
        name,
        nibabel.Nifti1Image(generator.integers(0, 4000, (300, 300, 25)).astype(np.int16), affine),
        [ViewerLayer("Labels", nibabel.Nifti1Image(labels, thin), "labels")],
    )


def test_large_cases_get_coarser_until_ten_fit_and_the_page_says_so():
    from rehrseg_nnunet.report import viewer

    html = viewer_html([large_case("one")])
    assert len(html) < viewer._BYTES_A_CASE + len(viewer_html([viewer_case("small")]))
    assert "Coarser than the files, to keep this page small: Scan, Labels." in described(html)[0]["note"]
    assert described(viewer_html([viewer_case("small")]))[0]["note"] == ""
    assert 10 * viewer._BYTES_A_CASE + len(viewer._niivue()) < 12e6  # of 15 MB; the rest is for pictures


def test_surfaces_get_coarser_too(tmp_path, monkeypatch):
    from rehrseg_nnunet.report import viewer

    monkeypatch.setattr(viewer, "_BYTES_A_CASE", 25_000)
    html = viewer_html([viewer_case("one", tmp_path)])
    assert sum(len(part) for part in re.findall(r'id="viewer-0-\d+">([^<]*)<', html)) < 25_000
    assert "Surface anterior" in described(html)[0]["note"]


def test_surfaces_that_cannot_be_read_are_named(tmp_path):
    broken = tmp_path / "one_label.ply"
    broken.write_bytes(b"nothing")
    case = viewer_case("one")
    with pytest.raises(ValueError, match=r"one_label\.ply could not be read as a surface"):
        viewer_html([ViewerCase("one", case.scan, case.layers, [broken])])


def test_no_path_is_in_the_page(tmp_path):
    assert str(tmp_path) not in viewer_html([viewer_case("one", tmp_path)])


def test_a_case_may_come_without_scan():
    case = viewer_case("one")
    volumes = described(viewer_html([ViewerCase("one", None, case.layers)]))[0]["volumes"]
    assert [volume["kind"] for volume in volumes] == ["labels", "labels", "uncertainty"]


@pytest.mark.parametrize("value", [2, 32767, 32768, 70000])
def test_labels_of_any_value_keep_it(value):
    labels = np.zeros((2, 3, 4), np.int32)
    labels[1, 2, 3] = value
    stored = np.asarray(as_nifti(Volume(labels, Grid(labels.shape, np.eye(4)))).dataobj)
    assert np.unique(stored).tolist() == [0, value]

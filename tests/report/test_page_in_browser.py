"""The page in a browser: opened from disk, without a network."""

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import NARROW, Page, browser, coloured
from report_cases import WORST, write_folders
from viewer_cases import viewer_case, viewer_html

from rehrseg_nnunet.cli.main import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of `rehrseg report`: two grids, reference, baseline, probabilities, surfaces."""
    base = tmp_path_factory.mktemp("report")
    write_folders(base)
    names = ["-djfile", str(base / "thin" / "dataset.json")]
    main(["surfaces", "-i", str(base / "thin_reference"), *names, "-o", str(base / "thin"), "--format", "ply"])
    named = {"-pred": "thin", "-acquired": "thick", "-ref": "thin_reference", "-i": "scans", "-baseline": "baseline"}
    arguments = [part for option, name in named.items() for part in (option, str(base / name))]
    main(["report", *arguments, "--pictures", "2", "-o", str(base / "report.html")])
    return base / "report.html"


@pytest.fixture(scope="module")
def opened(chromium, file):
    """The page with its worst case in the viewer."""
    page = Page(chromium, file)
    assert page.page.locator("canvas").is_hidden()
    assert page.choose(WORST).startswith(WORST)
    assert page.page.get_by_text("This viewer needs scripts").is_hidden()
    return page


def rows(page):
    return page.page.locator("table.sortable tbody th").all_inner_texts()


def test_the_table_sorts_by_mouse_and_keyboard(opened):
    page = opened.page
    assert rows(opened)[0] == WORST
    page.get_by_role("button", name="case", exact=True).click()
    assert rows(opened) == sorted(rows(opened))
    dice = page.locator("table.sortable thead button", has_text="Dice").first
    dice.focus()
    page.keyboard.press("Enter")
    assert rows(opened)[0] == WORST
    page.keyboard.press("Enter")
    assert rows(opened)[-1] == WORST
    assert page.locator("th[aria-sort=descending]").count() == 1


def test_layers_and_views_are_drawn(opened):
    page = opened.page
    assert (opened.canvas().max(axis=-1) > 0.1).mean() > 0.1
    page.get_by_label("Axial", exact=True).check()
    with_labels = coloured(opened.canvas()).mean()
    page.get_by_role("checkbox", name="Prediction core shell", exact=True).uncheck()
    scan = opened.canvas()
    assert coloured(scan).mean() < 0.01 < with_labels
    assert (scan.max(axis=-1) > 0.1).mean() > 0.1
    page.get_by_label("Where it is unsure").check()
    assert coloured(opened.canvas()).mean() > 0.01
    page.get_by_label("Where it is unsure").uncheck()
    page.get_by_label("Surfaces", exact=True).check()
    surfaces = coloured(opened.canvas()).mean()
    for name in ("Surface core", "Surface shell"):
        page.get_by_label(name).uncheck()
    assert coloured(opened.canvas()).mean() < surfaces / 4
    for name in ("Surface core", "Surface shell"):
        page.get_by_label(name).check()
    page.get_by_label("All planes").check()
    page.get_by_role("checkbox", name="Prediction core shell", exact=True).check()


def test_arrow_keys_step_through_slices(opened):
    page = opened.page
    page.get_by_label("Axial", exact=True).check()
    before, text = opened.canvas(), page.inner_text(".viewer-slice")
    page.locator("canvas").focus()
    for _ in range(4):  # to the next thick slice
        page.keyboard.press("ArrowUp")
    number = int(text.split()[1])
    assert page.inner_text(".viewer-slice") == text.replace(f" {number} ", f" {number + 4} ", 1)
    assert np.abs(opened.canvas() - before).max() > 0.1
    for key in ("ArrowDown", "ArrowLeft", "ArrowDown", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.inner_text(".viewer-slice") == text
    page.get_by_label("All planes").check()


@pytest.mark.parametrize(("name", "viewport"), [("wide", None), ("narrow", NARROW)])
def test_the_page_fits_into_windows_and_has_no_serious_fault(opened, name, viewport):
    if viewport:
        opened.page.set_viewport_size(viewport)
    assert opened.sideways() <= 0
    found = Axe().run(opened.page).response["violations"]
    assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert opened.complaints == []
    opened.keep(f"report-{name}")


def test_without_scripts_everything_else_is_there(chromium, file):
    page = Page(chromium, file, java_script_enabled=False)
    assert rows(page)[0] == WORST
    assert page.page.get_by_text("This viewer needs scripts").is_visible()
    assert page.page.locator(".viewer button").first.is_hidden()
    page.keep("report-without-scripts")


@pytest.fixture
def viewer_page(tmp_path):
    """A page of nothing but a viewer."""
    file = tmp_path / "viewer.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><title>Viewer</title>{viewer_html([viewer_case('one')])}")
    return file


def test_sides_are_the_patients(chromium, viewer_page):
    """Anterior is red, above, and on the patient's left, which radiologists see on the right."""
    page = Page(chromium, viewer_page)
    page.choose("one")
    page.page.get_by_label("Axial", exact=True).check()
    page.page.get_by_label("Label opacity").fill("1")
    picture = page.canvas()
    red = np.argwhere((picture[..., 0] > 0.8) & (picture[..., 2] < 0.3))
    blue = np.argwhere((picture[..., 2] > 0.8) & (picture[..., 0] < 0.3))
    assert min(len(red), len(blue)) > 500
    assert red[:, 0].mean() < blue[:, 0].mean() - 50
    assert red[:, 1].mean() > blue[:, 1].mean() + 50
    assert page.complaints == []


def test_a_browser_without_webgl_is_told_so(chromium, viewer_page):
    page = Page(chromium, viewer_page)
    page.page.evaluate("HTMLCanvasElement.prototype.getContext = () => null")
    assert page.choose("one") == (
        "one cannot be shown: this browser has no WebGL 2. The pictures on this page show the cases without it."
    )

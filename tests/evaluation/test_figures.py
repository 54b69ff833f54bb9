"""Planes side by side: all at one scale, every voxel where it is, outlines along the edges of voxels."""

import io

import numpy as np
import pytest
from matplotlib import image

from rehrseg_nnunet.evaluation.figures import (
    Cut,
    Overlay,
    Panel,
    draw_planes,
    grey_window,
    picture,
    save_figure,
    voxel_edges,
)
from rehrseg_nnunet.evaluation.volumes import Volume
from rehrseg_nnunet.slices.grids import Grid

RED = (1.0, 0.0, 0.0)
CUTS = [Cut("a", 0, 6.0), Cut("b", 1, 10.0), Cut("c", 2, 8.0)]


def volume(values, factor=1):
    """Values (12 / r, 20, 16) over the same field of view from 0 on, slices r mm thick."""
    affine = np.diag([float(factor), 1.0, 1.0, 1.0])
    affine[:3, 3] = [factor / 2, 0.5, 0.5]
    return Volume(values, Grid(values.shape, affine))


def block(factor=1):
    labels = np.zeros((12, 20, 16), np.uint8)
    labels[4:8, 6:12, 5:11] = 3
    return volume(labels[::factor], factor)


def figure(panels, cuts=CUTS):
    return draw_planes(panels, cuts, block().box, grey=(0.0, 1.0))


def test_all_panels_of_a_row_show_the_same_millimetres():
    drawn = figure([Panel("thick", block(4)), Panel("thin", block(), [Overlay(block(4), {3: RED})])])
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in drawn.axes]
    across_0, across_1, across_2 = limits[::2]
    assert limits[::2] == limits[1::2]
    assert across_0 == ((0, 16), (20, 0))  # posterior is down
    assert across_1 == ((0, 16), (0, 12))  # superior is up
    assert across_2 == ((0, 20), (0, 12))


@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("cut", CUTS)
def test_labels_are_where_their_voxels_are(filled, cut):
    """Thick and thin labels of one block cover the same pixels of the picture; nothing else is red."""
    overlay = {"colours": {3: RED}, "filled": filled}
    black = volume(np.zeros((12, 20, 16)))
    drawn = figure([Panel("", black, [Overlay(block(factor), **overlay)]) for factor in (1, 4)], [cut])
    pixels = image.imread(io.BytesIO(picture(drawn)))
    red = (pixels[..., 0] > 0.3) & (pixels[..., 1] < 0.1)
    left, right = (np.argwhere(half) for half in np.array_split(red, 2, axis=1))
    assert len(left) > 50
    np.testing.assert_allclose(np.ptp(left, axis=0), np.ptp(right, axis=0), atol=1)
    height, width = np.ptp(left, axis=0)
    box = {0: (6, 6), 1: (4, 6), 2: (4, 6)}[cut.axis]
    assert width / height == pytest.approx(box[1] / box[0], rel=0.05)


def test_edges_of_a_mask_against_every_pair_of_pixels():
    inside = np.random.default_rng(0).random((7, 9)) > 0.5
    unit = set()
    for (row, column), (last_row, last_column) in voxel_edges(inside):
        assert (row == last_row) != (column == last_column)
        steps = max(last_row - row, last_column - column)
        down, right = (last_row - row) // steps, (last_column - column) // steps
        for step in range(steps):
            edge = (row + step * down, column + step * right, down, right)
            assert edge not in unit
            unit.add(edge)
    padded = np.pad(inside, 1)
    expected = {
        (row, column, 0, 1)
        for row in range(8)
        for column in range(9)
        if padded[row, column + 1] != padded[row + 1, column + 1]
    } | {
        (row, column, 1, 0)
        for row in range(7)
        for column in range(10)
        if padded[row + 1, column] != padded[row + 1, column + 1]
    }
    assert unit == expected
    assert voxel_edges(np.zeros((3, 3), bool)) == []


def test_no_labels_no_scan_and_maps_are_drawn():
    empty = volume(np.zeros((12, 20, 16), np.uint8))
    heat = volume(np.random.default_rng(0).random((12, 20, 16)))
    drawn = figure([Panel("a", None, [Overlay(empty, {1: RED})]), Panel("b", heat, limits=(0, 1))])
    assert image.imread(io.BytesIO(picture(drawn)))[..., :3].std() > 0.1


def test_grey_values_leave_out_the_extremes():
    values = np.full((10, 20, 16), 5.0)
    values[0, 0, :3], values[0, 1, :3] = 1e6, -1e6
    assert grey_window(volume(values)) == (5, 5)


def test_pictures_do_not_depend_on_the_style_of_others():
    import matplotlib

    panels = [Panel("title", block())]
    plain = picture(figure(panels))
    with matplotlib.rc_context({"font.size": 40, "axes.facecolor": "green", "xtick.bottom": False}):
        assert picture(figure(panels)) == plain
        assert matplotlib.rcParams["font.size"] == 40


def test_a_figure_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    drawn = figure([Panel("a", block())])
    file = tmp_path / "case.png"
    for _ in range(2):
        save_figure(drawn, file)
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]
    file.unlink()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("rehrseg_nnunet.evaluation.figures.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_figure(drawn, file)
    assert list(tmp_path.iterdir()) == []

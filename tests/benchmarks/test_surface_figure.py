"""The figure of surfaces side by side."""

import pytest
import trimesh
from matplotlib.image import imread

from benchmarks.surface_figure import main


@pytest.fixture
def ball(tmp_path):
    def make(name, radius, place=(0, 0, 0)):
        mesh = trimesh.creation.icosphere(subdivisions=2, radius=radius)
        mesh.apply_translation(place)
        mesh.export(tmp_path / f"{name}.stl")
        return tmp_path / f"{name}.stl"

    return make


def test_surfaces_are_drawn_in_their_colours_at_one_scale(tmp_path, ball):
    big, small = ball("big", 4), ball("small", 1.9)
    main([str(tmp_path / "out.png"), f"big={big}", f"small={small}", "--dpi", "50"])
    picture = imread(tmp_path / "out.png")[..., :3]
    height, width = picture.shape[:2]
    assert (height, width) == (160, 320)
    drawn = (picture.max(-1) - picture.min(-1)) > 0.2  # of the first colour, shaded
    left, right = drawn[:, : width // 2].sum(), drawn[:, width // 2 :].sum()
    assert left > 4 * right > 0


def test_a_panel_without_title_is_refused(tmp_path, ball, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "out.png"), str(ball("a", 1))])
    assert "a panel must be TITLE=FILE,FILE" in capsys.readouterr().err

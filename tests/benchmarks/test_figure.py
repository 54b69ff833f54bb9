"""The figure that shows segmentations of one case side by side."""

import numpy as np
import pytest
from matplotlib.image import imread

from benchmarks.figure import MARGIN_MM, _panel, draw, main


@pytest.fixture
def case(tmp_path, write_volume):
    """Panel's argument: a block of foreground, HR (12, 20, 16), on r times thicker slices for r > 1."""

    def make(name, factor=1, label=1):
        labels = np.zeros((12, 20, 16), np.uint8)
        labels[4:8, 6:12, 5:11] = label
        thick = labels.reshape(-1, factor, 20, 16)[:, 0]
        rng = np.random.default_rng(0)
        grid = {"spacing": (1.0, 1.0, float(factor)), "origin": (3.0, -2.0, 10 + (factor - 1) / 2)}
        write_volume(tmp_path / f"{name}_image.nii.gz", rng.normal(size=thick.shape).astype(np.float32), **grid)
        write_volume(tmp_path / f"{name}_labels.nii.gz", thick, **grid)
        return f"{name}={tmp_path / f'{name}_image.nii.gz'},{tmp_path / f'{name}_labels.nii.gz'}"

    return make


def test_all_panels_show_the_window_of_the_truth(case):
    panels = [_panel(case("thick", 4)), _panel(case("truth"))]
    for column in draw(panels, axis=2).axes:
        assert column.get_xlim() == (-2.5 + 6 - MARGIN_MM, -2.5 + 12 + MARGIN_MM)
        assert column.get_ylim() == (9.5, 21.5)  # the scan ends there


def test_a_label_is_where_its_voxels_are(case, tmp_path):
    """In the saved picture: grey where there is none."""
    output = tmp_path / "figure.png"
    main([str(output), case("thick", 4), case("truth")])
    pixels = imread(output)[..., :3]
    coloured = np.ptp(pixels, axis=-1) > 0.1
    left, right = np.array_split(coloured, 2, axis=1)
    assert left.any()
    assert right.any()
    assert left.sum() == pytest.approx(right.sum(), rel=0.1)  # the block is one thick slice


def test_a_panel_that_is_none(capsys):
    with pytest.raises(SystemExit):
        main(["out.png", "truth=image.nii.gz"])
    assert "a panel must be TITLE=IMAGE,LABELS, got truth=image.nii.gz" in capsys.readouterr().err

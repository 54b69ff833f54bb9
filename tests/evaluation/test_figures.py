"""The figure of a case: which planes it shows, and that it is written for any labels."""

import matplotlib
import numpy as np
import pytest
from matplotlib import figure, image, pyplot

from rehrseg_nnunet.evaluation.figures import central_planes, label_centre, save_case_figure

matplotlib.use("agg")
SHAPE = (6, 8, 10)


def volumes(labels):
    rng = np.random.default_rng(0)
    titles = ("LR", "pseudo-HR")
    return {t: rng.normal(size=SHAPE) for t in titles}, dict.fromkeys(titles, labels), rng.random(SHAPE)


def test_planes_go_through_the_voxel():
    volume = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    planes = central_planes(volume, (1, 2, 3))
    assert [plane.shape for plane in planes] == [(8, 10), (6, 10), (6, 8)]
    assert planes[0][2, 3] == planes[1][1, 3] == planes[2][1, 2] == volume[1, 2, 3]


def test_the_centre_is_the_foregrounds():
    labels = np.full(SHAPE, -1)
    labels[2:5, 4, 6:8] = 2
    assert label_centre(labels) in {(3, 4, 6), (3, 4, 7)}
    assert label_centre(np.zeros((5, 7, 9))) == (2, 3, 4)
    assert all(isinstance(index, int) for index in label_centre(labels))


@pytest.mark.parametrize("kind", ["mixed", "none", "everywhere"])
def test_a_figure_is_written(tmp_path, kind):
    labels = np.zeros(SHAPE, np.int16)
    if kind == "mixed":
        labels[:, 1:4, 2:6], labels[:2] = 1, -1
        labels[3:, 5:, 7:] = 12
    elif kind == "everywhere":
        labels[:] = 1
    file = tmp_path / "case.png"
    save_case_figure(file, *volumes(labels))
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]
    picture = image.imread(file)
    assert picture.shape[0] > picture.shape[1] * 0.5
    assert picture[..., :3].std() > 0.1
    save_case_figure(file, *volumes(labels))  # again, over the old one


def test_an_interrupted_figure_does_not_appear(tmp_path, monkeypatch):
    def fail(self, path, **options):
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(figure.Figure, "savefig", fail)
    before = pyplot.get_fignums()
    with pytest.raises(OSError, match="disk full"):
        save_case_figure(tmp_path / "case.png", *volumes(np.ones(SHAPE, np.int16)))
    assert list(tmp_path.iterdir()) == []
    assert pyplot.get_fignums() == before

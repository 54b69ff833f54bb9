"""Thick-slice predictions on the HR grid: geometry, and what each method makes of a boundary."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.evaluation.upsampling import METHODS, upsample_folder
from rehrseg_nnunet.nnunet.whole_files import whole_files

PLAIN = LabelManager({"background": 0, "ball": 1}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
FACTOR = 4
CENTRE, RADIUS = np.array([10.0, -4.0, 7.0]), 8.0  # mm, file order x, y, z


def rotation():
    a, b = 0.35, -0.2
    first = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return first @ second


def grid(axis, factor=1, direction=None):
    """A field of view around the ball with thick slices along an array axis, `factor` times split."""
    direction = np.eye(3) if direction is None else direction
    spacing, size = np.full(3, 1.0), np.full(3, 24)
    spacing[2 - axis], size[2 - axis] = 4.0 / factor, 6 * factor
    image = sitk.Image(size.tolist(), sitk.sitkUInt8)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin((CENTRE - direction @ ((size - 1) / 2 * spacing)).tolist())
    return image


def points(image):
    index = np.stack(np.meshgrid(*(np.arange(n) for n in image.GetSize()), indexing="ij"), -1)
    matrix = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return index @ matrix.T + image.GetOrigin()


def ball_on(image):
    return (np.linalg.norm(points(image) - CENTRE, axis=-1) <= RADIUS).transpose(2, 1, 0).astype(np.uint8)


def write(folder, image, labels, probabilities=None, name="case"):
    folder.mkdir(exist_ok=True)
    result = sitk.GetImageFromArray(labels)
    result.CopyInformation(image)
    sitk.WriteImage(result, str(folder / f"{name}.nrrd"))
    if probabilities is not None:
        np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities.astype(np.float16))


def upsample(source, target, method, *, axis=0, manager=PLAIN, factor=FACTOR):
    upsample_folder(
        source,
        target,
        method=method,
        factor=factor,
        axis=axis,
        reader=whole_files(SimpleITKIO)(),
        label_manager=manager,
        dataset_json={"file_ending": ".nrrd"},
    )
    return sitk.ReadImage(str(target / "case.nrrd"))


def soft(labels):
    return np.stack([1 - labels, labels]).astype(np.float32)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_ball_stays_where_it_is_in_mm(tmp_path, method, axis):
    lr = grid(axis, direction=rotation())
    labels = ball_on(lr)
    write(tmp_path / "lr", lr, labels, soft(labels))
    result = upsample(tmp_path / "lr", tmp_path / "new" / "hr", method, axis=axis)
    hr = grid(axis, FACTOR, rotation())
    assert result.GetSize() == hr.GetSize()
    np.testing.assert_allclose(points(result), points(hr), atol=1e-6)
    centroid = points(result)[sitk.GetArrayFromImage(result).transpose(2, 1, 0) == 1].mean(0)
    np.testing.assert_allclose(centroid, CENTRE, atol=0.05)
    assert {file.name for file in (tmp_path / "new" / "hr").iterdir()} == {"case.nrrd"}


def test_nearest_repeats_slices(tmp_path):
    labels = np.random.default_rng(0).integers(0, 2, size=(6, 24, 24)).astype(np.uint8)
    write(tmp_path / "lr", grid(0), labels)
    result = upsample(tmp_path / "lr", tmp_path / "hr", "nearest")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result), labels.repeat(FACTOR, axis=0))


def test_shape_restores_a_ball_that_nearest_and_certain_probabilities_leave_in_steps(tmp_path):
    labels, truth = ball_on(grid(0)), ball_on(grid(0, FACTOR))
    write(tmp_path / "lr", grid(0), labels, soft(labels))
    hr = {m: sitk.GetArrayFromImage(upsample(tmp_path / "lr", tmp_path / m, m)) for m in METHODS}
    dice = {method: 2 * (result & truth).sum() / (result.sum() + truth.sum()) for method, result in hr.items()}
    assert dice["signed_distance"] > 0.93
    assert dice["signed_distance"] > dice["nearest"] + 0.02
    for method in ("linear", "logits"):
        np.testing.assert_array_equal(hr[method], hr["nearest"])


@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_linear_puts_the_boundary_where_the_probability_is_a_half(tmp_path, manager):
    """From 0.9 in slice 2 to 0.2 in slice 3: a half at 2 + 4/7, so HR slices 2.125 and 2.375 are in, 2.625 is out."""
    foreground = np.zeros((6, 4, 4))
    foreground[:3], foreground[3:] = 0.9, 0.2
    maps = [foreground, 0 * foreground] if manager is REGIONS else [1 - foreground, foreground]
    blank = sitk.Image((4, 4, 6), sitk.sitkUInt8)
    write(tmp_path / "lr", blank, np.zeros((6, 4, 4), np.uint8), np.stack(maps))
    line = sitk.GetArrayFromImage(upsample(tmp_path / "lr", tmp_path / "hr", "linear", manager=manager))[:, 0, 0]
    positions = (np.arange(24) + 0.5) / 4 - 0.5
    np.testing.assert_array_equal(line, (positions < 2 + 4 / 7).astype(int))


@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_logits_that_fall_evenly_put_the_boundary_where_they_are_zero(tmp_path, manager):
    """Logits 6 - 2.6 z cross zero at z = 2.31: HR slice 2.125 is in, 2.375 is out."""
    logits = 6 - 2.6 * np.arange(6.0)
    foreground = np.broadcast_to((1 / (1 + np.exp(-logits)))[:, None, None], (6, 4, 4))
    maps = [foreground, 0 * foreground] if manager is REGIONS else [1 - foreground, foreground]
    blank = sitk.Image((4, 4, 6), sitk.sitkUInt8)
    write(tmp_path / "lr", blank, np.zeros((6, 4, 4), np.uint8), np.stack(maps))
    line = sitk.GetArrayFromImage(upsample(tmp_path / "lr", tmp_path / "hr", "logits", manager=manager))[:, 0, 0]
    positions = (np.arange(24) + 0.5) / 4 - 0.5
    np.testing.assert_array_equal(line, (positions < 6 / 2.6).astype(int))


def test_every_prediction_is_done_and_other_files_are_left(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "lr", grid(0), ball_on(grid(0)), name=name)
    (tmp_path / "lr" / "summary.json").write_text("{}")
    write(tmp_path / "lr", grid(0), ball_on(grid(0)))
    upsample(tmp_path / "lr", tmp_path / "hr", "nearest")
    assert {file.name for file in (tmp_path / "hr").iterdir()} == {"a.nrrd", "b.nrrd", "case.nrrd"}


def test_refusals(tmp_path):
    write(tmp_path / "lr", grid(0), ball_on(grid(0)))
    with pytest.raises(ValueError, match=r"method must be one of .*'linear'.*, got 'cubic'"):
        upsample(tmp_path / "lr", tmp_path / "hr", "cubic")
    with pytest.raises(FileNotFoundError, match=r"case\.npz is missing: predict with probabilities"):
        upsample(tmp_path / "lr", tmp_path / "hr", "linear")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty must hold files that end in \.nrrd, got none"):
        upsample(tmp_path / "empty", tmp_path / "none", "nearest")
    assert not (tmp_path / "none").exists()


def test_a_file_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    write(tmp_path / "lr", grid(0), ball_on(grid(0)))
    monkeypatch.setattr("rehrseg_nnunet.nnunet.whole_files.move_into_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        upsample(tmp_path / "lr", tmp_path / "hr", "nearest")
    assert list((tmp_path / "hr").iterdir()) == []

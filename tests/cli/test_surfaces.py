"""The command for files that exist, and what it says of those it cannot use."""

import json
import os
import pickle
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import trimesh
from balls import ball_margin, two_classes

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.nnunet.staging_folders import STAGING_PREFIX

SHAPE, CENTRE, RADIUS = (12, 13, 14), np.array([5.6, 6.2, 6.9]), 4.0
GEOMETRY = {"spacing": (1.0, 1.0, 2.0), "origin": (5.0, 6.0, 7.0), "direction": tuple(np.eye(3).ravel())}
VOLUME = 4 / 3 * np.pi * RADIUS**3 * 2


@pytest.fixture
def folder(tmp_path):
    """A folder as `rehrseg predict --save_probabilities` leaves it, with one case of one label."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    logits = two_classes(ball_margin(SHAPE, CENTRE, RADIUS))
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    np.savez_compressed(folder / "c.npz", probabilities=probabilities.astype(np.float32))
    properties = {"sitk_stuff": GEOMETRY, "spacing": [2.0, 1.0, 1.0], "shape_before_cropping": SHAPE}
    (folder / "c.pkl").write_bytes(pickle.dumps(properties))
    image = sitk.GetImageFromArray((logits[1] > 0).astype(np.uint8))
    image.SetSpacing(GEOMETRY["spacing"])
    image.SetOrigin(GEOMETRY["origin"])
    sitk.WriteImage(image, str(folder / "c.nii.gz"))
    content = {"labels": {"background": 0, "the ball": 1}, "channel_names": {"0": "T2"}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def run(folder, *options, command="surfaces", source=None):
    output = folder.parent / "out"
    status = main([command, "-i", str(source or folder), "-o", str(output), *map(str, options)])
    return status, sorted(output.iterdir()) if output.is_dir() else []


def error_of(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1, lines
    return lines[0]


def test_probabilities_of_a_folder(folder, capsys):
    status, files = run(folder, "--format", "stl", "glb", "stl")
    assert (status, [file.name for file in files]) == (0, ["c_the_ball.glb", "c_the_ball.stl"])
    mesh = trimesh.load(files[1])
    assert mesh.volume == pytest.approx(VOLUME, rel=5e-3)
    np.testing.assert_allclose(mesh.center_mass, np.array([5, 6, 7]) + CENTRE[::-1] * (1, 1, 2), atol=0.1)
    printed = capsys.readouterr().out
    assert f"c the ball: {mesh.volume:.1f} mm3" in printed
    assert "wrote 2 files" in printed


def test_ras(folder):
    _, files = run(folder, "--ras")
    np.testing.assert_allclose(
        trimesh.load(files[0]).center_mass, np.array([-5, -6, 7]) + CENTRE[::-1] * (-1, -1, 2), atol=0.1
    )


def test_a_label_image_with_a_warning(folder, caplog):
    status, files = run(folder, source=folder / "c.nii.gz")
    assert (status, [file.name for file in files]) == (0, ["c_the_ball.stl"])
    assert "c: of labels only, so surfaces have their voxels' stairs; probabilities" in caplog.text
    assert trimesh.load(files[0]).volume == pytest.approx(VOLUME, rel=0.05)


def test_label_images_do_without_dataset_json(folder):
    (folder / "dataset.json").unlink()
    assert [file.name for file in run(folder, source=folder / "c.nii.gz")[1]] == ["c_label_1.stl"]


def test_probabilities_do_not(folder, capsys):
    (folder / "dataset.json").unlink()
    assert run(folder)[0] == 1
    assert "dataset.json is missing: it says which label is which in c.npz; give the model's" in error_of(capsys)


def test_npz_without_pkl(folder, capsys):
    (folder / "c.pkl").unlink()
    assert run(folder) == (1, [])
    assert "c.pkl is missing: --save_probabilities writes it beside c.npz" in error_of(capsys)


def test_a_folder_without_cases(folder, capsys):
    for file in folder.glob("c.*"):
        file.unlink()
    assert run(folder) == (1, [])
    assert "must hold label images (.nii.gz), or npz files of probabilities, got none" in error_of(capsys)


@pytest.mark.parametrize(
    ("command", "module", "extra"), [("surfaces", "trimesh", "surfaces"), ("viewers", "slicerio", "slicer")]
)
def test_without_the_extra(folder, capsys, monkeypatch, command, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(folder, command=command) == (1, [])
    assert f"pip install 'rehrseg-nnunet[{extra}]'" in error_of(capsys)


def test_viewers(folder, capsys):
    status, files = run(folder, command="viewers")
    assert (status, [file.name for file in files]) == (0, ["c.seg.nrrd", "itksnap_labels.txt"])
    assert '"the ball"' in files[1].read_text()
    assert str(files[0]) in capsys.readouterr().out


def test_viewers_write_beside_the_images_unless_told(folder):
    assert main(["viewers", "-i", str(folder / "c.nii.gz")]) == 0
    assert (folder / "c.seg.nrrd").is_file()
    assert (folder / "itksnap_labels.txt").is_file()


def test_viewers_say_why_there_are_no_names(folder, capsys):
    (folder / "dataset.json").unlink()
    status, files = run(folder, command="viewers", source=folder / "c.nii.gz")
    assert (status, [file.name for file in files]) == (0, ["c.seg.nrrd"])
    assert "no itksnap_labels.txt: the labels have no names without the model's dataset.json" in capsys.readouterr().out


def test_names_come_from_the_pkl_file_where_there_is_no_dataset_json(folder):
    properties = pickle.loads((folder / "c.pkl").read_bytes())
    labels = {"labels": {"background": 0, "stored": 1}}
    (folder / "c.pkl").write_bytes(pickle.dumps({**properties, "rehrseg_labels": labels}))
    assert [file.name for file in run(folder)[1]] == ["c_the_ball.stl"]
    (folder / "dataset.json").unlink()
    assert [file.name for file in run(folder, source=folder / "c.npz")[1]] == ["c_stored.stl", "c_the_ball.stl"]


@pytest.mark.parametrize(
    ("command", "name"), [("surfaces", "label.stl"), ("surfaces", "a.GLB"), ("viewers", "a.seg.nrrd")]
)
def test_a_file_is_no_folder(folder, capsys, command, name):
    output = folder.parent / name
    assert main([command, "-i", str(folder), "-o", str(output)]) == 1
    assert f"-o must be a folder, whose files are called like cases and labels, got {output}; use -o" in error_of(
        capsys
    )
    assert not output.exists()


@pytest.mark.parametrize("command", ["surfaces", "viewers"])
@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_a_scan_is_refused_and_no_folder_is_left(folder, capsys, command, kind):
    image = sitk.GetImageFromArray((np.arange(np.prod(SHAPE)).reshape(SHAPE) * 0.51 - 300).astype(kind))
    sitk.WriteImage(image, str(folder.parent / "scan.nii.gz"))
    assert run(folder, command=command, source=folder.parent / "scan.nii.gz") == (1, [])
    assert not (folder.parent / "out").exists()
    assert "if this is a scan" in error_of(capsys)


@pytest.mark.parametrize("command", ["surfaces", "viewers"])
def test_what_a_killed_run_left_goes(folder, command):
    left = folder.parent / "out" / f"{STAGING_PREFIX}1234"
    (left / "c").mkdir(parents=True)
    for file in (left, left / "c"):
        os.utime(file, (0, 0))
    status, _ = run(folder, command=command)
    assert status == 0
    assert not left.exists()


@pytest.mark.parametrize("command", ["surfaces", "viewers"])
def test_a_file_as_output_is_named(folder, capsys, command):
    (folder.parent / "out").touch()
    assert main([command, "-i", str(folder), "-o", str(folder.parent / "out")]) == 1
    assert "out must be a folder or a place for a new one, got a file: " in error_of(capsys)


def test_cases_whose_surfaces_would_share_a_file_write_nothing(folder, capsys):
    labels = {"background": 0, "left_ball": 1, "ball": 2}
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "labels": labels}))
    for ending in (".npz", ".pkl"):
        (folder / f"c{ending}").unlink()
    (folder / "c_left.nii.gz").write_bytes((folder / "c.nii.gz").read_bytes())
    assert run(folder) == (1, [])
    assert "c and c_left would both write c_left_ball" in capsys.readouterr().err

"""`rehrseg predict` on damaged inputs, full disks, read-only folders and Ctrl-C: one line, and nothing half-written."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from commands import REHRSEG, Command
from known_answers import TRAINER, Scan, known_trainer, write_model
from privileges import obey_permissions

from rehrseg_nnunet.cli.main import INTERRUPTED, main

pytestmark = pytest.mark.slow

MODEL, MHA_MODEL = 100, 101
LARGE = (160, 160)
KILOBYTES = 30  # enough for all files but those of the large scan


@pytest.fixture(scope="module")
def known(nnunet, tmp_path_factory):
    """Models that need no training, see known_answers.py."""
    with known_trainer(nnunet) as folders:
        for model, ending in ((MODEL, ".nii.gz"), (MHA_MODEL, ".mha")):
            example = tmp_path_factory.mktemp("example") / f"a{ending}"
            Scan().write(example)
            write_model(folders, model, example=example, ending=ending, patch=(8, 64, 64))
        yield folders


def write_noise(file):
    """A scan whose segmentation is a large file."""
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(6, *LARGE)).astype(np.float32))
    noise.CopyInformation(Scan(in_plane=LARGE).grid())
    sitk.WriteImage(noise, str(file))


@pytest.fixture
def images(tmp_path):
    """Scans a, b and c, b a large one."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ac":
        Scan().write(folder / f"{name}_0000.nii.gz")
    write_noise(folder / "b_0000.nii.gz")
    return folder


def arguments(source, target, *options, workers=0, number=MODEL):
    model = ["-d", number, "-tr", TRAINER, "-p", "tiny", "-c", "3d_fullres", "-f", 0, "-device", "cpu"]
    run = ["--disable_tta", "--disable_progress_bar", "-npp", workers, "-nps", workers]
    return ["predict", "-i", str(source), "-o", str(target), *map(str, [*model, *run, *options])]


def start(source, target, *options, workers=0, setup=None):
    """The command in a session, and so a process group, of its own."""
    given = arguments(source, target, *options, workers=workers)
    return Command(REHRSEG, *given, session=True, setup=setup, PYTHONWARNINGS="ignore")


def session_of(process):
    """Living processes of the session that a process leads."""
    members = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended
        if int(fields[3]) == process.pid and fields[0] != "Z":
            members.append(stat.parent.name)
    return members


def message_of(process, *, status):
    """Wait for the command, which leaves one line and no process."""
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    assert errors.count("\n") == 1, errors
    for _ in range(100):  # Python's resource tracker ends a moment after the command
        if not session_of(process):
            return errors
        time.sleep(0.1)
    pytest.fail(f"processes {session_of(process)} are left")


def results(folder):
    """What an output folder holds, hidden files and folders included, but for records of the call."""
    records = {"predict_from_raw_data_args.json", "dataset.json", "plans.json", "prediction.json", "itksnap_labels.txt"}
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in records)


def assert_whole(folder, names):
    for name in names:
        size = LARGE if name == "b" else (17, 23)
        assert np.asanyarray(nibabel.load(folder / f"{name}.nii.gz").dataobj).shape == (*size, 24)


def damage(file, kind):
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "not an image":
        file.write_text("not an image")
    elif kind == "thin":
        Scan(slices=1, spacing_mm=(1.0, 1.0, 1.1)).write(file)
    elif kind == "thin but for zeros":
        scan = sitk.GetImageFromArray(np.pad(np.ones((1, 17, 23), np.float32), ((2, 3), (0, 0), (0, 0))))
        scan.SetSpacing((1.1, 1.0, 1.0))
        sitk.WriteImage(scan, str(file))
    elif kind == "metres":
        Scan(spacing_mm=(0.004, 0.001, 0.0011)).write(file)
    elif kind == "micrometres":
        Scan(spacing_mm=(4000.0, 1000.0, 1100.0)).write(file)
    elif kind == "4D":
        sitk.WriteImage(sitk.JoinSeries([Scan().grid()] * 2), str(file))
    else:
        sitk.WriteImage(sitk.Compose([Scan().grid()] * 3), str(file))


UNUSABLE = [
    ("truncated", r"b_0000\.nii\.gz must be a whole file .*EOFError"),
    ("not an image", r"b_0000\.nii\.gz must be a whole file"),
    ("metres", r"b_0000\.nii\.gz must be more than half a planned voxel long .* is the spacing in its header in mm\?"),
    ("micrometres", r"b_0000\.nii\.gz must fit into memory at the planned spacing, 4 x 1\.1 x 1 mm, .* 4000 x 1100"),
    ("4D", r"b_0000\.nii\.gz must be a 3D image with one value per voxel, got an array of shape \(17, 23, 6, 2\)"),
    ("several values", r"b_0000\.nii\.gz must be a 3D image with one value per voxel, got an array of shape"),
    ("thin", r"b_0000\.nii\.gz must be more than half a planned voxel long \(4 x .* got 1 x"),
    ("thin but for zeros", r"b_0000\.nii\.gz must be more than half a planned voxel long .* got 1 x"),
]


@pytest.mark.parametrize(("kind", "message"), UNUSABLE)
def test_input_that_cannot_be_predicted_is_named(known, images, tmp_path, capfd, kind, message):
    damage(images / "b_0000.nii.gz", kind)
    capfd.readouterr()
    assert main(arguments(images, tmp_path / "out")) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert re.search(message, errors), errors
    assert results(tmp_path / "out") == ["a.nii.gz"]


@pytest.mark.parametrize("grid", ["native", "file", "folder"])
@pytest.mark.parametrize("kind", ["4D", "several values"])
def test_no_grid_takes_files_of_several_layers(known, images, tmp_path, capfd, kind, grid):
    damage(images / "b_0000.nii.gz", kind)
    reference = {"file": images / "a_0000.nii.gz", "folder": images}.get(grid, grid)
    capfd.readouterr()
    assert main(arguments(images, tmp_path / "out", "--grid", reference)) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "b_0000.nii.gz must be a 3D image with one value per voxel" in errors


def test_a_reference_of_several_layers_is_named(known, images, tmp_path, capfd):
    damage(tmp_path / "reference.nii.gz", "4D")
    capfd.readouterr()
    assert main(arguments(images, tmp_path / "out", "--grid", tmp_path / "reference.nii.gz")) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "reference.nii.gz must be a 3D image with one value per voxel" in errors


@pytest.mark.parametrize(
    ("channels", "got"), [(("0000", "0001"), "b_0000.nii.gz, b_0001.nii.gz"), (("0001",), "b_0001")]
)
def test_cases_have_exactly_the_channels_of_the_training_data(known, images, tmp_path, capfd, channels, got):
    """nnU-Net takes the second channel for the first where that is missing."""
    (images / "b_0000.nii.gz").unlink()
    for channel in channels:
        shutil.copy(images / "a_0000.nii.gz", images / f"b_{channel}.nii.gz")
    capfd.readouterr()
    assert main(arguments(images, tmp_path / "out")) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert f"one file for each of the 1 channels of a case, b_0000.nii.gz, got {got}" in errors
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_cases_are_passed_over_and_said(known, images, tmp_path, capfd, caplog):
    """nnU-Net takes what macOS writes beside files for cases, and says nothing of other endings."""
    (images / "._a_0000.nii.gz").write_bytes(b"macOS")
    Scan().write(images / "d_0000.nii")
    assert main(arguments(images, tmp_path / "out")) == 0
    assert results(tmp_path / "out") == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert "._a_0000.nii.gz of macOS are no images and are passed over" in caplog.text
    assert "d_0000.nii are left out, files must end in .nii.gz" in caplog.text


def test_slices_that_are_not_thick_where_the_model_has_them_are_said(known, images, tmp_path, caplog):
    Scan(slices=20, spacing_mm=(1.0, 1.0, 1.1)).write(images / "b_0000.nii.gz")
    assert main(arguments(images, tmp_path / "out")) == 0
    assert "b_0000.nii.gz: its slices are not thick along the model's slice axis (1 x 1.1 x 1 mm" in caplog.text
    assert caplog.text.count("not thick") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_intensities_that_are_not_finite_are_named(known, tmp_path, capfd, value):
    """In MHA: of a NIfTI file SimpleITK reads them as 0."""
    (tmp_path / "in").mkdir()
    Scan().write(tmp_path / "in" / "a_0000.mha")
    image = sitk.ReadImage(str(tmp_path / "in" / "a_0000.mha"))
    image[3, 3, 3] = value
    sitk.WriteImage(image, str(tmp_path / "in" / "b_0000.mha"))
    capfd.readouterr()
    assert main(arguments(tmp_path / "in", tmp_path / "out", number=MHA_MODEL)) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert "b_0000.mha must hold finite values" in errors
    assert results(tmp_path / "out") == ["a.mha"]


def test_workers_name_the_input_too(known, images, tmp_path):
    damage(images / "b_0000.nii.gz", "truncated")
    errors = message_of(start(images, tmp_path / "out", workers=1), status=1)
    assert re.search(UNUSABLE[0][1], errors), errors
    assert set(results(tmp_path / "out")) <= {"a.nii.gz"}


limit_file_size = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (KILOBYTES << 10, KILOBYTES << 10))


def assert_goes_on(images, out, *options):
    """What is there is kept, the rest is made."""
    assert [name for name in results(out) if not name.startswith("a.")] == []
    assert_whole(out, "a")
    first = (out / "a.nii.gz").stat().st_mtime_ns
    assert main(arguments(images, out, "--continue_prediction", *options)) == 0
    assert_whole(out, "abc")
    assert (out / "a.nii.gz").stat().st_mtime_ns == first


def test_segmentation_that_does_not_fit_is_named_and_not_left_there(known, images, tmp_path):
    out = tmp_path / "out"
    errors = message_of(start(images, out, setup=limit_file_size), status=1)
    assert f"{out / 'b.nii.gz'} could not be written: " in errors
    assert "go on with --continue_prediction" in errors
    assert_goes_on(images, out)
    assert results(out) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_probabilities_that_do_not_fit_are_named_and_not_left_there(known, images, tmp_path, monkeypatch, capfd):
    out, save = tmp_path / "out", np.savez_compressed

    def run_out_of_space(file, **arrays):
        save(file, **arrays)
        if Path(file).name == "b.npz":
            os.truncate(file, KILOBYTES << 10)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", run_out_of_space)
        capfd.readouterr()
        assert main(arguments(images, out, "--save_probabilities")) == 1
    errors = capfd.readouterr().err
    assert errors.count("\n") == 1
    assert f"{out / 'b.npz'} could not be written: [Errno 28] No space left on device; free space" in errors
    assert_goes_on(images, out, "--save_probabilities")
    assert results(out) == sorted(f"{name}.{ending}" for name in "abc" for ending in ("nii.gz", "npz", "pkl"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system that a large segmentation does not fit on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={KILOBYTES}k"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_with_workers(known, images, small_disk):
    errors = message_of(start(images, small_disk, workers=1), status=1)
    assert f"{small_disk / 'b.nii.gz'} could not be written: " in errors
    assert set(results(small_disk)) <= {"a.nii.gz", "c.nii.gz"}
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    assert main(arguments(images, small_disk, "--continue_prediction")) == 0
    assert_whole(small_disk, "abc")
    assert results(small_disk) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]


def test_ctrl_c_ends_everything_with_one_line(known, tmp_path):
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Scan().write(source / "a_0000.nii.gz")
    for number in range(20):
        write_noise(source / f"b{number:02d}_0000.nii.gz")
    process = start(source, out, workers=1)
    while "Predicting b00" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the command
    assert message_of(process, status=INTERRUPTED) == "rehrseg predict: interrupted\n"
    names = results(out)
    assert len(names) < 21
    for name in names:
        assert np.asanyarray(nibabel.load(out / name).dataobj).shape[2] == 24


def test_read_only_output_folder_is_named(known, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    errors = message_of(start(images, out, setup=obey_permissions), status=1)
    assert f"{out} must be writable, got 'Permission denied'" in errors
    assert "another place with -o" in errors

"""`rehrseg predict` on damaged inputs, full disks, read-only folders and Ctrl-C: one line, and nothing half-written."""

import ctypes
import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from known_answers import TRAINER, Scan, known_trainer, write_model

from rehrseg_nnunet.cli.main import INTERRUPTED, main

pytestmark = pytest.mark.slow

MODEL, MHA_MODEL = 100, 101
LARGE = (160, 160)
KILOBYTES = 30  # enough for all files but those of the large scan
DAC_OVERRIDE, DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


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
    return subprocess.Popen(
        [sys.executable, "-m", "rehrseg_nnunet.cli.main", *arguments(source, target, *options, workers=workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=setup,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
    )


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
    """What an output folder holds, hidden files and folders included, but for nnU-Net's records of the call."""
    records = {"predict_from_raw_data_args.json", "dataset.json", "plans.json"}
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
    else:
        other = file.with_name("b_0001.nii.gz")
        shutil.copy(file, other)
        if kind == "channel of another size":
            Scan(slices=3).write(other)


UNUSABLE = [
    ("truncated", r"b_0000\.nii\.gz must be whole files .*EOFError"),
    ("not an image", r"b_0000\.nii\.gz must be whole files"),
    ("thin", r"b_0000\.nii\.gz must be more than half a planned voxel long \(4 x .* got 1 x"),
    ("thin but for zeros", r"b_0000\.nii\.gz must be more than half a planned voxel long .* got 1 x"),
    ("channel of another size", r"b_0000\.nii\.gz, \S*b_0001\.nii\.gz must have the same shape and spacing"),
    ("channel", r"b_0001\.nii\.gz must have as many channels as the training data, 1, got 2"),
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
    assert "b_0000.mha must hold finite intensities" in errors
    assert results(tmp_path / "out") == ["a.mha"]


def test_workers_name_the_input_too(known, images, tmp_path):
    damage(images / "b_0000.nii.gz", "truncated")
    errors = message_of(start(images, tmp_path / "out", workers=1), status=1)
    assert re.search(UNUSABLE[0][1], errors), errors
    assert set(results(tmp_path / "out")) <= {"a.nii.gz"}


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (KILOBYTES << 10, KILOBYTES << 10))


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


def without_privileges():
    """Root's files bind root, too."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


def test_read_only_output_folder_is_named(known, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    errors = message_of(start(images, out, setup=without_privileges), status=1)
    assert f"{out} must be writable, got 'Permission denied'" in errors
    assert "another folder with -o" in errors

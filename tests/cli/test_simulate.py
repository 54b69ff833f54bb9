"""Thick-slice datasets: geometry, values, names, and nothing left behind after a refusal."""

import itertools
import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rehrseg_nnunet.cli import simulate as module
from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.cli.simulate import simulate, thicken_case
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

SOURCE = "Dataset009_Tiny"
SIZE = (9, 10, 11)  # array order z, y, x
SPACING = (0.9, 1.1, 1.3)  # file order x, y, z
AXES = {"z": 0, "y": 1, "x": 2}


def oblique():
    a, b, c = 0.3, -0.2, 0.15
    turns = [np.eye(3) for _ in range(3)]
    for turn, angle, (i, j) in zip(turns, (a, b, c), ((0, 1), (1, 2), (0, 2)), strict=True):
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
    return turns[0] @ turns[1] @ turns[2]


def write(path, array, **geometry):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.get("spacing", SPACING))
    image.SetOrigin(geometry.get("origin", (-12.0, 7.5, 30.0)))
    image.SetDirection(geometry.get("direction", oblique()).ravel().tolist())
    sitk.WriteImage(image, str(path))
    return path


def dataset(raw, *, size=SIZE, cases=("a", "b"), label_type=np.uint8, test_set=False):
    rng = np.random.default_rng(0)
    folder = raw / SOURCE
    parts = ["Tr", "Ts"] if test_set else ["Tr"]
    for part, case in itertools.product(parts, cases):
        for channel in range(2):
            image = rng.normal(100, 20, size=size).astype(np.int16 if channel else np.float32)
            write(folder / f"images{part}" / f"{case}_{channel:04d}.nrrd", image)
        if part == "Tr":
            write(folder / "labelsTr" / f"{case}.nrrd", rng.integers(0, 3, size=size).astype(label_type))
    content = {
        "name": SOURCE,
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": len(cases),
        "file_ending": ".nrrd",
        "licence": "mine",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def raw(tmp_path, monkeypatch):
    folder = tmp_path / "raw"
    folder.mkdir()
    monkeypatch.setenv("nnUNet_raw", str(folder))
    for other in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(other, raising=False)
    return folder


def make(factor=2, axis="z", source="9", number=10):
    return simulate(source, number, factor=factor, axis=axis)


def read(folder, name):
    return sitk.ReadImage(str(folder / name))


def values(folder, name):
    return sitk.GetArrayFromImage(read(folder, name))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_physical_points(raw, axis, factor):
    """LR slice k lies at HR index r*k + (r - 1)/2 along the axis, at the same index elsewhere: oblique files too."""
    dataset(raw, cases=("a",))
    target = make(factor, axis)
    file_axis = 2 - AXES[axis]
    for name in ("a_0000.nrrd", "a_0001.nrrd"):
        lr, hr = read(target / "imagesTr", name), read(target / "imagesTrHR", name)
        assert hr.GetSize()[file_axis] == lr.GetSize()[file_axis] * factor == SIZE[AXES[axis]] // factor * factor
        assert lr.GetDirection() == pytest.approx(hr.GetDirection())
        for index in itertools.product(*((0, n - 1) for n in lr.GetSize())):
            at_hr = [float(i) for i in index]
            at_hr[file_axis] = factor * index[file_axis] + (factor - 1) / 2
            np.testing.assert_allclose(
                lr.TransformIndexToPhysicalPoint(index), hr.TransformContinuousIndexToPhysicalPoint(at_hr), atol=1e-6
            )
    labels = read(target / "labelsTr", "a.nrrd")
    for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(labels, get)() == pytest.approx(getattr(lr, get)())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("factor", [3, 4])
def test_values(raw, axis, factor):
    source = dataset(raw)
    target = make(factor, axis)
    a = AXES[axis]
    keep = tuple(slice(0, n // factor * factor if i == a else n) for i, n in enumerate(SIZE))
    for case, upper_ties in (("a", False), ("b", True)):  # ties take turns from case to case
        for channel in ("0000", "0001"):
            name = f"{case}_{channel}.nrrd"
            before = values(source / "imagesTr", name)[keep]
            hr, lr = values(target / "imagesTrHR", name), values(target / "imagesTr", name)
            assert hr.dtype == lr.dtype == np.float32
            np.testing.assert_array_equal(hr, before)
            np.testing.assert_array_equal(lr, degrade(torch.from_numpy(before.astype(np.float32)), factor, a).numpy())
        before = values(source / "labelsTr", f"{case}.nrrd")[keep]
        hr, lr = values(target / "labelsTrHR", f"{case}.nrrd"), values(target / "labelsTr", f"{case}.nrrd")
        assert hr.dtype == lr.dtype == np.uint8
        np.testing.assert_array_equal(hr, before)
        expected = degrade_labels(torch.from_numpy(before).int(), factor, a, upper_ties=upper_ties)
        np.testing.assert_array_equal(lr, expected.numpy())


def test_the_dataset_as_a_whole(raw):
    source = dataset(raw, test_set=True)
    target = make(4, "y")
    assert target == raw / "Dataset010_Tiny_r4y"
    assert {path.name for path in raw.iterdir()} == {SOURCE, target.name}
    folders = {"imagesTr", "labelsTr", "imagesTrHR", "labelsTrHR", "imagesTs", "imagesTsHR"}
    assert {path.name for path in target.iterdir()} == {*folders, "dataset.json"}
    for folder in folders:
        names = {file.name for file in (source / folder.removesuffix("HR")).iterdir()}
        assert {file.name for file in (target / folder).iterdir()} == names
    before, after = (json.loads((folder / "dataset.json").read_text()) for folder in (source, target))
    assert after["name"] == target.name
    assert "factor of 4" in after.pop("description")
    assert {**after, "name": SOURCE} == before


@pytest.mark.parametrize("label_type", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_labels_of_every_type_are_written_as_nnunet_does(raw, label_type):
    source = dataset(raw, cases=("a",), label_type=label_type)
    target = make()
    for folder in ("labelsTr", "labelsTrHR"):
        assert values(target / folder, "a.nrrd").dtype == np.uint8
    truth = values(target / "labelsTrHR", "a.nrrd")
    np.testing.assert_array_equal(truth, values(source / "labelsTr", "a.nrrd")[:8])


def test_by_name_and_from_the_command_line(raw, capsys):
    dataset(raw, cases=("a",))
    assert main(["simulate", "-d", SOURCE, "-o", "12", "--factor", "3", "--axis", "x"]) == 0
    target = raw / "Dataset012_Tiny_r3x"
    assert capsys.readouterr().out == f"wrote {target}\n"


def test_a_simulated_dataset_can_be_simulated_again(raw):
    dataset(raw, cases=("a",))
    make(2, "z")
    again = make(2, "x", source="10", number=11)
    assert again.name == "Dataset011_Tiny_r2z_r2x"
    assert values(again / "imagesTr", "a_0000.nrrd").shape == (4, 10, 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"factor": 1}, ValueError, "--factor must be at least 2, got 1"),
        ({"number": 0}, ValueError, "-o must be a number between 1 and 999, got 0"),
        ({"number": 1000}, ValueError, "-o must be a number between 1 and 999, got 1000"),
        ({"number": 9}, FileExistsError, "-o must be a free number, but nnUNet_raw already has Dataset009_Tiny"),
        ({"source": "8"}, FileNotFoundError, "dataset 8 was not found"),
        ({"factor": 10}, ValueError, r"a_0000.nrrd must have at least 10 slices along the simulated axis, got 9"),
    ],
)
def test_refusals_leave_nothing_behind(raw, options, error, message):
    dataset(raw)
    with pytest.raises(error, match=message):
        make(**options)
    assert {path.name for path in raw.iterdir()} == {SOURCE}


@pytest.mark.parametrize("variable", ["nnUNet_preprocessed", "nnUNet_results"])
def test_numbers_that_nnunet_knows_elsewhere_are_taken(raw, tmp_path, monkeypatch, variable):
    dataset(raw)
    (tmp_path / "other" / "Dataset010_Old").mkdir(parents=True)
    monkeypatch.setenv(variable, str(tmp_path / "other"))
    with pytest.raises(FileExistsError, match=f"{variable} already has Dataset010_Old"):
        make()


def spoil(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "imagesTr/b_0000.nrrd",
            np.zeros((6, 6), np.float32),
            "one value per voxel, got .*1, 1, 6, 6. and 2",
        ),
        ("imagesTr/b_0000.nrrd", np.zeros((4, 4, 4, 4), np.float32), "one value per voxel, got .*4, 4, 4, 4. and 4"),
        ("imagesTr/b_0000.nrrd", np.full(SIZE, np.inf, np.float32), "imagesTr.b_0000.nrrd must hold finite values"),
        ("imagesTr/b_0001.nrrd", np.zeros(SIZE, np.float32), "b_0001.nrrd must have the voxels of .*b_0000.nrrd"),
        ("labelsTr/b.nrrd", np.full(SIZE, 0.5, np.float32), "labelsTr.b.nrrd must hold integer labels, got 0.5"),
        ("labelsTr/b.nrrd", np.full(SIZE, np.nan, np.float32), "labelsTr.b.nrrd must hold finite values"),
        ("labelsTr/b.nrrd", np.zeros(SIZE, np.uint8), "labelsTr.b.nrrd must have the voxels of .*b_0000.nrrd at the"),
        ("labelsTr/b.nrrd", np.zeros((7, 10, 11), np.uint8), "labelsTr.b.nrrd must have the voxels of .*shape .7, 10"),
    ],
)
def test_unusable_files_are_named_and_nothing_is_left(raw, name, array, message):
    folder = dataset(raw)
    spoil(folder / name, array)
    with pytest.raises(ValueError, match=message):
        make()
    assert {path.name for path in raw.iterdir()} == {SOURCE}


def test_colour_images_are_refused(raw):
    folder = dataset(raw)
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4, 3), np.float32), isVector=True)
    (folder / "imagesTr" / "a_0000.nrrd").unlink()
    sitk.WriteImage(image, str(folder / "imagesTr" / "a_0000.nrrd"))
    with pytest.raises(ValueError, match=r"a_0000\.nrrd must be a 3D image with one value per voxel"):
        make()


def test_unreadable_files_leave_nothing_behind(raw):
    folder = dataset(raw)
    (folder / "imagesTr" / "b_0000.nrrd").write_bytes(b"no image")
    assert main(["simulate", "-d", "9", "-o", "10"]) == 1
    assert {path.name for path in raw.iterdir()} == {SOURCE}


def test_an_interrupted_run_can_be_repeated(raw, monkeypatch):
    dataset(raw)
    seen = []

    def stop(case, *arguments, **options):
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return thicken_case(case, *arguments, **options)

    monkeypatch.setattr(module, "thicken_case", stop)
    with pytest.raises(KeyboardInterrupt):
        make()
    assert {path.name for path in raw.iterdir()} == {SOURCE}
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_raw", str(raw))
    (raw / ".Dataset010_Tiny_r2z.partial" / "imagesTr").mkdir(parents=True)  # a killed run leaves this
    assert len(list((make() / "imagesTr").iterdir())) == 4


def test_folders_that_are_no_datasets(raw):
    folder = dataset(raw)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": {"a": {"images": ["x"], "label": "y"}}}))
    with pytest.raises(NotImplementedError, match=r"Dataset009_Tiny lists its files in dataset.json"):
        make()
    (folder / "dataset.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset.json is missing; Dataset009_Tiny is no nnU-Net dataset wit"):
        make()
    assert {path.name for path in raw.iterdir()} == {SOURCE}


def test_without_nnunets_variable(monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["simulate", "-d", "9", "-o", "10"]) == 1
    assert capsys.readouterr().err.startswith("rehrseg simulate: error: environment variable nnUNet_raw must be set")


def assert_refused(raw, capsys, *messages):
    """One line, status 1, no dataset."""
    capsys.readouterr()
    assert main(["simulate", "-d", "9", "-o", "10", "--factor", "2"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    for message in messages:
        assert message in errors[0], errors[0]
    assert {path.name for path in raw.iterdir()} == {SOURCE}


def change(folder, **changes):
    file = folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_files_with_another_ending_are_no_empty_dataset(raw, capsys):
    change(dataset(raw), file_ending=".nii.gz")
    assert_refused(raw, capsys, "must hold files that end in .nii.gz, got none, but a_0000.nrrd", "mend file_ending")


def test_files_of_another_ending_beside_the_right_ones_are_named(raw, caplog):
    folder = dataset(raw)
    write(folder / "imagesTr" / "c_0000.mha", np.zeros(SIZE, np.float32))
    (folder / "labelsTr" / "._a.nrrd").write_bytes(b"macOS")
    make()
    assert "c_0000.mha are left out, files must end in .nrrd" in caplog.text
    assert "._a.nrrd of macOS are no images and are passed over" in caplog.text


def test_missing_labels_are_named(raw, capsys):
    (dataset(raw) / "labelsTr" / "b.nrrd").unlink()
    assert_refused(raw, capsys, "labelsTr must have a label for every image, but b.nrrd is missing")


def test_missing_channels_are_named(raw, capsys):
    (dataset(raw) / "imagesTr" / "b_0000.nrrd").unlink()
    assert_refused(raw, capsys, "one file for each of the 2 channels of a case, b_0000.nrrd, b_0001.nrrd, got b_0001")


def test_labels_without_image_and_a_wrong_number_of_cases_are_said(raw, caplog):
    folder = dataset(raw)
    change(folder, numTraining=5)
    write(folder / "labelsTr" / "c.nrrd", np.zeros(SIZE, np.uint8))
    target = make()
    assert "c.nrrd have no image and are left out" in caplog.text
    assert "dataset.json says 5 cases, got 2" in caplog.text
    assert json.loads((target / "dataset.json").read_text())["numTraining"] == 2


def test_labels_that_dataset_json_does_not_have_are_refused(raw, capsys):
    change(dataset(raw), labels={"background": 0, "a": 1})
    assert_refused(raw, capsys, "a.nrrd has label 2, which dataset.json does not have; mend the labels")


def test_labels_a_hair_off_are_rounded_and_it_is_said(raw, caplog):
    folder = dataset(raw, cases=("a",))
    labels = values(folder / "labelsTr", "a.nrrd")
    write(folder / "labelsTr" / "a.nrrd", (labels * 1.0000153).astype(np.float32))
    target = make()
    np.testing.assert_array_equal(values(target / "labelsTrHR", "a.nrrd"), labels[:8])
    assert "a.nrrd: labels up to 3.1e-05 off an integer are rounded" in caplog.text


def test_headers_may_be_rounded(raw):
    """Label headers a twentieth of a voxel off their image's, as other software writes them."""
    folder = dataset(raw, cases=("a",))
    labels = values(folder / "labelsTr", "a.nrrd")
    write(folder / "labelsTr" / "a.nrrd", labels, origin=(-12.0 + 0.05 * min(SPACING), 7.5, 30.0))
    target = make()
    origins = [
        read(target / name, file).GetOrigin() for name, file in (("labelsTr", "a.nrrd"), ("imagesTr", "a_0000.nrrd"))
    ]
    assert origins[0] == pytest.approx(origins[1])


OLD = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "x"}, "numTraining": 1, "training": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (json.dumps(OLD), "must give labels by name, as in nnU-Net 2, got them by number as in nnU-Net 1; convert"),
        (json.dumps({**OLD, "labels": {"background": 0}}), "must have the key channel_names, file_ending, got"),
        ('{\n"labels": 1,}', "must be JSON, got a mistake at line 2, column 1"),  # 13, and 12 from Python 3.13 on
        ("\ufeff{}", "must not begin with a byte order mark, which nnU-Net cannot read"),
        ("[]", "must hold a JSON object, got a list"),
        ("", "must be JSON, got a mistake at line 1, column 1"),
    ],
)
def test_unusable_dataset_json(raw, capsys, text, message):
    (dataset(raw) / "dataset.json").write_text(text, encoding="utf-8")
    assert_refused(raw, capsys, f"{SOURCE}/dataset.json {message}")


@pytest.mark.parametrize("ending", [".tif", ".png"])
def test_formats_that_keep_no_spacing_are_refused(raw, capsys, ending):
    change(dataset(raw), file_ending=ending)
    assert_refused(raw, capsys, f"must have files that keep their spacing, got {ending}; convert it to .nii.gz")


def test_truncated_files_are_refused(raw, capsys):
    """SimpleITK reads the rest of a NIfTI file as 0."""
    folder = dataset(raw, cases=("a",))
    change(folder, file_ending=".nii.gz")
    for file in list(folder.glob("*Tr/*.nrrd")):
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file.with_suffix(".nii.gz")))
        file.unlink()
    file = folder / "imagesTr" / "a_0001.nii.gz"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert_refused(raw, capsys, "a_0001.nii.gz must be a whole file that nnU-Net's SimpleITKIO can read, got EOFError")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_files_that_do_not_fit_are_named_and_nothing_is_left(raw, ending):
    """In a process of its own with a limit per file."""
    rng = np.random.default_rng(0)
    folder = raw / SOURCE
    write(folder / "imagesTr" / f"a_0000{ending}", rng.normal(size=(16, 32, 32)).astype(np.float32))
    write(folder / "labelsTr" / f"a{ending}", np.zeros((16, 32, 32), np.uint8))
    content = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "a": 1}, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "rehrseg_nnunet.cli.main", "simulate", "-d", "9", "-o", "10"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20 << 10, 20 << 10))  # noqa: E731
    run = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert run.returncode == 1, run.stderr
    assert f"a_0000{ending} could not be written: " in run.stderr
    assert "Traceback" not in run.stderr
    assert {path.name for path in raw.iterdir()} == {SOURCE}


def test_voxels_of_micrometres(raw):
    folder = dataset(raw, cases=("a",))
    for file in folder.glob("*Tr/*.nrrd"):
        write(
            file, sitk.GetArrayFromImage(sitk.ReadImage(str(file))), spacing=(0.0004, 0.0004, 0.0004), origin=(0, 0, 0)
        )
    target = make(4)
    assert read(target / "imagesTr", "a_0000.nrrd").GetSpacing() == pytest.approx((0.0004, 0.0004, 0.0016))


def test_an_empty_folder_for_test_images_is_no_fault(raw):
    (dataset(raw) / "imagesTs").mkdir()
    assert not (make() / "imagesTs").exists()


@pytest.mark.parametrize("labels", [{"background": 1}, None, {"background": 0, "x": [1, 2]}])
def test_labels_that_nnunet_does_not_accept_are_one_message(raw, capsys, labels):
    change(dataset(raw), labels=labels)
    assert_refused(raw, capsys, f"{SOURCE}/dataset.json must ")

"""What goes wrong around a training: an error that names the file and the remedy, and nothing complete is lost."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
from contextlib import contextmanager

import blosc2
import faults
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from privileges import obey_permissions
from workspace import environment

from rehrseg_nnunet.cases.interpolated import interpolated_folder
from rehrseg_nnunet.nnunet.fold_run import FINAL_CHECKPOINT

pytestmark = pytest.mark.slow

THICK, BAD = 2, 3
STAGE_1, STAGE_2 = "SelfSRTrainer", "REHRSegTrainer"


@pytest.fixture(scope="module")
def prepared(nnunet):
    nnunet.write_phantom(1, cases=5)
    nnunet.simulate(1, THICK)
    nnunet.prepare(THICK)
    return nnunet


@pytest.fixture(scope="module")
def trained(prepared):
    """Stage 1 is done; no baseline, stage 2 starts from scratch."""
    prepared.train(STAGE_1, THICK)
    return prepared


@pytest.fixture
def stage_1(trained):
    """The fold of stage 1, and its former state afterwards."""
    fold = trained.fold(STAGE_1, THICK)
    copy = trained.base / "copy"
    shutil.copytree(fold, copy)
    yield fold
    shutil.rmtree(fold)
    copy.rename(fold)


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.is_file()}


def remedy(nnunet, *options):
    command = f"nnUNetv2_train {nnunet.dataset(THICK)} 3d_fullres 0 -tr SelfSRTrainer -p tiny"
    return " ".join([command, *options])


def assert_stage_2_starts(nnunet):
    with pytest.MonkeyPatch.context() as patch:
        faults.at_step(0, 0, faults.interrupt, set_attribute=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            nnunet.train(STAGE_2, THICK)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (truncate, ValueError, "{file} must have .* bytes, got"),
        (lambda file: file.write_bytes(bytes(file.stat().st_size)), ValueError, "{file} cannot be read"),
        (lambda file: file.unlink(), ValueError, "{file} is missing"),
        (
            lambda file: (file.parents[1] / "pseudo_hr_cases" / f"{file.stem}.json").unlink(),
            FileNotFoundError,
            "{file}: the case was not written",
        ),
    ],
    ids=["truncated", "zeros", "missing", "no entry"],
)
def test_a_bad_pseudo_hr_case_is_named_and_alone_made_again(trained, stage_1, damage, error, message):
    file, *others = sorted(file for file in (stage_1 / "pseudo_hr").glob("*.b2nd") if "_seg" not in file.name)
    damage(file)
    before = {other: other.stat().st_mtime_ns for other in others}
    with pytest.raises(error, match=rf"{message.format(file=file)}.*; run: {remedy(trained, '--val')}$"):
        trained.train(STAGE_2, THICK)
    trained.train(STAGE_1, THICK, "--val")
    assert {other: other.stat().st_mtime_ns for other in others} == before
    assert_stage_2_starts(trained)


def test_a_stage_1_of_an_earlier_version_is_refused_wherever_it_is_used(trained, stage_1):
    for file in stage_1.glob("checkpoint_*.pth"):
        content = torch.load(file, weights_only=False)
        del content["network_weights"]["version"]
        torch.save(content, file)
    for trainer, options in ((STAGE_2, ()), (STAGE_1, ("--val",)), (STAGE_1, ("--c",))):
        with pytest.raises(ValueError, match=rf"got version 1, .*; train it anew: {remedy(trained)}$"):
            trained.train(trainer, THICK, *options)


def test_a_case_whose_labels_were_corrected_since_is_named_and_alone_made_again(trained, stage_1, tmp_path):
    file, *others = sorted(file for file in (stage_1 / "pseudo_hr").glob("*.b2nd") if "_seg" not in file.name)
    source = trained.plans(THICK).parent / "nnUNetPlans_3d_fullres" / f"{file.stem}_seg.b2nd"
    shutil.copy2(source, tmp_path)
    corrected = np.zeros_like(blosc2.open(str(source), mode="r")[:])
    source.unlink()
    blosc2.asarray(corrected, urlpath=str(source))
    before = {other: other.stat().st_mtime_ns for other in others}
    try:
        message = rf"{file} must be as new as the preprocessed case.*; run: {remedy(trained, '--val')}$"
        with pytest.raises(ValueError, match=message):
            trained.train(STAGE_2, THICK)
        trained.train(STAGE_1, THICK, "--val")
        assert not (blosc2.open(str(file.with_name(source.name)), mode="r")[:] > 0).any()
        assert {other: other.stat().st_mtime_ns for other in others} == before
        assert_stage_2_starts(trained)
    finally:
        shutil.copy2(tmp_path / source.name, source)


@pytest.mark.parametrize(
    ("field", "value"), [("version", 3), ("fold", 1), ("plans_name", "other"), ("weights_sha256", "0" * 64)]
)
def test_a_manifest_of_something_else_is_refused(trained, stage_1, field, value):
    file = stage_1 / "pseudo_hr.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}))
    before = times(stage_1 / "pseudo_hr")
    with pytest.raises(ValueError, match=rf"{file} has {field} {value!r}, not .*; run: {remedy(trained, '--val')}$"):
        trained.train(STAGE_2, THICK)
    assert times(stage_1 / "pseudo_hr") == before


def test_cases_of_another_factor_are_refused(trained, stage_1):
    file = stage_1 / "pseudo_hr.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps({**manifest, "made_with": {**manifest["made_with"], "factor": 2}}))
    with pytest.raises(ValueError, match=rf"{file} has factor 2, not 4; run: {remedy(trained, '--val')}$"):
        trained.train(STAGE_2, THICK)


def test_a_stage_1_checkpoint_that_was_replaced_after_the_export_is_refused(trained, stage_1):
    content = torch.load(stage_1 / FINAL_CHECKPOINT, weights_only=False)
    content["network_weights"]["head.uncertainty.weight"].add_(1)
    torch.save(content, stage_1 / FINAL_CHECKPOINT)
    (stage_1 / "checkpoint_best.pth").unlink()  # may hold the weights that made the cases
    message = rf"pseudo_hr.json has weights_sha256 .*replaced after the export.*; run: {remedy(trained, '--val')}$"
    with pytest.raises(ValueError, match=message):
        trained.train(STAGE_2, THICK)
    trained.train(STAGE_1, THICK, "--val")
    assert_stage_2_starts(trained)


def test_a_truncated_stage_1_checkpoint_is_named_and_the_remedy_leads_on(trained, stage_1):
    file = stage_1 / FINAL_CHECKPOINT
    truncate(file)
    with pytest.raises(
        ValueError, match=rf"{file} must be an nnU-Net .*; remove it and run: {remedy(trained, '--c')}$"
    ):
        trained.train(STAGE_2, THICK)
    with pytest.raises(ValueError, match=rf"{file} must be an nnU-Net checkpoint.*; remove it and continue with --c"):
        trained.train(STAGE_1, THICK, "--val")
    file.unlink()
    trained.train(STAGE_1, THICK, "--c")
    assert_stage_2_starts(trained)


def test_nan_and_unknown_labels_are_named_before_anything_is_interpolated(prepared):
    """With their raw files, all in one error. (ITK reads nan in NIfTI files as 0; other formats and readers do not.)"""
    raw = prepared.copy_dataset(THICK, BAD, "Bad")
    image_file, label_file = raw / "imagesTr" / "phantom_001_0000.nii.gz", raw / "labelsTr" / "phantom_003.nii.gz"
    labels = sitk.ReadImage(str(label_file))
    labels[3, 4, 1] = 7
    sitk.WriteImage(labels, str(label_file))
    prepared.prepare(BAD)
    preprocessed = prepared.preprocessed / prepared.dataset(BAD) / "nnUNetPlans_3d_fullres"
    blosc2.open(str(preprocessed / "phantom_001.b2nd"), mode="a")[0, 1, 4, 3] = np.nan
    message = (
        rf"phantom_001 has nan or inf in its image \({image_file}, .*phantom_003 has label 7, which dataset.json does "
        rf"not have \(.*{label_file}\); mend the files, find others with .*--verify_dataset_integrity"
    )
    with pytest.raises(ValueError, match=message) as error:
        prepared.train(STAGE_1, BAD)
    assert "\n" not in str(error.value)
    assert not interpolated_folder(preprocessed, 4).exists()
    shutil.copy(prepared.raw / prepared.dataset(THICK) / "labelsTr" / label_file.name, label_file)
    prepared.preprocess(BAD)
    with pytest.MonkeyPatch.context() as patch:
        faults.at_step(0, 0, faults.interrupt, set_attribute=patch.setattr)
        with pytest.raises(KeyboardInterrupt):
            prepared.train(STAGE_1, BAD)


def test_a_second_export_into_one_folder_is_refused(trained, stage_1):
    """Even while the first is stopped; what that one wrote stays, and after its end the second goes on."""
    shutil.rmtree(stage_1 / "pseudo_hr_cases")
    shutil.rmtree(stage_1 / "pseudo_hr")
    process = trained.start_training(STAGE_1, THICK, "--val", fault="in_export(1, hang)")
    try:
        assert any(faults.HANGING in line for line in process.stdout)
        with pytest.raises(RuntimeError, match=f"{stage_1}: another process is writing there; wait for it or stop it"):
            trained.train(STAGE_1, THICK, "--val")
        assert len(list(stage_1.glob("pseudo_hr_tmp_*/*"))) == 3
        before = times(stage_1 / "pseudo_hr")
        assert len(before) == 3
    finally:
        process.kill()
        process.communicate()
    trained.train(STAGE_1, THICK, "--val")
    after = times(stage_1 / "pseudo_hr")
    assert {path: after[path] for path in before} == before
    assert len(after) == 4 * 3
    assert not list(stage_1.glob("pseudo_hr_tmp_*"))


@contextmanager
def read_only(folder):
    mode = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(0o555)
    try:
        yield
    finally:
        folder.chmod(mode)


@pytest.mark.parametrize("existing", [True, False])
def test_a_read_only_results_folder_is_named_before_training(trained, existing):
    """Whether the fold is there already, or cannot be made."""
    fold = trained.fold(STAGE_1, THICK)
    folder, options = (fold, {"fold": "0"}) if existing else (fold.parent, {"fold": "1"})
    before = times(folder)
    with read_only(folder):
        process = trained.start_training(STAGE_1, THICK, "--c", setup=obey_permissions, **options)
        output = process.communicate()[0]
    assert process.returncode == 1
    assert "Epoch 0" not in output
    assert times(folder) == before
    message = (
        f"PermissionError: {fold} must be writable, got 'Permission denied': training saves its checkpoints there; "
        "change its permissions or set nnUNet_results"
    )
    assert output.strip().splitlines()[-1] == (
        message if existing else f"PermissionError: [Errno 13] Permission denied: '{folder / 'fold_1'}'"
    )


@contextmanager
def small_disk(folder, megabytes):
    """A file system of that size at a new folder."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(disk, *, free):
    """Exactly some bytes are left (what a tmpfs says is an estimate)."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass
    os.truncate(ballast, ballast.stat().st_size - free)
    try:
        yield
    finally:
        ballast.unlink()


def test_a_full_disk_during_the_export_loses_no_complete_case(trained, tmp_path):
    source = trained.fold(STAGE_1, THICK)
    case_bytes = sum(file.stat().st_size for file in (source / "pseudo_hr").iterdir()) // 4
    with small_disk(tmp_path / "disk", 32) as disk, environment(nnUNet_results=str(disk)):
        fold = disk / source.relative_to(trained.results)
        shutil.copytree(source, fold, ignore=shutil.ignore_patterns("pseudo_hr*", "training_log*"))
        message = rf"{fold / 'pseudo_hr'}/phantom_.*.b2nd could not be written completely .*free space there .*--val"
        with filled(disk, free=int(2.2 * case_bytes)), pytest.raises(OSError, match=message):
            trained.train(STAGE_1, THICK, "--val")
        complete = times(fold / "pseudo_hr")
        assert len(complete) == 3 * len(list((fold / "pseudo_hr_cases").glob("*.json"))) > 0
        assert not list(fold.glob("pseudo_hr_tmp_*"))
        trained.train(STAGE_1, THICK, "--val")
        after = times(fold / "pseudo_hr")
        assert {path: after[path] for path in complete} == complete
        assert len(after) == 4 * 3
        assert_equal_cases(fold / "pseudo_hr", source / "pseudo_hr", uncertain=True)


def assert_equal_cases(folder, expected, *, uncertain=False):
    assert {file.name for file in folder.iterdir()} == {file.name for file in expected.iterdir()}
    for file in folder.glob("*.b2nd"):
        array, other = (blosc2.open(str(path), mode="r")[:] for path in (file, expected / file.name))
        if uncertain and not file.name.endswith("_seg.b2nd"):  # U is calibrated anew, on sums in another order
            np.testing.assert_allclose(array[-1], other[-1], rtol=0, atol=0.01)
            array, other = array[:-1], other[:-1]
        np.testing.assert_array_equal(array, other)


def test_a_full_disk_during_interpolation_loses_no_complete_case(trained, tmp_path):
    source = trained.preprocessed / trained.dataset(THICK)
    expected = interpolated_folder(source / "nnUNetPlans_3d_fullres", 4)
    case_bytes = sum(file.stat().st_size for file in expected.iterdir()) // 5
    with small_disk(tmp_path / "disk", 16) as disk, environment(nnUNet_preprocessed=str(disk)):
        shutil.copytree(source, disk / source.name, ignore=shutil.ignore_patterns("*_rehrseg_r4*"))
        folder = disk / source.name / expected.name
        message = rf"{folder}/phantom_.*.b2nd could not be written completely .*free space there and run the command"
        with pytest.MonkeyPatch.context() as patch:
            faults.at_step(0, 0, faults.interrupt, set_attribute=patch.setattr)
            with (
                environment(nnUNet_results=str(tmp_path)),
                filled(disk, free=int(2.5 * case_bytes)),
                pytest.raises(OSError, match=message),
            ):
                trained.train(STAGE_1, THICK)
            complete = times(folder)
            assert len(complete) % 3 == 0
            assert len(complete) > 0
            assert not list(folder.parent.glob("*_tmp"))
            with environment(nnUNet_results=str(tmp_path)), pytest.raises(KeyboardInterrupt):
                trained.train(STAGE_1, THICK)
        after = times(folder)
        assert {path: after[path] for path in complete} == complete
        assert_equal_cases(folder, expected)


def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_former_one(trained, tmp_path):
    source = trained.fold(STAGE_1, THICK)
    with small_disk(tmp_path / "disk", 32) as disk, environment(nnUNet_results=str(disk)):
        fold = disk / source.relative_to(trained.results)
        with pytest.MonkeyPatch.context() as patch:
            faults.at_step(1, 0, faults.interrupt, set_attribute=patch.setattr)
            with pytest.raises(KeyboardInterrupt):
                trained.train(STAGE_1, THICK)
        message = rf"{fold}/checkpoint_\w+.pth could not be written \(.*if the disk is full, free space .*--c continues"
        with filled(disk, free=64 * 1024), pytest.raises(OSError, match=message):
            trained.train(STAGE_1, THICK, "--c")
        assert torch.load(fold / "checkpoint_latest.pth", weights_only=False)["current_epoch"] == 1
        assert not list(fold.glob("*.tmp"))
        trained.train(STAGE_1, THICK, "--c")
        assert (fold / FINAL_CHECKPOINT).is_file()

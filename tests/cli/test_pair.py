"""Folders of scans to a paired dataset: files, grids, labels, and every bad input with its one line."""

import json

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.guided import pair_dataset
from rehrseg_nnunet.guided.paired_channels import PairedChannels
from rehrseg_nnunet.nnunet.whole_files import UnwrittenFileError, WholeFiles

SHAPE = (10, 12, 14)
SPACING = (0.9, 1.1, 1.3)
CASES = ("s1", "s2", "s3", "s4", "s5")


def head(seed, shape=SHAPE):
    """A ball of its own in air."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size) for size in shape), indexing="ij")
    distance = sum((axis - rng.uniform(0.45, 0.55) * size) ** 2 for axis, size in zip(axes, shape, strict=True))
    return (np.where(distance < 16, 100.0, 0.0) + rng.uniform(0.1, 3, shape)).astype(np.float32)


def write(file, array, *, spacing=SPACING, origin=(-12.0, 7.5, 30.0)):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection([0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1])
    sitk.WriteImage(image, str(file))
    return file


def values(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """`3T/` and `7T/` with five cases, beside nnU-Net's folders."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    for number, case in enumerate(CASES):
        write(tmp_path / "3T" / f"{case}.nii.gz", head(number))
        write(tmp_path / "7T" / f"{case}.nii.gz", (3 * head(number)).astype(np.int16))
    return tmp_path


def pair(place, *options, source="3T", privileged="7T"):
    arguments = ["--source", str(place / source), "--privileged", str(place / privileged), "-o", "610", "-np", "2"]
    return main(["pair", *arguments, *map(str, options)])


def written(place, name="Dataset610_Pairs"):
    folder = place / "nnUNet_raw" / name
    return folder, json.loads((folder / "dataset.json").read_text())


def refused(place, capsys, *options, **folders):
    """One line, and nothing is left."""
    capsys.readouterr()
    assert pair(place, *options, **folders) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert list((place / "nnUNet_raw").iterdir()) == []
    return errors[0]


def test_two_folders_become_a_dataset(place, capsys):
    assert pair(place, "--name", "Paired3T7T") == 0
    folder, content = written(place, "Dataset610_Paired3T7T")
    assert content == {
        "name": "Dataset610_Paired3T7T",
        "channel_names": {"0": "3T", "1": "7T"},
        "rehrseg_privileged_channels": ["1"],
        "labels": {"background": 0, "foreground": 1},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    assert PairedChannels.of_dataset(content) == PairedChannels((0,), (1,))
    for number, case in enumerate(CASES):
        source = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0000.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(source), head(number))
        better = sitk.ReadImage(str(folder / "imagesTr" / f"{case}_0001.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(better), (3 * head(number)).astype(np.int16))
        labels = values(folder / "labelsTr" / f"{case}.nii.gz")
        np.testing.assert_array_equal(labels, head(number) > 50)
        for get in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(better, get)() == getattr(source, get)()
    assert {path.name for path in (place / "nnUNet_raw").iterdir()} == {folder.name}
    out = capsys.readouterr().out
    assert out == f"wrote {folder}: 5 pairs\nnext: nnUNetv2_plan_and_preprocess -d 610 --verify_dataset_integrity\n"


def test_nnunet_takes_the_dataset_and_its_unknown_key(place, capsys):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.utilities.label_handling.label_handling import LabelManager, determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    assert pair(place) == 0
    folder, content = written(place)
    verify_dataset_integrity(str(folder), num_processes=1)
    plans = {
        "label_manager": "LabelManager",
        "configurations": {"3d_fullres": {"spacing": [1, 1, 1], "architecture": {}}},
    }
    manager = PlansManager(plans)
    assert determine_num_input_channels(manager, "3d_fullres", content) == 2
    label_manager = manager.get_label_manager(content)
    assert isinstance(label_manager, LabelManager)
    assert label_manager.foreground_labels == [1]


def test_several_channels_with_names_of_their_own(place):
    for number, case in enumerate(CASES):
        write(place / "3T_T2" / f"{case}_0000.mha", 200 - head(number))
        write(place / "7T_T2" / f"{case}.nrrd", 300 - head(number))
    more = ["--source", f"T2={place / '3T_T2'}", "--privileged", f"T2 better={place / '7T_T2'}"]
    assert pair(place, *more) == 0
    folder, content = written(place)
    assert content["channel_names"] == {"0": "3T", "1": "T2", "2": "7T", "3": "T2 better"}
    assert content["rehrseg_privileged_channels"] == ["2", "3"]
    np.testing.assert_allclose(values(folder / "imagesTr" / "s2_0001.nii.gz"), 200 - head(1))
    np.testing.assert_allclose(values(folder / "imagesTr" / "s2_0003.nii.gz"), 300 - head(1))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_formats_and_numbers_in_names(place, ending):
    """`_0001` at the end of a name is a case's number where there is no channel of this number."""
    for number in range(5):
        for part in ("a", "b"):
            write(place / part / f"subject_{number + 1:04d}{ending}", head(number))
    assert pair(place, source="a", privileged="b") == 0
    folder, content = written(place)
    assert content["file_ending"] == ending
    assert (folder / "imagesTr" / f"subject_0005_0001{ending}").is_file()


def test_skull_stripped_scans_have_their_common_mask_as_label(place):
    for number, case in enumerate(CASES):
        image = head(number)
        write(place / "3T" / f"{case}.nii.gz", np.where(image > 50, image, 0))
        shifted = np.roll(image, 1, axis=0)
        write(place / "7T" / f"{case}.nii.gz", np.where(shifted > 50, shifted, 0))
    assert pair(place) == 0
    labels = values(written(place)[0] / "labelsTr" / "s1.nii.gz")
    np.testing.assert_array_equal(labels, (head(0) > 50) & (np.roll(head(0), 1, axis=0) > 50))


def test_labels_are_numbered_without_gaps(place, caplog):
    for number, case in enumerate(CASES):
        labels = np.zeros(SHAPE, np.int16)
        if number:
            labels[2, 3, 4], labels[5, 6, 7] = 17, 1000 + number // 4
        write(place / "seg" / f"{case}.nii.gz", labels)
    assert pair(place, "--labels", place / "seg") == 0
    folder, content = written(place)
    assert content["labels"] == {"background": 0, "label_17": 1, "label_1000": 2, "label_1001": 3}
    labels = values(folder / "labelsTr" / "s5.nii.gz")
    assert (labels[2, 3, 4], labels[5, 6, 7], labels.sum()) == (1, 3, 4)
    assert "s1: no voxel has a label" in caplog.text


def test_headers_may_be_rounded_and_get_one_grid(place):
    write(place / "7T" / "s1.nii.gz", head(0), origin=(-12.0 + 0.05, 7.5, 30.0))
    assert pair(place) == 0
    folder = written(place)[0] / "imagesTr"
    origins = [sitk.ReadImage(str(folder / f"s1_000{c}.nii.gz")).GetOrigin() for c in range(2)]
    assert origins[0] == origins[1]


def test_what_looks_wrong_is_said_and_written(place, caplog):
    write(place / "7T" / "s2.nii.gz", np.full(SHAPE, 5.0, np.float32))
    write(place / "7T" / "s3.nii.gz", np.roll(head(2), 4, axis=2))
    assert pair(place) == 0
    assert f"{place / '7T' / 's2.nii.gz'}: all voxels have one value, nothing can be learnt from it" in caplog.text
    assert "s3: the edges of its two scans agree by -0.34, those of the other pairs by 1.00" in caplog.text
    for case in ("s1", "s4", "s5"):
        assert f"{case}: " not in caplog.text
    assert written(place)[1]["numTraining"] == 5


def masked(place, part, *, cut):
    """Five stripped scans in a folder; those of s2 and s4 show less where `cut`."""
    for number, case in enumerate(CASES):
        image = np.zeros(SHAPE, np.float32)
        image[1:9, 1:11, 2:12] = 50 + head(number)[1:9, 1:11, 2:12]
        if cut and case in ("s2", "s4"):
            image[:, :, 2 : 3 + number // 2] = 0
        write(place / part / f"{case}.nii.gz", image)


def test_what_better_scans_add_is_said_by_case(place, caplog):
    masked(place, "3T", cut=True)
    masked(place, "7T", cut=False)
    assert pair(place) == 0
    assert "s2 (11.1 %), s4 (25.0 %): the better scan adds this share of voxels to those of the usual" in caplog.text
    assert "set the better scan to 0 where the usual one is" in caplog.text
    assert "s1 (" not in caplog.text


def test_better_scans_that_show_less_are_no_doubt(place, caplog):
    masked(place, "3T", cut=False)
    masked(place, "7T", cut=True)
    assert pair(place) == 0
    assert "%" not in caplog.text


def test_few_cases(place, caplog):
    for case in CASES[3:]:
        for part in ("3T", "7T"):
            (place / part / f"{case}.nii.gz").unlink()
    assert pair(place) == 0
    assert "nnU-Net's five folds need 5 cases, got 3; write a splits_final.json by hand" in caplog.text


def test_cases_in_one_folder_only(place, capsys):
    for number in range(7):
        write(place / "3T" / f"t{number}.nii.gz", head(number))
    (place / "3T" / "s4.nii.gz").unlink()
    error = refused(place, capsys)
    assert f"s4 (not in {place / '3T'}), t0 (not in {place / '7T'})" in error
    assert "and 3 more" in error
    assert "--skip-unpaired" in error
    assert pair(place, "--skip-unpaired") == 0
    assert written(place)[1]["numTraining"] == 4
    assert "left out: s4, t0, t1, t2, t3 and 3 more" in capsys.readouterr().out


def test_grids_that_differ_are_all_named(place, capsys):
    write(place / "7T" / "s2.nii.gz", head(1), origin=(-12.0 + 0.2, 7.5, 30.0))
    write(place / "7T" / "s4.nii.gz", head(3, (10, 12, 15)))
    error = refused(place, capsys)
    assert "7T/s2.nii.gz must have the voxels of" in error
    assert "0.2 mm apart (0.09 mm is allowed); register it and resample it onto that grid first" in error
    assert error.endswith("(and of case s4)")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: write(p / "7T" / "s1.mha", head(0)), "7T must have files of one format, got .mha, .nii.gz; convert"),
        (lambda p: (p / "7T" / "s5.nii.gz").write_bytes(b"no image"), "s5.nii.gz must be a whole file that nnU-Net's"),
        (
            lambda p: nibabel.save(nibabel.Nifti1Image(np.eye(4), np.eye(4)), p / "7T" / "s5.nii.gz"),
            "must be a 3D imag",
        ),
        (lambda p: [f.unlink() for f in (p / "7T").iterdir()], "7T must hold images in one of nnU-Net's formats, got"),
        (lambda p: [f.rename(f.with_name(f"x{f.name}")) for f in (p / "7T").iterdir()], "same name in every folder"),
    ],
    ids=["two formats", "damaged", "2D", "empty", "other names"],
)
def test_unusable_files(place, capsys, spoil, message):
    spoil(place)
    assert message in refused(place, capsys)


def test_not_finite_values(place, capsys):
    for part, case in (("7T", "s1"), ("3T", "s3")):
        for name in CASES:
            sitk.WriteImage(sitk.ReadImage(str(place / part / f"{name}.nii.gz")), str(place / part / f"{name}.nrrd"))
            (place / part / f"{name}.nii.gz").unlink()
        write(place / part / f"{case}.nrrd", np.full(SHAPE, np.nan, np.float32))
    error = refused(place, capsys)
    assert "s1.nrrd must hold finite values, got NaN or infinite ones; set them to a number" in error
    assert error.endswith("(and of case s3)")


@pytest.mark.parametrize("part", ["3T", "7T"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_that_simpleitk_hides_is_refused_too(place, capsys, caplog, part, value):
    for case in ("s2", "s4"):
        image = head(0)
        image[3, 4, 5] = value
        write(place / part / f"{case}.nii.gz", image)
    error = refused(place, capsys)
    assert (
        f"{part}/s2.nii.gz must hold finite values, got NaN or infinite ones; set them to a number, e.g. to 0 with "
        "fslmaths IN -nan OUT (and of case s4)" in error
    )
    assert "read as 0" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "nowhere"], "folder nowhere does not exist"),
        (["--source", "=3T"], "a folder must be given as DIR, whose name is the channel's, or as NAME=DIR, got '=3T'"),
        (["--source", " =3T"], "NAME=DIR, got ' =3T'"),
        (["--source", "T1="], "NAME=DIR, got 'T1='"),
        (["--source", ""], "NAME=DIR, got ''"),
        (["--source", "/"], "NAME=DIR, got '/'"),
        (["--labels", ""], "NAME=DIR, got ''"),
        (["--name", "a/b"], "--name must be letters, digits, '_', '-' and '.', got 'a/b'"),
        (["-np", "0"], "-np must be at least 1, got 0"),
        (["-o", "1000"], "-o must be a number between 1 and 999, got 1000"),
    ],
)
def test_options(place, capsys, options, message):
    assert message in refused(place, capsys, *options)


def test_channels_of_one_name_are_refused(place, capsys):
    for case in CASES:
        write(place / "other" / "3T" / f"{case}.nii.gz", head(0))
    error = refused(place, capsys, privileged="other/3T")
    assert "channels must have different names, got 3T twice; name them: --source T1=DIR" in error
    assert pair(place, "--privileged", f"better={place / 'other' / '3T'}") == 0


def test_a_folder_with_several_channels_is_refused(place, capsys):
    for case in ("a", "b"):
        for channel in range(2):
            write(place / "many" / f"{case}_{channel:04d}.nii.gz", head(0))
    assert "many must hold one channel, got _0000, _0001; give each channel a folder" in refused(
        place, capsys, source="many"
    )


@pytest.mark.parametrize("others", [["a"], ["b"], ["b_0000"], ["b_0001"]], ids=str)
def test_two_channels_of_a_case_are_refused_whatever_is_beside_them(place, capsys, others):
    for name in ("a_0000", "a_0001", *others):
        for part in ("3T", "7T"):
            write(place / "all" / part / f"{name}.nii.gz", head(0))
    error = refused(place, capsys, "--skip-unpaired", source="all/3T", privileged="all/7T")
    assert (
        "3T must hold one channel, got _0000, _0001; give each channel a folder of its own, or add _0000 to all"
        in error
    )


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("sub_{}_0000", "sub_{}"),  # nnU-Net's names
        ("sub_{}", "sub_{}"),
        ("sub_{}", "sub_{}_0000"),
        ("sub_{}_0000", "sub_{}_0000"),
        ("sub_{}_T1", "sub_{}_T1_0000"),
        ("{}", "{}"),
    ],
)
def test_cases_may_be_numbered_from_0000(place, images, labels):
    for number in range(3):
        for part in ("a", "b"):
            write(place / part / f"{images.format(f'{number:04d}')}.nii.gz", head(number))
        write(place / "seg" / f"{labels.format(f'{number:04d}')}.nii.gz", (head(number) > 50).astype(np.uint8))
    assert pair(place, "--labels", place / "seg", source="a", privileged="b") == 0
    folder, content = written(place)
    assert content["numTraining"] == 3
    case = images.removesuffix("_0000").format("0002")
    assert (folder / "imagesTr" / f"{case}_0001.nii.gz").is_file()
    np.testing.assert_array_equal(values(folder / "labelsTr" / f"{case}.nii.gz"), head(2) > 50)


def test_a_single_pair_in_nnunets_names(place):
    for part in ("a", "b"):
        write(place / part / "sub_0000_0000.nii.gz", head(0))
    write(place / "seg" / "sub_0000.nii.gz", (head(0) > 50).astype(np.uint8))
    assert pair(place, "--labels", place / "seg", source="a", privileged="b") == 0
    assert (written(place)[0] / "labelsTr" / "sub_0000.nii.gz").is_file()


def test_added_to_names_of_cases_the_first_channels_number_mends_them(place, capsys):
    """What the refusal advises."""
    names = [f"{site}_{number:04d}" for site in "ab" for number in range(2)]
    for name in names:
        for part in ("usual", "better"):
            write(place / part / f"{name}.nii.gz", head(0))
    assert "or add _0000 to all names, if these are cases" in refused(place, capsys, source="usual")
    for part in ("usual", "better"):
        for name in names:
            (place / part / f"{name}.nii.gz").rename(place / part / f"{name}_0000.nii.gz")
    assert pair(place, source="usual", privileged="better") == 0
    assert written(place)[1]["numTraining"] == 4


@pytest.mark.parametrize("second", ["s1_0000.nii.gz", "s1.NII.GZ"])
def test_two_label_maps_of_a_case_are_refused(place, capsys, second):
    for name in [*(f"{case}.nii.gz" for case in CASES), second]:
        write(place / "seg" / "label.nii.gz", np.ones(SHAPE, np.uint8)).rename(place / "seg" / name)
    error = refused(place, capsys, "--skip-unpaired", "--labels", place / "seg")
    assert f"{place / 'seg'} must hold one file for each case, got " in error
    assert second in error


@pytest.mark.parametrize("second", ["s1_0000.nii.gz", "s1.NII.GZ"])
def test_two_files_of_a_case_are_refused(place, capsys, second):
    (place / "7T" / second).write_bytes((place / "7T" / "s1.nii.gz").read_bytes())
    error = refused(place, capsys, "--skip-unpaired")
    assert f"{place / '7T'} must hold one file for each case, got " in error
    assert second in error
    assert error.endswith("; leave one in the folder")


def test_the_first_channels_number_is_no_part_of_a_case(place, capsys):
    for case in CASES[:3]:
        (place / "7T" / f"{case}.nii.gz").rename(place / "7T" / f"{case}_0000.nii.gz")
    assert pair(place) == 0
    assert written(place)[1]["numTraining"] == 5
    assert "left out" not in capsys.readouterr().out


def test_a_folder_given_twice_is_refused(place, capsys):
    (place / "link").symlink_to(place / "3T")
    for privileged in ("3T", "link"):
        error = refused(place, capsys, privileged=privileged)
        assert f"channels and labels must have a folder each, got {place / '3T'} twice; give each its own" in error
    assert "7T twice" in refused(place, capsys, "--labels", place / "7T")
    assert "3T twice" in refused(place, capsys, "--source", f"other={place / '3T'}")


def test_formats_without_spacing_are_refused(place, capsys):
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    (place / "flat").mkdir()
    NaturalImage2DIO().write_seg(np.zeros((1, 8, 8), np.uint8), str(place / "flat" / "s1.png"), {})
    assert "flat must have files that keep their spacing, got .png" in refused(place, capsys, source="flat")


def test_labels_of_background_alone_are_refused(place, capsys):
    for case in CASES:
        write(place / "seg" / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert "seg must have labels, got background alone; leave --labels out" in refused(
        place, capsys, "--labels", place / "seg"
    )


def test_a_taken_number(place, capsys):
    (place / "nnUNet_preprocessed" / "Dataset610_Other").mkdir()
    assert "-o must be a free number, but nnUNet_preprocessed already has Dataset610_Other" in refused(place, capsys)


def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(place, monkeypatch, capsys):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pair_dataset, "write_pair", stop)
    assert pair(place) == 130
    assert list((place / "nnUNet_raw").iterdir()) == []
    monkeypatch.undo()
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(place / name))
    assert pair(place) == 0


def test_a_full_disk_is_named(place, monkeypatch, capsys):
    def full(self, seg, file, properties):
        raise UnwrittenFileError(f"{file} could not be written: no space")

    monkeypatch.setattr(WholeFiles, "write_seg", full)
    assert "if the disk is full, free space there and run the command again" in refused(place, capsys)


def test_oblique_nifti_files_that_nibabel_alone_reads(place):
    """A sheared header, which SimpleITK refuses."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 1] = 0.2
    for number, case in enumerate(CASES):
        for part in ("3T", "7T"):
            nibabel.save(nibabel.Nifti1Image(head(number).T, affine), place / part / f"{case}.nii.gz")
    assert pair(place) == 0
    stored = nibabel.load(written(place)[0] / "imagesTr" / "s1_0001.nii.gz")
    np.testing.assert_allclose(stored.affine, affine, atol=1e-6)

from pathlib import Path

import pytest

from rehrseg_nnunet.evaluation.pairing import common_folder, expand_folders, pair_files, short_names


def make(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def pair(reference, *folders, **options):
    folds = {str(index): folder for index, folder in enumerate(folders)}
    return pair_files(reference, folds, file_ending=".nii.gz", **options)


def test_segmentations_pair_by_name(tmp_path):
    reference = make(tmp_path / "ref", "b.nii.gz", "a.nii.gz", "dataset.json")
    folder = make(tmp_path / "pred", "a.nii.gz", "b.nii.gz", "a.npz", "summary.json")
    pairs = pair(reference, folder)["0"]
    assert [(p.case, p.channel, p.reference.name, p.prediction) for p in pairs] == [
        ("a", 0, "a.nii.gz", folder / "a.nii.gz"),
        ("b", 0, "b.nii.gz", folder / "b.nii.gz"),
    ]


def test_missing_predictions_are_named_unless_chill(tmp_path, caplog):
    reference = make(tmp_path / "ref", *(f"{name}.nii.gz" for name in "abcdefgh"))
    folder = make(tmp_path / "pred", "a.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"b\.nii\.gz, .*f\.nii\.gz and 2 more .* must be in .*pred.*--chill"):
        pair(reference, folder)
    assert [p.case for p in pair(reference, folder, chill=True)["0"]] == ["a"]
    assert "7 of 8 reference files" in caplog.text


def test_folds_together_cover_the_reference(tmp_path):
    reference = make(tmp_path / "ref", "a.nii.gz", "b.nii.gz", "c.nii.gz")
    first, second = make(tmp_path / "0", "a.nii.gz", "c.nii.gz"), make(tmp_path / "1", "b.nii.gz")
    assert {fold: [p.case for p in pairs] for fold, pairs in pair(reference, first, second).items()} == {
        "0": ["a", "c"],
        "1": ["b"],
    }


def test_predictions_without_reference(tmp_path, caplog):
    reference = make(tmp_path / "ref", "a.nii.gz")
    folder = make(tmp_path / "pred", "a.nii.gz", "x.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"x\.nii\.gz .* must have a reference"):
        pair(reference, folder)
    assert [p.case for p in pair(reference, folder, chill=True)["0"]] == ["a"]
    assert "1 files of" in caplog.text


def test_nothing_in_common_is_an_error_even_with_chill(tmp_path):
    reference = make(tmp_path / "ref", "a.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"no file in .* has the name"):
        pair(reference, make(tmp_path / "pred", "x.nii.gz"), chill=True)
    with pytest.raises(FileNotFoundError, match=r"must hold files that end in \.nii\.gz, got none"):
        pair(make(tmp_path / "empty"), reference)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        pair(reference, tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a_0000.nii.gz", "a.nii.gz"])
@pytest.mark.parametrize("reference_name", ["a_0000.nii.gz", "a.nii.gz"])
def test_images_pair_with_and_without_channel_suffix(tmp_path, name, reference_name):
    reference, folder = make(tmp_path / "ref", reference_name), make(tmp_path / "pred", name)
    (only,) = pair(reference, folder, num_channels=1)["0"]
    assert (only.case, only.channel) == ("a", 0)
    assert (only.reference.name, only.prediction.name) == (reference_name, name)


def test_channels_of_one_case(tmp_path):
    names = ["a_0000.nii.gz", "a_0001.nii.gz"]
    pairs = pair(make(tmp_path / "ref", *names), make(tmp_path / "pred", *names), num_channels=2)["0"]
    assert [(p.case, p.channel) for p in pairs] == [("a", 0), ("a", 1)]


def test_case_numbers_are_no_channels(tmp_path):
    reference = make(tmp_path / "ref", "liver_0001_0000.nii.gz", "liver_0002_0000.nii.gz")
    folder = make(tmp_path / "pred", "liver_0001.nii.gz", "liver_0002.nii.gz")
    assert [p.case for p in pair(reference, folder, num_channels=1)["0"]] == ["liver_0001", "liver_0002"]
    assert [p.case for p in pair(folder, folder, num_channels=1)["0"]] == ["liver_0001", "liver_0002"]


def test_two_files_for_one_reference(tmp_path):
    reference = make(tmp_path / "ref", "a_0000.nii.gz")
    folder = make(tmp_path / "pred", "a.nii.gz", "a_0000.nii.gz")
    with pytest.raises(ValueError, match=r"must have one file for a_0000\.nii\.gz"):
        pair(reference, folder, num_channels=1)


def test_folds_from_commas_and_patterns(tmp_path):
    folders = [make(tmp_path / f"fold_{fold}" / "validation") for fold in range(3)]
    assert expand_folders(str(tmp_path / "fold_*" / "validation")) == folders
    assert expand_folders(f"{folders[2]},{folders[0]}") == [folders[2], folders[0]]
    with_comma = make(tmp_path / "a,b")
    assert expand_folders(str(with_comma)) == [with_comma]
    with pytest.raises(FileNotFoundError, match="no folder is called"):
        expand_folders(f"{folders[0]},{tmp_path / 'nowhere*'}")
    with pytest.raises(ValueError, match="must be different folders"):
        expand_folders(f"{folders[0]},{tmp_path}/fold_1/../fold_0/validation")


def test_the_folder_of_all_folds():
    folds = [Path(f"r/A/fold_{fold}/validation") for fold in range(2)]
    assert common_folder(folds) == Path("r/A")
    assert common_folder(folds[:1]) == folds[0]
    assert common_folder([Path("a/x"), Path("b/x")]) == Path("a/x")
    assert common_folder([Path("/a/x"), Path("/b/x")]) == Path("/a/x")


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["r/A/fold_0/validation", "r/B/fold_0/validation"], ["A", "B"]),
        (["r/A/fold_0/validation", "r/A/fold_1/validation"], ["fold_0", "fold_1"]),
        (["r/A/fold_0/validation", "r/B/fold_1/validation"], ["A/fold_0", "B/fold_1"]),
        (["r/A/fold_0/validation", "out"], ["r/A/fold_0/validation", "out"]),
        (["r/A", "r/A/hr"], ["r/A", "hr"]),
        (["r/A"], ["A"]),
        (["r/A/validation", "B/validation"], ["r/A", "B"]),
    ],
)
def test_short_names(paths, names):
    assert short_names([Path(path) for path in paths]) == names

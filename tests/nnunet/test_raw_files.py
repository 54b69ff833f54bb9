"""Files of a folder: nothing is left out without a word, nothing else is taken for a case."""

from pathlib import Path

import pytest

from rehrseg_nnunet.nnunet.raw_files import image_files, list_cases, listed, other_images, say_left_out


@pytest.fixture
def make(tmp_path):
    def touch(*names):
        for name in names:
            (tmp_path / name).touch()
        return tmp_path

    return touch


def test_cases_and_their_channels(make):
    expected = {case: [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"] for case in ("a", "a_0001", "b")}
    folder = make(*(name for names in reversed(expected.values()) for name in reversed(names)))
    cases = list_cases(folder, ".nii.gz", channels=2)
    assert {case: [Path(file).name for file in files] for case, files in cases.items()} == expected


@pytest.mark.parametrize(
    "names", [["a_0000.nrrd"], ["a_0001.nrrd"], ["a_0000.nrrd", "a_0002.nrrd"], [f"a_000{i}.nrrd" for i in range(3)]]
)
def test_channels_are_exactly_those_of_the_dataset(make, names):
    folder = make("b_0000.nrrd", "b_0001.nrrd", *names)
    message = (
        rf"one file for each of the 2 channels of a case, a_0000\.nrrd, a_0001\.nrrd, got {', '.join(names)}; a 4D"
    )
    with pytest.raises(ValueError, match=message):
        list_cases(folder, ".nrrd", channels=2)


def test_several_wrong_cases_are_one_line(make):
    with pytest.raises(ValueError, match=r"got a_0001\.nrrd \(and 1 more cases\); a 4D"):
        list_cases(make("a_0001.nrrd", "b_0001.nrrd", "c_0000.nrrd"), ".nrrd", channels=1)


def test_what_macos_leaves_is_no_image(make, caplog):
    folder = make("._a_0000.nrrd", "a_0000.nrrd", ".DS_Store")
    assert [file.name for file in image_files(folder, ".nrrd")] == ["a_0000.nrrd"]
    say_left_out(folder, ".nrrd")
    assert caplog.messages == [f"{folder}: ._a_0000.nrrd of macOS are no images and are passed over"]


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".tif"])
def test_only_images_are_named_as_left_out(make, caplog, ending):
    endings = (".nii", ".nii.gz", ".mha", ".tif", ".json", ".npz", ".pkl", ".txt", ".csv")
    folder = make(*(f"a{e}" for e in endings))
    expected = sorted(f"a{e}" for e in (".nii", ".nii.gz", ".mha", ".tif") if e != ending)
    assert other_images(folder, ending) == expected
    say_left_out(folder, ending)
    assert caplog.messages == [f"{folder}: {', '.join(expected)} are left out, files must end in {ending}"]


def test_endings_in_capitals_are_other_endings(make):
    assert other_images(make("a.NII.GZ", "b.nii.gz"), ".nii.gz") == ["a.NII.GZ"]


def test_long_lists_are_cut():
    assert listed(list("abc")) == "a, b, c"
    assert listed(list("abcdefg")) == "a, b, c, d, e and 2 more"

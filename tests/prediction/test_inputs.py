import re
from pathlib import Path

import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from rehrseg_nnunet.prediction.inputs import (
    Case,
    Images,
    case_name,
    check_not_overwritten,
    check_sources,
    endings_of,
    read_cases,
)

ONE = Images(1, ".nii.gz", (".nii.gz", ".nii", ".nrrd"))
TWO = Images(2, ".nii.gz", (".nii.gz", ".nii", ".nrrd"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(cases):
    return {case.name: [file.name for file in case.files] for case in cases}


@pytest.mark.parametrize(
    ("file", "name"),
    [("a.nii.gz", "a"), ("a_0000.nii.gz", "a"), ("knee 3.NRRD", "knee 3"), ("a.b_2024.nii", "a.b_2024")],
)
def test_a_case_is_called_like_its_file(file, name):
    assert case_name(Path("/x") / file) == name


def test_files_of_one_case_are_its_channels_in_their_order(folder):
    cases, failures = read_cases([folder / "t2.nii.gz", folder / "t1.nrrd"], TWO)
    assert names(cases) == {"t2": ["t2.nii.gz", "t1.nrrd"]}
    assert failures == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.nii.gz"], "-i must name one file for each of the model's 2 channels, in their order, got .*a.nii.gz"),
        (["a.nii.gz", "b.nii.gz", "c.nii.gz"], "each of the model's 2 channels"),
        (["a.nii.gz", "b.png"], r"b\.png must end in one of \.nii\.gz \.nii \.nrrd, which the model reads; convert it"),
    ],
)
def test_refuses_other_channels_and_endings(folder, files, message):
    with pytest.raises(ValueError, match=message):
        read_cases([folder / file for file in files], TWO)


def test_a_folder_with_nnunets_names(folder):
    touch(folder, "b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "note.txt")
    assert names(read_cases([folder], TWO)[0]) == {
        "a": ["a_0000.nii.gz", "a_0001.nii.gz"],
        "b": ["b_0000.nii.gz", "b_0001.nii.gz"],
    }


def test_a_folder_with_any_names_for_one_channel(folder):
    touch(folder, "b.nii.gz", "knee left.nii.gz", "._b.nii.gz")
    assert names(read_cases([folder], ONE)[0]) == {"b": ["b.nii.gz"], "knee left": ["knee left.nii.gz"]}


@pytest.mark.parametrize(
    "files", [["knee_2023", "knee_2024"], ["anna", "bert_0001"], ["s_0001", "s_0002", "s_0003"], ["knee_2023"]]
)
def test_years_and_numbers_of_subjects_are_no_channels(folder, files):
    touch(folder, *(f"{file}.nii.gz" for file in files))
    cases, failures = read_cases([folder], ONE, keep_going=True)
    assert (names(cases), failures) == ({file: [f"{file}.nii.gz"] for file in files}, [])


def test_scans_of_another_channel_alone_are_not_taken_for_the_first(folder):
    for files in (["a_0001"], ["a_0001", "b_0001"], ["a_0001", "a_0002", "b_0001", "b_0002"]):
        touch(folder, *(f"{file}.nii.gz" for file in files))
        with pytest.raises(
            ValueError, match=r"one file for each of the 1 channels of a case, a_0000\.nii\.gz, got a_0001"
        ):
            read_cases([folder], ONE)


@pytest.mark.parametrize(("images", "files"), [(TWO, ["a.nii.gz"]), (ONE, ["a_0000.nii.gz", "b.nii.gz"])])
def test_any_names_only_where_they_are_clear(folder, images, files):
    touch(folder, *files)
    with pytest.raises(ValueError, match=r"must hold images named CASE_0000\.nii\.gz"):
        read_cases([folder], images)


def test_a_missing_channel_costs_the_case_or_the_run(folder):
    touch(folder, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c.nii.gz")
    with pytest.raises(ValueError, match=r"must hold images named"):
        read_cases([folder], TWO)
    cases, failures = read_cases([folder], TWO, keep_going=True)
    assert names(cases) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}
    reasons = {failure.name: failure.reason for failure in failures}
    assert set(reasons) == {"b", "c.nii.gz"}
    assert "one file for each of the 2 channels of a case" in reasons["b"]


def write(folder, text, encoding="utf-8"):
    file = folder / "cases.csv"
    file.write_bytes(text.encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_has_paths_relative_to_itself(folder, encoding):
    touch(folder, "scans/1.nii.gz", "scans/2.nrrd", "3.nii.gz", "4.nii.gz")
    text = 'case,file0,file1\n"Zoë, left",scans/1.nii.gz,scans/2.nrrd\n\nb, 3.nii.gz ,4.nii.gz\n'
    cases, failures = read_cases([write(folder, text, encoding)], TWO)
    assert names(cases) == {"Zoë, left": ["1.nii.gz", "2.nrrd"], "b": ["3.nii.gz", "4.nii.gz"]}
    assert all(file.is_file() for case in cases for file in case.files)
    assert failures == []


def test_absolute_paths_and_other_orders_of_columns(folder):
    touch(folder, "1.nii.gz", "2.nii.gz")
    cases, _ = read_cases([write(folder, f"file1,case,file0\n2.nii.gz,a,{folder / '1.nii.gz'}\n")], TWO)
    assert names(cases) == {"a": ["1.nii.gz", "2.nii.gz"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns case,file0 in its first line, separated by commas, got nothing"),
        ("case,file\na,1.nii.gz\n", r"must have the columns case,file0 .* got case,file$"),
        ("case;file0\na;1.nii.gz\n", r"separated by commas, got case;file0"),
        ("case,file0\n", r"must name at least one case"),
        ("case,file0\na,1.nii.gz,2.nii.gz\n", r"line 2 of .*cases\.csv must have 2 cells, got 3"),
        ("case,file0\na,1.nii.gz\nb,2.nii.gz\na,2.nii.gz\n", r"line 4: case a once more, as in line 2"),
        ("case,file0\na,none.nii.gz\n", r"line 2: .*none\.nii\.gz does not exist; paths are relative to the csv file"),
        ("case,file0\na,none.nii.gz\nb,nor.nii.gz\n", r"none\.nii\.gz does not exist.* \(and 1 more lines\)"),
        ("case,file0\n,1.nii.gz\n", r"line 2: an empty cell"),
        ("case,file0\na,\n", r"line 2: an empty cell"),
        ("case,file0\n../a,1.nii.gz\n", r"line 2: case \.\./a, which is no file name"),
        (f"case,file0\n{'a' * 181},1.nii.gz\n", r"line 2: case a+, which is no file name"),
        ("case,file0\na.nii.gz,1.nii.gz\n", r"line 2: case a\.nii\.gz, which ends like a file; leave the ending out"),
        ("case,file0\na,1.png\n", r"line 2: .*1\.png must end in one of"),
        ('case,file0\n"a,1.nii.gz\n', r"must be a csv file in UTF-8, got unexpected end of data"),
    ],
)
def test_a_csv_file_is_checked_wholly_before_anything_runs(folder, text, message):
    touch(folder, "1.nii.gz", "2.nii.gz")
    with pytest.raises(ValueError, match=message):
        read_cases([write(folder, text)], ONE)


def test_a_csv_file_in_another_encoding(folder):
    with pytest.raises(ValueError, match="must be a csv file in UTF-8"):
        read_cases([write(folder, "case,file0\nZoë,1.nii.gz\n", "latin-1")], ONE)


def test_a_missing_file_of_a_csv_file_costs_its_case_when_going_on(folder):
    touch(folder, "1.nii.gz")
    file = write(folder, "case,file0\na,1.nii.gz\nb,none.nii.gz\n")
    cases, failures = read_cases([file], ONE, keep_going=True)
    assert names(cases) == {"a": ["1.nii.gz"]}
    assert [(failure.name, failure.files[0].name) for failure in failures] == [("b", "none.nii.gz")]
    assert failures[0].reason.endswith("none.nii.gz does not exist")
    with pytest.raises(ValueError, match="once more"):  # a mistake in the list, not a bad scan
        read_cases([write(folder, "case,file0\na,1.nii.gz\na,1.nii.gz\n")], ONE, keep_going=True)


def test_sources_exist_and_are_one_kind(folder):
    touch(folder, "a.nii.gz", "cases.csv")
    check_sources([folder / "a.nii.gz", folder / "a.nii.gz"])
    with pytest.raises(FileNotFoundError, match=r"-i must be an existing file or folder, got .*none"):
        check_sources([folder / "a.nii.gz", folder / "none"])
    for other in (folder, folder / "cases.csv"):
        with pytest.raises(ValueError, match=f"or one folder or csv file, got {re.escape(str(other))} among several"):
            check_sources([folder / "a.nii.gz", other])


def test_results_do_not_replace_inputs(folder):
    touch(folder, "a.nii.gz")
    (folder.parent / "link").symlink_to(folder)
    cases = [Case("a", (folder / "a.nii.gz",))]
    check_not_overwritten(cases, lambda case: folder / f"{case.name}_seg.nii.gz")
    with pytest.raises(ValueError, match="which is an input; choose another name or folder"):
        check_not_overwritten(cases, lambda case: folder.parent / "link" / f"{case.name}.nii.gz")


def test_endings_that_a_reader_can_read_and_write():
    assert {".nii", ".nii.gz", ".mha", ".nrrd"} <= set(endings_of(SimpleITKIO))
    assert endings_of(NibabelIOWithReorient) == (".nii.gz", ".nii")
    assert endings_of(Tiff3DIO) == (".tif", ".tiff")

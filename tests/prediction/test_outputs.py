from pathlib import Path

import pytest

from rehrseg_nnunet.prediction.inputs import Case, Images
from rehrseg_nnunet.prediction.outputs import Output, check_output, choose_output

IMAGES = Images(1, ".nii.gz", (".nii.gz", ".nii", ".nrrd"))


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("in", "out"):
        Path(folder).mkdir()
    Path("cases.csv").touch()


def chosen(output, *sources):
    sources = [Path(source) for source in sources]
    check_output(output, sources)
    return choose_output(output, sources, [Case("scan", tuple(sources))], IMAGES)


@pytest.mark.parametrize(
    ("output", "source", "file", "ending"),
    [
        ("seg.nii.gz", "scan.nii.gz", "seg.nii.gz", ".nii.gz"),
        ("new/seg.nii", "scan.nii.gz", "new/seg.nii", ".nii"),
        ("seg.nrrd", "scan.nii.gz", "seg.nrrd", ".nrrd"),
        ("Seg.NII.GZ", "scan.nii.gz", "Seg.nii.gz", ".nii.gz"),
        ("out", "scan.nrrd", "out/scan.nrrd", ".nrrd"),
        ("new/", "scan.nii.gz", "new/scan.nii.gz", ".nii.gz"),
    ],
)
def test_one_scan_gives_one_file(places, output, source, file, ending):
    assert chosen(output, source) == Output(Path(file).parent, Path(file), ending)


def test_several_channels_give_one_file(places):
    assert chosen("seg.nii.gz", "t1.nii.gz", "t2.nii.gz").file == Path("seg.nii.gz")


@pytest.mark.parametrize("source", ["in", "cases.csv"])
def test_many_cases_give_a_folder_and_the_models_ending(places, source):
    assert chosen("results", source) == Output(Path("results"), None, ".nii.gz")
    assert chosen("out", source).folder == Path("out")


@pytest.mark.parametrize(
    ("output", "sources", "message"),
    [
        ("seg.txt", ["scan.nii.gz"], r"-o must end like an image, such as seg\.txt\.nii\.gz, or be an existing folder"),
        ("seg", ["scan.nii.gz"], r"-o must end like an image, such as seg\.nii\.gz, or be"),
        (
            "seg.png",
            ["scan.nii.gz"],
            r"-o must end in one of \.nii\.gz \.nii \.nrrd, which the model writes, got",
        ),
        ("out", ["t1.nii.gz", "t2.nii.gz"], r"for the case whose channels -i names, such as out.seg\.nii\.gz, got"),
        ("seg.nii.gz", ["in"], r"-o must be a folder for the cases of in, got the file seg\.nii\.gz"),
        ("cases.csv", ["in"], r"-o must be a folder for the cases of in, got the file cases\.csv"),
        ("scan.nii.gz", ["scan.nii.gz"], r"-o must not lead to scan\.nii\.gz, which is an input"),
        ("scan.NII.GZ", ["scan.nii.gz"], r"-o must not lead to scan\.nii\.gz, which is an input"),
        (".", ["./scan.nii.gz"], r"-o must not lead to scan\.nii\.gz, which is an input"),
    ],
)
def test_refuses(places, output, sources, message):
    with pytest.raises(ValueError, match=message):
        chosen(output, *sources)

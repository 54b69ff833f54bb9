"""Low-field twins as datasets: pairs and labelled sets that share no subject but share each subject's noise."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.cli.main import main
from rehrseg_nnunet.guided.foreground import foreground
from rehrseg_nnunet.guided.low_field import LowField, case_generator, low_field_twin
from rehrseg_nnunet.guided.paired_channels import PairedChannels

SHAPE = (10, 12, 14)
SPACING = (1.3, 1.1, 0.9)  # of the file; (0.9, 1.1, 1.3) of the array
SOURCE = "Dataset004_Tiny"
OPTIONS = ("--resolution", "2", "--snr", "12", "--contrast", "0.7")


def write(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-12.0, 7.5, 30.0))
    sitk.WriteImage(image, str(file))


def values(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def scan(number):
    """A crop of two tissues in blocks of 5 voxels."""
    blocks = np.random.default_rng(number).random((2, 3, 3)) < 0.5
    tissue = np.kron(blocks, np.ones((5, 5, 5)))[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return np.where(tissue, 60, 100).astype(np.int16)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_raw" / SOURCE
    for number in range(6):
        write(folder / "imagesTr" / f"case{number}_0000.nrrd", scan(number))
        write(folder / "labelsTr" / f"case{number}.nrrd", (scan(number) > 80).astype(np.uint8))
    describe(folder)
    return tmp_path / "nnUNet_raw"


def describe(folder, **changes):
    content = {
        "name": SOURCE,
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "bright": 1},
        "numTraining": 6,
        "file_ending": ".nrrd",
        "licence": "mine",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps(content))


def simulate(number, *options):
    return main(["simulate-field", "-d", "4", "-o", str(number), "-np", "2", *OPTIONS, *map(str, options)])


def content_of(folder):
    return json.loads((folder / "dataset.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_pairs_of_all_cases(raw, capsys):
    assert simulate(604, "--seed", 3) == 0
    folder = raw / "Dataset604_Tiny_pairs"
    content = content_of(folder)
    assert content["channel_names"] == {"0": "MRI", "1": "MRI_better"}
    assert PairedChannels.of_dataset(content) == PairedChannels((0,), (1,))
    assert (content["numTraining"], content["licence"], content["name"]) == (6, "mine", "Dataset604_Tiny_pairs")
    assert content["labels"] == {"background": 0, "bright": 1}
    for number in range(6):
        image = scan(number)
        twin = low_field_twin(
            image,
            SPACING[::-1],
            LowField(2.0, 12.0, 0.7),
            head=foreground(image[None].astype(float)),
            random=case_generator(3, f"case{number}"),
        )
        np.testing.assert_allclose(values(folder / "imagesTr" / f"case{number}_0000.nrrd"), twin, rtol=1e-5)
        np.testing.assert_array_equal(values(folder / "imagesTr" / f"case{number}_0001.nrrd"), image)
        np.testing.assert_array_equal(values(folder / "labelsTr" / f"case{number}.nrrd"), image > 80)
    spacings = {sitk.ReadImage(str(file)).GetSpacing() for file in (folder / "imagesTr").iterdir()}
    assert len(spacings) == 1
    assert names(raw) == [SOURCE, folder.name]
    report = json.loads((folder / "low_field.json").read_text())
    assert report["settings"] == {
        "resolution_mm": 2, "snr": 12, "contrast": 0.7, "gamma": 1, "bias": 0.2, "seed": 3
    }  # fmt: skip
    assert report["cases"].keys() == {f"case{number}" for number in range(6)}
    assert report["mean"]["psnr"] == pytest.approx(np.mean([row["psnr"] for row in report["cases"].values()]))
    out = capsys.readouterr().out
    assert f"PSNR {report['mean']['psnr']:.1f} dB, SSIM {report['mean']['ssim']:.3f}\n" in out
    assert "next: nnUNetv2_plan_and_preprocess -d 604" in out


def test_labelled_twins_of_other_subjects_with_a_test_set(raw):
    """The datasets of a comparison: poor and good scans of the same subjects, none of whom is in the pairs."""
    assert simulate(604, "--cases", "0:2") == 0
    assert simulate(605, "--cases", "2:4", "--test-cases", "4:", "--channels", "source") == 0
    assert simulate(606, "--cases", "2:4", "--test-cases", "4:", "--channels", "privileged") == 0
    assert simulate(607, "--cases", ":") == 0
    pairs, poor, good, everything = sorted(path for path in raw.iterdir() if path.name != SOURCE)
    assert [path.name for path in (poor, good)] == ["Dataset605_Tiny_lowfield", "Dataset606_Tiny_better"]
    assert names(pairs / "labelsTr") == ["case0.nrrd", "case1.nrrd"]
    for folder, channel in ((poor, "MRI"), (good, "MRI_better")):
        content = content_of(folder)
        assert content["channel_names"] == {"0": channel}
        assert "rehrseg_privileged_channels" not in content
        assert content["numTraining"] == 2
        assert names(folder / "imagesTr") == ["case2_0000.nrrd", "case3_0000.nrrd"]
        assert names(folder / "labelsTr") == ["case2.nrrd", "case3.nrrd"]
        assert names(folder / "imagesTs") == ["case4_0000.nrrd", "case5_0000.nrrd"]
        assert names(folder / "labelsTs") == ["case4.nrrd", "case5.nrrd"]
    for part, case in (("Tr", "case3"), ("Ts", "case5")):
        name = f"{case}_0000.nrrd"
        np.testing.assert_array_equal(values(good / f"images{part}" / name), values(raw / SOURCE / "imagesTr" / name))
        np.testing.assert_array_equal(
            values(poor / f"images{part}" / name), values(everything / "imagesTr" / name)
        )  # one noise a case


def test_several_channels(raw):
    folder = raw / SOURCE
    for number in range(6):
        write(folder / "imagesTr" / f"case{number}_0001.nrrd", (200 - scan(number)).astype(np.float32))
    describe(folder, channel_names={"0": "T1", "1": "T2"})
    assert simulate(604, "--cases", ":1", "--snr", 100, "--bias", 0) == 0
    target = raw / "Dataset604_Tiny_pairs"
    content = content_of(target)
    assert content["channel_names"] == {"0": "T1", "1": "T2", "2": "T1_better", "3": "T2_better"}
    assert content["rehrseg_privileged_channels"] == ["2", "3"]
    np.testing.assert_array_equal(values(target / "imagesTr" / "case0_0003.nrrd"), 200 - scan(0))
    twins = [values(target / "imagesTr" / f"case0_000{c}.nrrd").ravel() for c in range(2)]
    assert np.corrcoef(twins)[0, 1] < -0.8  # contrasts as in the scans


def test_skull_stripped_scans_have_skull_stripped_twins(raw):
    folder = raw / SOURCE
    image = scan(0)
    image[:4] = 0
    write(folder / "imagesTr" / "case0_0000.nrrd", image)
    assert simulate(604, "--cases", "0:1") == 0
    twin = values(raw / "Dataset604_Tiny_pairs" / "imagesTr" / "case0_0000.nrrd")
    assert (twin[:4] == 0).all()
    assert (twin[4:] > 0).all()


def report_of(folder):
    return json.loads((folder / "low_field.json").read_text(), parse_constant=pytest.fail)


def test_a_constant_scan_is_named_and_no_mean_counts_it(raw, capsys, caplog):
    write(raw / SOURCE / "imagesTr" / "case1_0000.nrrd", np.full(SHAPE, 70, np.int16))
    assert simulate(604, "--cases", ":3") == 0
    report = report_of(raw / "Dataset604_Tiny_pairs")
    assert report["cases"]["case1"] == {"psnr": None, "ssim": None, "nmse": None}
    defined = [report["cases"][case]["psnr"] for case in ("case0", "case2")]
    assert report["mean"]["psnr"] == pytest.approx(np.mean(defined))
    assert f"PSNR {np.mean(defined):.1f} dB" in capsys.readouterr().out
    assert "case1: scores of the twin are not defined, as for a scan with one value everywhere" in caplog.text
    assert "case0" not in caplog.text


def test_constant_scans_alone_have_no_means(raw, capsys):
    write(raw / SOURCE / "imagesTr" / "case1_0000.nrrd", np.full(SHAPE, 70, np.int16))
    assert simulate(604, "--cases", "1:2") == 0
    assert report_of(raw / "Dataset604_Tiny_pairs")["mean"] == {"psnr": None, "ssim": None, "nmse": None}
    out = capsys.readouterr().out
    assert "low-field twins, voxels of 2 mm, SNR 12, contrast 0.7\n" in out
    assert "nan" not in out


@pytest.mark.parametrize(("resolution", "said"), [(0.9, True), (1.0, False)])
def test_a_resolution_that_blurs_nothing_is_said(raw, caplog, resolution, said):
    assert simulate(604, "--cases", ":2", "--resolution", resolution) == 0
    message = (
        "case0, case1: no voxel edge of the scan is shorter than --resolution 0.9 mm, so that the twin is as sharp"
    )
    assert (message in caplog.text) == said
    assert ("as sharp" in caplog.text) == said


def test_pairs_are_no_source(raw, capsys):
    assert simulate(604, "--cases", ":2") == 0
    assert main(["simulate-field", "-d", "604", "-o", "605", *OPTIONS, "--channels", "source"]) == 1
    assert (
        "error: -d must be a dataset of scans, but dataset.json of Dataset604_Tiny_pairs has "
        "rehrseg_privileged_channels: it has pairs already; give the dataset of their better scans"
    ) in capsys.readouterr().err
    assert names(raw) == [SOURCE, "Dataset604_Tiny_pairs"]


@pytest.mark.parametrize("ending", [".nrrd", ".nii.gz"])
def test_not_finite_values_are_refused_in_every_format(raw, capsys, ending):
    folder = raw / SOURCE
    for number in range(6):
        for name, array in (
            (f"imagesTr/case{number}_0000", scan(number)),
            (f"labelsTr/case{number}", scan(number) > 80),
        ):
            (folder / f"{name}.nrrd").unlink()
            write(folder / f"{name}{ending}", array.astype(np.float32))
    image = scan(2).astype(np.float32)
    image[0, 0, 0] = np.nan
    write(folder / "imagesTr" / f"case2_0000{ending}", image)
    describe(folder, file_ending=ending)
    assert simulate(604) == 1
    assert f"case2_0000{ending} must hold finite values, got NaN or infinite ones; set them" in capsys.readouterr().err
    assert names(raw) == [SOURCE]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--snr", "0"], "snr must be a number above 0, got 0.0"),
        (["--contrast", "1.5"], "contrast must be above 0 and at most 1, got 1.5"),
        (["--cases", "0-3"], "--cases must be FIRST:LAST, for example 0:60, got 0-3"),
        (["--cases", "2:9"], "--cases must be within 0:6, the cases of the dataset, got 2:9"),
        (["--cases", "3:3"], "--cases must be within 0:6"),
        (["--cases", "0:3", "--test-cases", "2:4"], "case2_0000.nrrd in both"),
        (["-o", "4"], "-o must be a free number, but nnUNet_raw already has Dataset004_Tiny"),
        (["-np", "0"], "-np must be at least 1, got 0"),
    ],
)
def test_options(raw, capsys, options, message):
    assert simulate(604, *options) == 1
    assert message in capsys.readouterr().err
    assert names(raw) == [SOURCE]


@pytest.mark.parametrize(
    ("array", "got"), [(scan(1) - 70.0, "-10 to 30"), (np.zeros(SHAPE), "0 to 0")], ids=["negative", "empty"]
)
def test_what_is_no_magnitude_image_is_refused(raw, capsys, array, got):
    write(raw / SOURCE / "imagesTr" / "case1_0000.nrrd", array.astype(np.float32))
    assert simulate(604) == 1
    assert f"case1_0000.nrrd must be a magnitude image, with values from 0 on, got values from {got}" in (
        capsys.readouterr().err
    )
    assert names(raw) == [SOURCE]


def test_unknown_labels_are_refused(raw, capsys):
    write(raw / SOURCE / "labelsTr" / "case1.nrrd", np.full(SHAPE, 7, np.uint8))
    assert simulate(604) == 1
    assert "case1.nrrd has label 7, which dataset.json does not have" in capsys.readouterr().err

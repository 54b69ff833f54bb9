import csv
import json
import math

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from rehrseg_nnunet.evaluation.compare import default_workers, evaluate_case, evaluate_folders, evaluate_image
from rehrseg_nnunet.evaluation.metrics import psnr, ssim
from rehrseg_nnunet.evaluation.summary import SEGMENTATION_METRICS
from rehrseg_nnunet.evaluation.tables import format_summary, format_table, write_summary

LABELS = {"background": 0, "head": 1, "tail": 2}
DATASET = {"labels": LABELS, "channel_names": {"0": "T1"}, "file_ending": ".nrrd"}


def write(path, array, spacing=(1.0, 1.0, 2.5), origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.asarray(array))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))
    return path


def random_labels(seed, highest=2):
    return np.random.default_rng(seed).integers(0, highest + 1, (6, 7, 8)).astype(np.uint8)


def two_cubes(shift=0):
    labels = np.zeros((10, 12, 12), np.uint8)
    labels[2 + shift : 6 + shift, 2:6, 2:6] = 1
    labels[4:8, 7:11, 7:11] = 2
    return labels


@pytest.mark.parametrize("ignore_label", [None, 3])
def test_dice_equals_nnunets(tmp_path, ignore_label):
    files = write(tmp_path / "r.nrrd", random_labels(0, 3)), write(tmp_path / "p.nrrd", random_labels(1, 2))
    labels = [1, 2, (1, 2)]
    ours = evaluate_case(*files, labels, ignore_label)["metrics"]
    theirs = compute_metrics(str(files[0]), str(files[1]), SimpleITKIO(), labels, ignore_label)["metrics"]
    assert list(ours) == ["1", "2", "(1, 2)"]
    for label in labels:
        for metric in ("Dice", "n_ref", "n_pred"):
            assert ours[str(label)][metric] == pytest.approx(theirs[label][metric])


def test_hd95_has_the_files_spacing(tmp_path):
    files = write(tmp_path / "r.nrrd", two_cubes()), write(tmp_path / "p.nrrd", two_cubes(1))
    metrics = evaluate_case(*files, [1, 2])["metrics"]
    assert metrics["1"]["HD95"] == pytest.approx(2.5)
    assert metrics["2"]["HD95"] == 0.0


def test_ignored_voxels_are_background_for_hd95(tmp_path):
    reference, prediction = two_cubes(), two_cubes()
    reference[8:], prediction[8:] = 3, 1
    files = write(tmp_path / "r.nrrd", reference), write(tmp_path / "p.nrrd", prediction)
    metrics = evaluate_case(*files, [1], 3)["metrics"]["1"]
    assert (metrics["Dice"], metrics["HD95"]) == (1.0, 0.0)
    assert evaluate_case(*files, [1])["metrics"]["1"]["HD95"] > 5


def test_other_grids_are_refused_even_with_equal_shapes(tmp_path):
    files = (
        write(tmp_path / "r.nii.gz", two_cubes()),
        write(tmp_path / "p.nii.gz", two_cubes(), origin=(0, 0, 1.25)),
    )
    with pytest.raises(ValueError, match=r"p\.nii\.gz must have the voxels of .*r\.nii\.gz.* up to 1\.25 mm apart"):
        evaluate_case(*files, [1])


def test_the_same_points_in_another_storage_order(tmp_path):
    reference = write(tmp_path / "r.nrrd", two_cubes())
    image = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(reference)), (2, 0, 1)), (True, False, True))
    sitk.WriteImage(image, str(tmp_path / "p.nrrd"))
    metrics = evaluate_case(reference, tmp_path / "p.nrrd", [1, 2])["metrics"]
    assert all(values["Dice"] == 1.0 and values["HD95"] == 0.0 for values in metrics.values())


def test_oblique_nifti_written_by_another_library(tmp_path):
    image = sitk.GetImageFromArray(two_cubes())
    image.SetSpacing((0.7, 0.9, 3.0))
    image.SetOrigin((-80, 55, 310.0))
    turn = sitk.VersorTransform((1, 2, 3), 0.4)
    image.SetDirection(turn.GetMatrix())
    sitk.WriteImage(image, str(tmp_path / "r.nii.gz"))
    loaded = nibabel.load(tmp_path / "r.nii.gz")
    nibabel.save(nibabel.as_closest_canonical(loaded), tmp_path / "p.nii.gz")
    metrics = evaluate_case(tmp_path / "r.nii.gz", tmp_path / "p.nii.gz", [1, 2])["metrics"]
    assert all(values["Dice"] == 1.0 for values in metrics.values())


def test_images(tmp_path):
    rng = np.random.default_rng(2)
    reference = rng.normal(size=(8, 9, 10)).astype(np.float32)
    prediction = reference + 0.1 * rng.normal(size=reference.shape).astype(np.float32)
    files = write(tmp_path / "r.nrrd", reference), write(tmp_path / "p.nrrd", prediction)
    values = evaluate_image(*files, channel=1)["metrics"]["1"]
    data_range = float(reference.max()) - float(reference.min())
    assert values["data_range"] == pytest.approx(data_range)
    assert values["PSNR"] == pytest.approx(psnr(reference, prediction, data_range=data_range))
    assert values["SSIM"] == pytest.approx(ssim(reference, prediction, data_range=data_range))


def test_bad_files_are_refused(tmp_path):
    good = write(tmp_path / "r.nrrd", np.zeros((4, 4, 4), np.float32))
    bad = write(tmp_path / "p.nrrd", np.full((4, 4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"p\.nrrd must hold finite values"):
        evaluate_image(good, bad)
    with pytest.raises(FileNotFoundError, match=r"x\.nrrd does not exist"):
        evaluate_case(good, tmp_path / "x.nrrd", [1])
    channels = write(tmp_path / "c.nrrd", np.zeros((2, 4, 4, 4), np.float32), (1,) * 4, (0,) * 4)
    with pytest.raises(
        ValueError, match=r"c\.nrrd must be a 3D image with one value per voxel, got an array of shape \(2, 4, 4, 4\)"
    ):
        evaluate_image(good, channels)


@pytest.fixture
def folders(tmp_path):
    for index in range(7):
        write(tmp_path / "ref" / f"c{index}.nrrd", two_cubes())
        write(tmp_path / "perfect" / f"c{index}.nrrd", two_cubes())
        fold = tmp_path / "shifted" / f"fold_{index % 2}"
        write(fold / f"c{index}.nrrd", two_cubes(1 + index % 2))
    return tmp_path


def evaluate(folders, dataset=DATASET, **options):
    methods = {
        "perfect": [folders / "perfect"],
        "shifted": [folders / "shifted" / "fold_0", folders / "shifted" / "fold_1"],
    }
    return evaluate_folders(folders / "ref", methods, dataset_json=dataset, **options)


def test_methods_side_by_side(folders):
    summary = evaluate(folders, workers=2)
    assert summary["settings"]["labels"] == {"1": "head", "2": "tail"}
    shifted = summary["methods"]["shifted"]
    assert summary["methods"]["perfect"]["over_cases"]["mean"]["Dice"] == {"mean": 1.0, "std": 0.0, "n": 7}
    assert [case["case"] for case in shifted["folds"]["fold_1"]["metric_per_case"]] == ["c1", "c3", "c5"]
    # One slice of four is off in four cases, two slices in three.
    assert shifted["over_cases"]["1"]["Dice"]["mean"] == pytest.approx((4 * 0.75 + 3 * 0.5) / 7)
    assert shifted["over_folds"]["1"]["Dice"]["mean"] == pytest.approx((0.75 + 0.5) / 2)
    assert shifted["over_folds"]["1"]["HD95"]["std"] == pytest.approx(np.std([2.5, 5.0], ddof=1))
    paired = {test["metric"]: test for test in summary["paired"]}
    assert paired["Dice"]["name"] == "shifted"
    assert paired["Dice"]["against"] == "perfect"
    assert paired["Dice"]["n"] == 7
    assert paired["Dice"]["mean_difference"] < 0 < paired["HD95"]["mean_difference"]
    assert paired["Dice"]["p"] < 0.05


def test_workers_do_not_change_the_result(folders):
    assert json.dumps(evaluate(folders, workers=3)) == json.dumps(evaluate(folders, workers=1))


def test_regions_of_dataset_json(folders):
    dataset = DATASET | {
        "labels": {"background": 0, "whole": [1, 2], "tail": [2]},
        "regions_class_order": [1, 2],
    }
    summary = evaluate(folders, dataset)
    assert summary["settings"]["labels"] == {"(1, 2)": "whole", "(2,)": "tail"}
    metrics = summary["methods"]["shifted"]["folds"]["fold_0"]["metric_per_case"][0]["metrics"]
    assert metrics["(1, 2)"]["Dice"] == pytest.approx((0.75 + 1) / 2)
    assert metrics["(2,)"]["Dice"] == 1.0


def test_ignore_label_of_dataset_json(folders):
    summary = evaluate(folders, DATASET | {"labels": LABELS | {"ignore": 3}})
    assert summary["settings"]["ignore_label"] == 3
    assert list(summary["settings"]["labels"]) == ["1", "2"]


def test_plans_name_the_reader(folders):
    plans = {"image_reader_writer": "SimpleITKIOWithReorient", "label_manager": "LabelManager"}
    (folders / "plans.json").write_text(json.dumps(plans))
    summary = evaluate(folders, plans_file=str(folders / "plans.json"))
    assert summary["settings"]["reader"] == "SimpleITKIOWithReorient"
    assert summary["methods"]["perfect"]["over_cases"]["mean"]["Dice"]["mean"] == 1.0


def test_labels_as_text_keep_their_names(folders):
    """nnU-Net takes them for numbers."""
    summary = evaluate(folders, DATASET | {"labels": {"background": "0", "head": "1", "tail": "2"}})
    assert summary["settings"]["labels"] == {"1": "head", "2": "tail"}
    regions = DATASET | {"labels": {"background": 0, "whole": [1, 2], "tail": "2"}, "regions_class_order": [1, 2]}
    assert evaluate(folders, regions)["settings"]["labels"] == {"(1, 2)": "whole", "2": "tail"}


def test_labels_that_dataset_json_does_not_have_are_said_once(folders, caplog):
    for method in ("ref", "perfect"):
        file = folders / method / "c1.nrrd"
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        write(file, np.where(labels == 2, 4 if method == "ref" else 5, labels).astype(np.uint8))
    summary = evaluate(folders)
    for method, label in (("ref", 4), ("perfect", 5)):
        said = f"{method}/c1.nrrd has label {label}, which dataset.json does not have: these voxels count as no label"
        assert caplog.text.count(said) == 1
    assert summary["methods"]["perfect"]["over_cases"]["1"]["Dice"]["mean"] == 1.0


def test_labels_a_hair_off_are_rounded(tmp_path, caplog):
    """A header with a scale factor: nnU-Net's evaluation has Dice 0."""
    image = nibabel.Nifti1Image(two_cubes().astype(np.float64), np.diag([1.0, 1, 4, 1]))
    nibabel.save(image, tmp_path / "r.nii.gz")
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "p.nii.gz")
    slope = nibabel.load(tmp_path / "p.nii.gz").dataobj.slope
    assert slope != 1
    metrics = evaluate_case(tmp_path / "r.nii.gz", tmp_path / "p.nii.gz", [1, 2])["metrics"]
    assert [metrics[label]["Dice"] for label in ("1", "2")] == [1.0, 1.0]
    assert "p.nii.gz: labels up to" in caplog.text


def test_labels_that_are_no_integers_are_refused(tmp_path):
    files = write(tmp_path / "r.nrrd", two_cubes()), write(tmp_path / "p.nrrd", two_cubes() * np.float32(0.5))
    with pytest.raises(ValueError, match=r"p\.nrrd must hold integer labels, got 0\.5"):
        evaluate_case(*files, [1])


def test_damaged_files_are_refused(tmp_path):
    for name in ("r.nii.gz", "p.nii.gz"):
        write(tmp_path / name, np.random.default_rng(0).integers(0, 3, (9, 40, 40)).astype(np.uint8))
    content = (tmp_path / "p.nii.gz").read_bytes()
    (tmp_path / "p.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"p\.nii\.gz must be a whole file that nnU-Net's SimpleITKIO can read"):
        evaluate_case(tmp_path / "r.nii.gz", tmp_path / "p.nii.gz", [1])


def test_other_files_are_named(folders, caplog):
    write(folders / "perfect" / "x.mha", two_cubes())
    (folders / "ref" / "._c1.nrrd").write_bytes(b"macOS")
    evaluate(folders)
    assert caplog.text.count("x.mha are left out, files must end in .nrrd") == 1
    assert caplog.text.count("._c1.nrrd of macOS are no images") == 1


def test_an_unreadable_reference_is_one_line(folders, capfd):
    (folders / "ref" / "c0.nrrd").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"c0\.nrrd must be a whole file that one of nnU-Net's readers for \.nrrd can"):
        evaluate(folders)
    assert "Traceback" not in capfd.readouterr().err


def test_incomplete_dataset_json(folders):
    with pytest.raises(ValueError, match="must have the key file_ending"):
        evaluate(folders, {"labels": LABELS})
    with pytest.raises(ValueError, match="beside the background"):
        evaluate(folders, DATASET | {"labels": {"background": 0}})
    with pytest.raises(ValueError, match="what nnU-Net accepts"):
        evaluate(folders, DATASET | {"labels": LABELS | {"ignore": 7}})
    with pytest.raises(ValueError, match="methods must not be empty"):
        evaluate_folders(folders / "ref", {}, dataset_json=DATASET)
    with pytest.raises(ValueError, match="workers must be at least 1"):
        evaluate(folders, workers=0)


def test_a_missed_structure_is_a_failure_that_counts_and_is_told(folders):
    write(folders / "perfect" / "c3.nrrd", np.where(two_cubes() == 2, 0, two_cubes()).astype(np.uint8))
    summary = evaluate(folders)
    perfect = summary["methods"]["perfect"]
    assert perfect["one_empty"] == {"1": 0, "2": 1}
    statistics = perfect["over_cases"]["2"]
    assert {metric: values["n"] for metric, values in statistics.items()} == dict.fromkeys(SEGMENTATION_METRICS, 7)
    for metric in ("Dice", "NSD"):
        assert statistics[metric]["mean"] == pytest.approx(6 / 7)
    for metric in ("HD95", "ASSD"):
        assert statistics[metric]["mean"] == pytest.approx(math.hypot(12, 12, 25) / 7)
    assert statistics["VolumeBias"]["mean"] == pytest.approx(-100 / 7)
    assert "perfect: structures that are missed or made up: tail in 1; they count as Dice and NSD 0" in (
        format_summary(summary)
    )


def test_the_tolerance_of_nsd(folders):
    shifted = np.roll(two_cubes(), 1, axis=2)
    for case in (folders / "perfect").glob("*.nrrd"):
        write(case, shifted)
    narrow, wide = (
        evaluate(folders, tolerance_mm=tolerance)["methods"]["perfect"]["over_cases"]["1"]["NSD"]["mean"]
        for tolerance in (0.01, 100)
    )
    assert narrow < wide == 1
    settings = [evaluate(folders, **options)["settings"] for options in ({}, {"tolerance_mm": 2.0})]
    assert [setting["nsd_tolerance_mm"] for setting in settings] == [None, 2.0]


def test_image_folders_state_the_data_range(tmp_path):
    rng = np.random.default_rng(3)
    for case in ("a", "b"):
        reference = rng.random((8, 8, 8)).astype(np.float32)
        reference[0, 0, :2] = (0, 4) if case == "a" else (0, 2)
        write(tmp_path / "ref" / f"{case}_0000.nrrd", reference)
        write(tmp_path / "pred" / f"{case}.nrrd", reference + np.float32(0.04))
    write(tmp_path / "ref" / "c_0000.nrrd", np.ones((8, 8, 8), np.float32))
    write(tmp_path / "pred" / "c.nrrd", np.ones((8, 8, 8), np.float32))
    summary = evaluate_folders(tmp_path / "ref", {"m": [tmp_path / "pred"]}, dataset_json=DATASET, images=True)
    statistics = summary["methods"]["m"]["over_cases"]["0"]
    assert statistics["PSNR"]["mean"] == pytest.approx((40 + 20 * math.log10(50)) / 2, abs=1e-3)
    assert statistics["PSNR"]["n"] == 2
    text = format_summary(summary)
    assert "data range = maximum - minimum of each reference image, 0 to 4" in text
    assert "not defined for 1 comparisons with a constant reference" in text
    assert "T1" in text


def test_tables(folders):
    text = format_summary(evaluate(folders))
    lines = [line.split() for line in text.splitlines()]
    assert ["n", "mean", "head", "tail"] in lines
    assert ["perfect", "7", *["1.0000", "+-", "0.0000"] * 3] in lines
    assert "HD95 (mm): mean +- std of the folds' means" in text
    assert any(line[:4] == ["shifted", "-", "perfect", "Dice"] for line in lines)
    assert text.isascii()


def test_table_columns_are_aligned():
    table = format_table([{"": "a", "Dice": "0.5"}, {"": "longer", "Dice": "0.25"}])
    assert table.splitlines() == ["        Dice", "-" * 12, "a        0.5", "longer  0.25"]
    with pytest.raises(ValueError, match="rows must not be empty"):
        format_table([])


def test_files_hold_every_value(folders, tmp_path):
    summary = evaluate(folders)
    json_file, csv_file = tmp_path / "out" / "summary.json", tmp_path / "out" / "metrics.csv"
    json_file.parent.mkdir()
    json_file.write_text("old")
    write_summary(summary, json_file=json_file, csv_file=csv_file)
    assert json.dumps(json.loads(json_file.read_text())) == json.dumps(summary)
    with csv_file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 7 * 2 * 7
    dice = {
        (row["name"], row["fold"], row["case"], row["label"]): float(row["value"])
        for row in rows
        if row["metric"] == "Dice"
    }
    assert dice["shifted", "fold_1", "c3", "head"] == 0.5
    assert sorted(path.name for path in json_file.parent.iterdir()) == ["metrics.csv", "summary.json"]


def test_a_failed_write_leaves_the_old_file(folders, tmp_path, monkeypatch):
    summary = evaluate(folders)
    json_file = tmp_path / "out" / "summary.json"
    json_file.parent.mkdir()
    json_file.write_text("old")

    def fail(*_):
        raise OSError("disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_summary(summary, json_file=json_file, csv_file=tmp_path / "out" / "metrics.csv")
    assert json_file.read_text() == "old"
    assert [path.name for path in json_file.parent.iterdir()] == ["summary.json"]


def test_number_of_workers_follows_nnunet(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("nnunetv2.configuration.default_num_processes", 5)
    assert default_workers() == 5
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert default_workers() == 2

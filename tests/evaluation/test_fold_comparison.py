"""One fold's LR and HR tables, from nnU-Net's folders to text."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.evaluation.fold_comparison import brief_table, compare_fold
from rehrseg_nnunet.evaluation.upsampling import METHODS

FACTOR = 2
LR, HR = (6, 10, 10), (12, 10, 10)


def ball(shape, spacing_z, shift=0):
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    z = (z + 0.5) * spacing_z
    return (((z - 6) ** 2 + (y - 4.5 - shift) ** 2 + (x - 4.5) ** 2) <= 12).astype(np.uint8)


def write(file, labels):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels)
    spacing = 12 / labels.shape[0]
    image.SetSpacing((1.0, 1.0, spacing))
    image.SetOrigin((0.0, 0.0, spacing / 2))
    sitk.WriteImage(image, str(file))


def fold(root, trainer, *, shift, hr_shift=None):
    """nnU-Net's fold folder with predictions of case a; with `hr_shift` also HR predictions."""
    folder = root / f"{trainer}__plans__3d_fullres" / "fold_0"
    labels = ball(LR, 2, shift)
    write(folder / "validation" / "a.nrrd", labels)
    np.savez_compressed(folder / "validation" / "a.npz", probabilities=np.stack([1 - labels, labels]).astype(float))
    if hr_shift is not None:
        write(folder / "validation_hr" / "a.nrrd", ball(HR, 1, hr_shift))
    (folder.parent / "plans.json").write_text(
        json.dumps({"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}})
    )
    return folder


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "Dataset010_Tiny_r2z"
    for case in ("a", "b"):  # b belongs to another fold
        write(folder / "labelsTr" / f"{case}.nrrd", ball(LR, 2))
        write(folder / "labelsTrHR" / f"{case}.nrrd", ball(HR, 1))
    dataset = {"labels": {"background": 0, "ball": 1}, "channel_names": {"0": "MRI"}, "file_ending": ".nrrd"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder


def dice(summary, name):
    return summary["methods"][name]["over_cases"]["mean"]["Dice"]["mean"]


def test_rows_and_scores(tmp_path, raw):
    lr, hr = compare_fold(
        raw_folder=raw,
        fold_folders={
            "base line": fold(tmp_path, "nnUNetTrainer", shift=1),
            "REHRSeg": fold(tmp_path, "REHRSegTrainer", shift=0, hr_shift=0),
        },
        factor=FACTOR,
        axis=0,
        output_folder=tmp_path / "out",
    )
    assert list(lr["methods"]) == ["base line", "REHRSeg"]
    upsampled = [f"base line, {way}" for way in METHODS.values()]
    assert list(hr["methods"]) == [*upsampled, "REHRSeg"]
    assert dice(lr, "REHRSeg") == dice(hr, "REHRSeg") == 1
    truth, shifted = ball(LR, 2), ball(LR, 2, 1)
    assert dice(lr, "base line") == pytest.approx(2 * (truth & shifted).sum() / (truth.sum() + shifted.sum()))
    truth, nearest = ball(HR, 1), shifted.repeat(2, axis=0)
    assert dice(hr, upsampled[0]) == pytest.approx(2 * (truth & nearest).sum() / (truth.sum() + nearest.sum()))
    assert all(0.5 < dice(hr, name) < 1 for name in upsampled)
    for name, summary in (("lr", lr), ("hr", hr)):
        stored = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert {m: dice(stored, m) for m in stored["methods"]} == {m: dice(summary, m) for m in summary["methods"]}
        assert (tmp_path / "out" / f"{name}.csv").read_text().startswith("name,fold,case")
    again, _ = compare_fold(
        raw_folder=raw,
        fold_folders={"base line": tmp_path / "nnUNetTrainer__plans__3d_fullres" / "fold_0"},
        factor=FACTOR,
        axis=0,
        output_folder=tmp_path / "out",
    )
    assert dice(again, "base line") == dice(lr, "base line")


def test_without_probabilities_the_remedy_is_named(tmp_path, raw):
    folder = fold(tmp_path, "nnUNetTrainer", shift=0)
    (folder / "validation" / "a.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.npz is missing: predict with probabilities"):
        compare_fold(raw_folder=raw, fold_folders={"x": folder}, factor=2, axis=0, output_folder=tmp_path / "out")


def statistic(mean, std, n=3):
    return {"mean": mean, "std": std, "n": n}


def method(dice, hd95, missed=0):
    return {"over_cases": {"mean": {"Dice": dice, "HD95": hd95}}, "one_empty": {"1": missed, "2": 0}}


def test_the_brief_table():
    methods = {
        "one": method(statistic(0.81234, 0.1), statistic(2.5, 0.25)),
        "another": method(statistic(0.9, 0.05), statistic(1.25, 0.125)),
    }
    lines = [line.split() for line in brief_table({"methods": methods}).splitlines()]
    assert lines[0] == ["n", "Dice", "HD95", "(mm)"]
    assert lines[2] == ["one", "3", "0.8123", "±", "0.1000", "2.50", "±", "0.25"]
    assert lines[3] == ["another", "3", "0.9000", "±", "0.0500", "1.25", "±", "0.12"]


def test_the_brief_table_tells_of_missed_structures():
    methods = {
        "one": method(statistic(0.8, 0.1), statistic(2.5, 0.25), missed=2),
        "another": method(statistic(0.9, 0.05), statistic(1.25, 0.125)),
    }
    lines = brief_table({"methods": methods}).splitlines()
    assert lines[0].split()[-3:] == ["or", "made", "up"]
    assert lines[2].split()[-1] == "2"
    assert lines[3].split()[-1] == "0.12"

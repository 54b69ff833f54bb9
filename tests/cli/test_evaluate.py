import argparse
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from rehrseg_nnunet.cli import evaluate


def write(path, array, origin=(0.0, 0.0, 0.0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetOrigin(origin)
    sitk.WriteImage(image, str(path))


@pytest.fixture
def folders(tmp_path):
    labels = np.zeros((6, 8, 8), np.uint8)
    labels[2:4, 2:6, 2:6] = 1
    for case in ("a", "b"):
        write(tmp_path / "ref" / f"{case}.nii.gz", labels)
        write(tmp_path / "A" / f"fold_{case}" / "validation" / f"{case}.nii.gz", labels)
        write(tmp_path / "B" / f"{case}.nii.gz", np.roll(labels, 1, axis=0))
        write(tmp_path / "moved" / f"{case}.nii.gz", labels, origin=(0.5, 0, 0))
    dataset = {"labels": {"background": 0, "lesion": 1}, "channel_names": {"0": "T2"}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path


def run(folders, *options, pred=("B",)):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    entries = [str(folders / entry) for entry in pred]
    common = ["-ref", str(folders / "ref"), "-djfile", str(folders / "dataset.json"), "-np", "1"]
    evaluate.run(parser.parse_args([*common, "-pred", *entries, *options]))


def test_folds_of_one_method_beside_another(folders, capsys):
    out = folders / "out"
    run(folders, "-names", "folds", "single", "-o", str(out), pred=("A/fold_*/validation", "B"))
    printed = capsys.readouterr().out
    assert "folds   2  1.0000 +- 0.0000" in printed
    assert "single - folds" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["methods"]["folds"]["folds"]) == ["fold_a", "fold_b"]
    assert (out / "metrics.csv").read_text().splitlines()[0] == "name,fold,case,label,metric,value"


def test_names_come_from_the_folders(folders, capsys):
    run(folders, "--chill", pred=("A/fold_a/validation", "A/fold_b/validation"))
    printed = capsys.readouterr().out
    assert "fold_a  1" in printed
    assert "no common cases" in printed


def test_folds_are_named_by_their_common_folder(folders, capsys):
    run(folders, pred=("A/fold_*/validation", "B"))
    assert "B - A" in capsys.readouterr().out
    run(folders, pred=("A/fold_*/validation",))
    assert "\nA  2" in capsys.readouterr().out


def test_output_file_name(folders):
    run(folders, "-o", str(folders / "B" / "mine.json"))
    assert (folders / "B" / "mine.json").is_file()
    assert (folders / "B" / "mine.csv").is_file()


def test_nnunets_summary_is_not_replaced(folders):
    for target in ("B", "B/summary.json"):
        with pytest.raises(ValueError, match=r"-o must not replace a summary\.json of nnU-Net"):
            run(folders, "-o", str(folders / target))


def test_images(folders, capsys):
    run(folders, "--images")
    assert "data range" in capsys.readouterr().out


def test_other_grid_is_refused(folders):
    with pytest.raises(ValueError, match=r"moved.a\.nii\.gz must have the voxels of .*up to 0\.5 mm apart"):
        run(folders, pred=("B", "moved"))


def test_bad_arguments(folders):
    with pytest.raises(ValueError, match="-names must have one name for each of the 1 entries"):
        run(folders, "-names", "x", "y")
    with pytest.raises(ValueError, match="-pred must name different methods"):
        run(folders, pred=("B", "B"))
    with pytest.raises(FileNotFoundError, match="no folder is called"):
        run(folders, pred=("nowhere",))
    (folders / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match=r"dataset\.json must be JSON, got a mistake at line 1, column 2"):
        run(folders)


def test_plans_that_are_broken_are_named(folders):
    plans = folders / "plans.json"
    with pytest.raises(FileNotFoundError, match=r"plans\.json is missing; name the plans file of a model"):
        run(folders, "-pfile", str(plans))
    plans.write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"plans\.json must be JSON, got a mistake at line 1, column 8"):
        run(folders, "-pfile", str(plans))


def test_importing_the_command_needs_neither_nnunets_variables_nor_monai():
    code = "import sys, rehrseg_nnunet.cli.evaluate; sys.exit('monai' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("nnUNet")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_where_nothing_can_be_written_nothing_is_compared(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("rehrseg_nnunet.cli.evaluate.evaluate_folders", None)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"-o must be a folder or the name of a \.json file, but \S+file is a file"):
        run(folders, "-o", str(tmp_path / "file"))


def test_a_dataset_json_is_no_plans_file(folders):
    with pytest.raises(ValueError, match=r"dataset\.json must be nnU-Net plans, got no image_reader_writer in it"):
        run(folders, "-pfile", str(folders / "dataset.json"))

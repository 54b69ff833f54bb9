"""No validation case is one that the keeper has seen; scans lie as the keeper's."""

import json
import pickle

import numpy as np
import pytest
from keeper_runs import write_keeper

from rehrseg_nnunet.guided.keeper_cases import check_leak, orientation_doubts
from rehrseg_nnunet.guided.keeper_run import KeeperRun

SPLITS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["a", "c"], "val": ["b"]}]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    """The preprocessed dataset of pairs."""
    folder = tmp_path / "preprocessed" / "Dataset610_Pairs"
    folder.mkdir(parents=True)
    (folder / "splits_final.json").write_text(json.dumps(SPLITS))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    return folder


def keeper_of(tmp_path, fold=0, folds=None):
    run = write_keeper(tmp_path / "results", folds=folds or (fold,))
    return KeeperRun(run)


def test_cases_of_its_validation_are_new_to_it(tmp_path, pairs):
    assert check_leak(keeper_of(tmp_path), ["c", "d"]) == []


def test_a_fold_that_fits_is_named(tmp_path, pairs):
    keeper = keeper_of(tmp_path)
    with pytest.raises(ValueError, match=r"trained on b \(.*fold_0\); run: nnUNetv2_train Dataset610_Pairs .* 1 -tr"):
        check_leak(keeper, ["b"])


def test_a_finished_fold_that_fits_is_named_to_choose(tmp_path, pairs):
    keeper = keeper_of(tmp_path, folds=(0, 1))
    with pytest.raises(ValueError, match=r"trained on b \(.*; choose REHRSEG_KEEPER=.*fold_1; if they are other"):
        check_leak(keeper, ["b", "z"])


def test_where_no_fold_fits(tmp_path, pairs):
    with pytest.raises(ValueError, match=r"trained on a and 1 more .*; give both datasets one splits_final.json"):
        check_leak(keeper_of(tmp_path), ["b", "a", "c"])


@pytest.mark.parametrize("fold", ["all", 7])
def test_a_keeper_of_all_cases(tmp_path, pairs, fold):
    with pytest.raises(ValueError, match="trained on c"):
        check_leak(keeper_of(tmp_path, fold), ["c"])


def test_without_folds_all_cases_were_seen(tmp_path, pairs):
    (pairs / "splits_final.json").unlink()
    (pairs / "gt_segmentations").mkdir()
    (pairs / "gt_segmentations" / "c.nii.gz").touch()
    with pytest.raises(ValueError, match="trained on c"):
        check_leak(keeper_of(tmp_path, "all"), ["c"])


def test_what_is_not_at_hand_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    (said,) = check_leak(keeper_of(tmp_path), ["a"])
    assert "is not known: splits_final.json of Dataset610_Pairs is not there" in said


def properties(direction):
    return {"sitk_stuff": {"spacing": (1, 1, 1), "origin": (0, 0, 0), "direction": tuple(np.ravel(direction))}}


def write_case(folder, content):
    folder.mkdir(parents=True)
    (folder / "case.pkl").write_bytes(pickle.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("direction", "doubt"),
    [
        (np.eye(3), None),
        (np.diag([-1, -1, 1]), "axes of the scans lead to SAR, those of the keeper's to SPL"),
        (np.eye(3)[[0, 2, 1]], "axes of the scans lead to PSL, those of the keeper's to SPL"),
    ],
)
def test_other_orientations_are_doubted(tmp_path, pairs, direction, doubt):
    write_case(pairs / "p_3d_fullres", properties(np.eye(3)))
    own = write_case(tmp_path / "own", properties(direction))
    said = orientation_doubts(own, keeper_of(tmp_path))
    assert [sentence.partition(":")[0] for sentence in said] == ([doubt] if doubt else [])


def test_formats_without_orientation_are_not_doubted(tmp_path, pairs):
    write_case(pairs / "p_3d_fullres", properties(np.diag([-1, -1, 1])))
    assert orientation_doubts(write_case(tmp_path / "own", {"spacing": [1, 1, 1]}), keeper_of(tmp_path)) == []

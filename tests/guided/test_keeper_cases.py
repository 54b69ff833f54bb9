"""No validation case is one that the keeper has seen; scans lie as the keeper's."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from keeper_runs import write_keeper

from rehrseg_nnunet.guided.keeper_cases import check_leak, check_teachers_leak, orientation_doubts
from rehrseg_nnunet.guided.keeper_run import KeeperRun
from rehrseg_nnunet.guided.networks import build_teacher
from rehrseg_nnunet.nnunet.weights import hash_weights

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


@pytest.mark.parametrize("fold", ["all", 7])
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_a_keeper_of_all_cases_has_seen_those_that_the_folds_leave_out(tmp_path, pairs, fold, ending):
    (pairs / "gt_segmentations").mkdir()
    (pairs / "gt_segmentations" / f"d.v1{ending}").touch()
    with pytest.raises(ValueError, match=r"trained on d\.v1 \("):
        check_leak(keeper_of(tmp_path, fold), ["d.v1"])
    assert check_leak(keeper_of(tmp_path / "other"), ["d.v1", "d"]) == []


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"train": ["a"', "must be JSON, got a mistake: .*"),
        ("[]", r"must list nnU-Net's folds, each with train and val, got \[\]"),
        ('{"train": ["a"]}', r"must list nnU-Net's folds, each with train and val, got \{.*\}"),
        ('[{"val": ["a"]}]', r"must list nnU-Net's folds, each with train and val, got \[\{.*\}\]"),
    ],
)
def test_damaged_folds_are_named(tmp_path, pairs, content, said):
    (pairs / "splits_final.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{pairs}/splits_final.json {said}; put back the folds that the keeper was"):
        check_leak(keeper_of(tmp_path), ["a"])


def teacher_of_fold(keeper, fold, *, dataset="Dataset610_Pairs"):
    """A finished teacher with weights of its own, and the hash that a keeper has of it."""
    run = replace(keeper.run, dataset=dataset, trainer="GuidanceTeacherTrainer", fold=fold)
    run.folder.mkdir(parents=True)
    torch.manual_seed(sum(map(ord, f"{dataset} {fold}")))
    teacher = build_teacher(keeper.configuration)
    torch.save({"network_weights": teacher.state_dict()}, run.final_checkpoint)
    teacher.reconstruction = None
    return hash_weights(teacher.state_dict())


def test_the_teacher_of_its_own_fold_has_seen_no_more(tmp_path, pairs):
    keeper = keeper_of(tmp_path)
    own, _ = (teacher_of_fold(keeper, fold) for fold in (0, 1))
    assert check_teachers_leak(keeper, own, ["c"]) == []


def test_a_teacher_of_another_fold_has(tmp_path, pairs):
    """What it saw of a case is in the keeper's features."""
    keeper = keeper_of(tmp_path)
    _, other = (teacher_of_fold(keeper, fold) for fold in (0, 1))
    assert check_leak(keeper, ["c"]) == []
    assert check_teachers_leak(keeper, other, ["b"]) == []
    message = (
        r"new to the keeper's teacher, .* trained on c \(.*TeacherTrainer.*fold_1\); .* 0 -tr KnowledgeKeeperTrainer"
    )
    with pytest.raises(ValueError, match=message):
        check_teachers_leak(keeper, other, ["c", "d"])


def test_a_teacher_of_another_dataset_by_that_ones_folds(tmp_path, pairs):
    keeper = keeper_of(tmp_path)
    elsewhere = teacher_of_fold(keeper, "all", dataset="Dataset611_Others")
    (said,) = check_teachers_leak(keeper, elsewhere, ["c"])
    assert said.endswith("splits_final.json of Dataset611_Others is not there")
    folder = pairs.parent / "Dataset611_Others"
    folder.mkdir()
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["x"], "val": ["d"]}]))
    assert check_teachers_leak(keeper, elsewhere, ["c"]) == []
    with pytest.raises(ValueError, match="trained on d"):
        check_teachers_leak(keeper, elsewhere, ["c", "d"])


def test_a_teacher_that_is_gone_is_said(tmp_path, pairs):
    keeper = keeper_of(tmp_path)
    teacher_of_fold(keeper, 0)
    (pairs.parents[1] / "results" / "Dataset610_Pairs" / "GuidanceTeacherTrainer__p__3d_fullres" / "fold_x").mkdir()
    backup = pairs.parents[1] / "results" / "Dataset610_Pairs" / "GuidanceTeacherTrainer__backup" / "fold_0"
    backup.mkdir(parents=True)
    (backup / "checkpoint_final.pth").touch()
    broken = replace(keeper.run, trainer="GuidanceTeacherTrainer", fold=2)
    broken.folder.mkdir()
    broken.final_checkpoint.touch()
    (said,) = check_teachers_leak(keeper, "0" * 64, ["c"])
    assert said.startswith("whether the keeper was trained on validation cases is not known: its teacher is no longer")


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


@pytest.mark.parametrize(
    "content",
    [b"", pickle.dumps(properties(np.eye(3)))[:20], pickle.dumps({"sitk_stuff": {}})],
    ids=["empty", "cut", "without geometry"],
)
@pytest.mark.parametrize("damaged", ["pairs", "own"])
def test_a_damaged_case_is_said_and_stops_nothing(tmp_path, pairs, damaged, content):
    folders = {"pairs": pairs / "p_3d_fullres", "own": tmp_path / "own"}
    for folder in folders.values():
        write_case(folder, properties(np.eye(3)))
    (folders[damaged] / "case.pkl").write_bytes(content)
    (said,) = orientation_doubts(folders["own"], keeper_of(tmp_path))
    assert said.startswith("orientation of the scans is not compared with that of the keeper's: ")
    assert f"{folders[damaged]}/case.pkl is damaged" in said

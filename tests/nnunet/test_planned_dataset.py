"""A dataset under its plans, as a trainer has it."""

from types import SimpleNamespace

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from rehrseg_nnunet.nnunet.planned_dataset import PlannedDataset

PLANS = {
    "dataset_name": "Dataset009_X",
    "plans_name": "p",
    "label_manager": "LabelManager",
    "configurations": {"3d_fullres": {"spacing": [4.0, 1.0, 0.5], "patch_size": [5, 16, 24], "architecture": {}}},
}
DATASET = {"labels": {"background": 0, "a": 1, "b": 2, "ignore": 3}, "file_ending": ".nrrd"}


@pytest.fixture
def trainer():
    """What is used of nnU-Net's trainer."""
    manager = PlansManager(PLANS)
    return SimpleNamespace(
        plans_manager=manager,
        configuration_manager=manager.get_configuration("3d_fullres"),
        dataset_json=DATASET,
        config=SimpleNamespace(factor=4),
    )


@pytest.mark.parametrize("raw", [True, False])
def test_it_is_what_the_trainer_trains_on(trainer, tmp_path, monkeypatch, raw):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path)) if raw else monkeypatch.delenv("nnUNet_raw", raising=False)
    planned = PlannedDataset.of_trainer(trainer)
    assert planned.plans_manager is trainer.plans_manager
    assert planned.configuration_manager is trainer.configuration_manager
    assert planned.dataset_json is DATASET
    assert planned.factor == 4
    assert planned.raw_folder == (tmp_path / "Dataset009_X" if raw else None)


def test_sizes_are_those_of_the_two_grids(trainer):
    planned = PlannedDataset.of_trainer(trainer)
    assert planned.spacing_mm == (4.0, 1.0, 0.5)  # thick slices
    assert planned.hr_patch_size == (20, 16, 24)  # thin slices


def test_the_label_manager_is_nnunets_and_made_once(trainer):
    planned = PlannedDataset.of_trainer(trainer)
    assert planned.label_manager.foreground_labels == [1, 2]
    assert planned.label_manager.ignore_label == 3
    assert planned.label_manager is planned.label_manager

"""Background workers around a loader."""

import multiprocessing

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

import rehrseg_nnunet.nnunet.augmenters as module
from rehrseg_nnunet.nnunet.augmenters import start_augmenter

CPU = torch.device("cpu")


class Draws(DataLoader):
    """An endless loader whose batches tell which random numbers its process draws."""

    def __init__(self):
        super().__init__(None, 2, infinite=True)
        self.drawn = 0

    def generate_train_batch(self):
        self.drawn += 1
        return {"worker": self.thread_id, "numpy": np.random.uniform(), "torch": torch.rand(1)}  # noqa: NPY002


@pytest.mark.parametrize("validation", [False, True])
def test_no_processes_loads_in_this_one(monkeypatch, validation):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    loader = Draws()
    augmenter = start_augmenter(loader, device=CPU, validation=validation)
    assert isinstance(augmenter, SingleThreadedAugmenter)
    assert loader.drawn == 1  # started
    assert set(next(augmenter)) == {"worker", "numpy", "torch"}


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="test classes need fork")
def test_workers_draw_different_random_numbers(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    augmenter = start_augmenter(Draws(), device=CPU)
    try:
        batches = [next(augmenter) for _ in range(12)]
    finally:
        augmenter._finish()
    for key in ("numpy", "torch"):
        assert len({float(b[key]) for b in batches}) == 12


@pytest.mark.parametrize(
    ("allowed", "validation", "processes", "cached"),
    [(12, False, 12, 6), (30, False, 30, 15), (12, True, 6, 3), (1, True, 1, 3), (40, True, 20, 10)],
)
def test_nnunets_rule_for_workers_and_cache(monkeypatch, allowed, validation, processes, cached):
    monkeypatch.setattr(module, "get_allowed_n_proc_DA", lambda: allowed)
    monkeypatch.setattr(NonDetMultiThreadedAugmenter, "__next__", lambda self: None)
    augmenter = start_augmenter(Draws(), device=torch.device("cuda"), validation=validation)
    assert (augmenter.num_processes, augmenter.num_cached, augmenter.pin_memory) == (processes, cached, True)
    assert not start_augmenter(Draws(), device=CPU, validation=validation).pin_memory


def test_negative_processes_are_refused(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "-1")
    with pytest.raises(ValueError, match="nnUNet_n_proc_DA must be at least 0, got -1"):
        start_augmenter(Draws(), device=CPU)

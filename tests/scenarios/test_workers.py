"""Background workers: none and several, forked and spawned; prediction with spawned workers."""

import multiprocessing
from contextlib import contextmanager

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from commands import REHRSEG, Command
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from short_runs import STEPS
from workspace import environment

pytestmark = pytest.mark.slow

ISOTROPIC, THICK = 1, 2
STAGES = ("SelfSRTrainer", "REHRSegTrainer")
NO_FORK = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def trained(nnunet):
    """Both stages without workers."""
    nnunet.write_phantom(ISOTROPIC)
    nnunet.simulate(ISOTROPIC, THICK)
    nnunet.prepare(THICK)
    with watched_workers() as drawn:
        for trainer in STAGES:
            nnunet.train(trainer, THICK)
    assert drawn == []
    return nnunet


@contextmanager
def start_method(method):
    """A start method of this process's workers for a while."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextmanager
def watched_workers():
    """For each loader that has workers, in the order of their start: their start methods, and the batches it gave."""
    loaders, stock = {}, NonDetMultiThreadedAugmenter.__next__

    def next_and_note(self):
        batch = stock(self)
        if self not in loaders:
            loaders[self] = ([process._popen.method for process in self._processes], [])
            drawn.append(loaders[self])
        loaders[self][1].append(batch)
        return batch

    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NonDetMultiThreadedAugmenter, "__next__", next_and_note)
        yield drawn


# a spawned worker takes seconds to import
@pytest.mark.parametrize(("method", "workers"), [pytest.param("fork", 4, marks=NO_FORK), ("spawn", 2)])
@pytest.mark.parametrize("name", STAGES)
def test_a_whole_training_with_workers(trained, name, method, workers):
    variables = environment(nnUNet_n_proc_DA=str(workers), **{STEPS: str(workers)})
    with variables, start_method(method), watched_workers() as drawn:
        allowed = get_allowed_n_proc_DA()  # as many as there are processors at most
        run = trained.train(name, THICK)
    assert [methods for methods, _ in drawn] == [[method] * allowed, [method] * max(1, allowed // 2)]
    batches, validation = (batches for _, batches in drawn)
    assert (len(batches), len(validation)) == (1 + 2 * workers, 1 + 2)  # the first ones start the workers
    layouts = {tuple((t.shape, t.dtype) for t in (batch["data"], *batch["target"])) for batch in batches}
    assert len(layouts) == 1
    # workers that drew the same random numbers would give the same first batches
    assert len({batch["data"].numpy().tobytes() for batch in batches}) == len(batches)
    losses = torch.load(run / "checkpoint_final.pth", weights_only=False)["logging"]["train_losses"]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert not multiprocessing.active_children()


def test_hr_prediction_with_spawned_workers_is_the_same(trained, tmp_path):
    images = tmp_path / "in"
    images.mkdir()
    for file in sorted((trained.raw / trained.dataset(THICK) / "imagesTr").iterdir())[:2]:
        (images / file.name).symlink_to(file)
    options = ("--grid", "native", "--save_probabilities")
    here = trained.predict_hr(images, tmp_path / "here", THICK, *options)
    flags = trained._prediction(images, tmp_path / "workers", THICK, *options, "-npp", "1", "-nps", "1")
    command = Command(REHRSEG, "predict", *flags)
    _, errors = command.communicate(timeout=TIMEOUT_S)
    assert command.returncode == 0, errors
    names = {file.name for file in here.iterdir()}
    assert {file.name for file in (tmp_path / "workers").iterdir()} == names
    cases = sorted(name for name in names if name.endswith(".nii.gz"))
    assert len(cases) == 2
    for name in cases:
        segmentations = [sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f / name))) for f in ("here", "workers")]
        np.testing.assert_array_equal(*segmentations)
        assert len(segmentations[0]) == 4  # the scan's own slices

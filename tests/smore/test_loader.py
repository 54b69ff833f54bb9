"""Batches of SMORE's slices, for plain labels, an ignore label and regions."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.config.smore import SMOREConfig
from rehrseg_nnunet.smore.loader import SMORELoader

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
MASKED = 3  # the ignore label, or one above all labels
SHAPE = (5, 19, 26)


@pytest.fixture(autouse=True)
def _seed():
    seed(0)


def seed(number):
    np.random.seed(number)  # noqa: NPY002 (nnU-Net's workers seed the global state)


def coordinate_case(manager=PLAIN, labels=None):
    """Image channels hold every voxel's own position, so that any slice tells where it is from; random labels."""
    image = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")).astype(np.float32)
    if labels is None:
        highest = 3 if manager is IGNORE else 2
        labels = np.random.default_rng(0).integers(-1, highest + 1, size=(1, *SHAPE)).astype(np.int8)
    return image, labels


def loader(case, *, manager=PLAIN, factor=4, patch=(8, 8), batch_size=30, foreground=0.0, augment=True):
    properties = {"class_locations": class_locations(case[1], manager)}
    return SMORELoader(
        SimpleNamespace(identifiers=["case"], load_case=lambda _: (*case, None, properties)),
        batch_size,
        config=SMOREConfig(patch_size=patch),
        factor=factor,
        label_manager=manager,
        oversample_foreground_percent=foreground,
        augment=augment,
    )


@pytest.mark.parametrize("patch", [(8, 8), (24, 30)])
@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
def test_batches_hold_slices_of_the_case(manager, patch):
    volume, stored = coordinate_case(manager)
    batch = next(loader((volume, stored), manager=manager, patch=patch))
    image, labels, mask = batch["target"]
    heads = manager.num_segmentation_heads
    assert batch["data"].shape == (30, 3 + heads, patch[0] // 4, patch[1])
    assert image.shape == (30, 3, *patch)
    assert batch["data"].dtype == image.dtype == mask.dtype == torch.float32
    z, y, x = image.long().unbind(1)
    assert {len(sample.unique()) for sample in z} == {1}
    assert set(z.unique().tolist()) == set(range(SHAPE[0]))
    truth = torch.from_numpy(np.maximum(stored[0], 0))[z, y, x]
    inside = mask[:, 0] == 1
    assert inside.all() == (patch[0] <= 19 and patch[1] <= 19)
    if manager is REGIONS:
        assert labels.shape == (30, 3, *patch)
        assert torch.equal(labels[:, -1], ~inside)
        assert torch.equal(labels[:, 0][inside], (truth > 0)[inside])
        assert torch.equal(labels[:, 1][inside], (truth == 2)[inside])
    else:
        assert labels.shape == (30, 1, *patch)
        assert torch.equal(labels[:, 0][inside], truth[inside].to(labels.dtype))
        assert (labels[:, 0][~inside] == MASKED).all()


@pytest.mark.parametrize(("factor", "rows"), [(2, 5), (3, 3), (4, 2), (16, 1)])
def test_the_patch_is_cut_to_thick_rows(factor, rows):
    batch = next(loader(coordinate_case(), factor=factor, patch=(10, 8), batch_size=2))
    assert batch["data"].shape[2:] == (rows, 8)
    assert batch["target"][0].shape[2:] == (rows * factor, 8)


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
def test_oversampled_slices_contain_foreground(manager):
    labels = np.zeros((1, *SHAPE), dtype=np.int8)
    labels[0, 3, 8, 12] = 2
    case = coordinate_case(manager, labels)
    targets = next(loader(case, manager=manager, foreground=1.0))["target"][1]
    found = (targets[:, 1] if manager is REGIONS else targets[:, 0] == 2).flatten(1).sum(1)
    assert (found == 1).all()
    none = next(loader(case, manager=manager))["target"][1]
    assert (none[:, 1] if manager is REGIONS else none[:, 0] == 2).flatten(1).any(1).sum() < 10


def test_both_axes_and_all_directions_are_simulated():
    image = next(loader(coordinate_case(), batch_size=100))["target"][0]
    steps = (image[:, 1:, 1, 0] - image[:, 1:, 0, 0]).round().int().tolist()
    assert {tuple(step) for step in steps} == {(1, 0), (-1, 0), (0, 1), (0, -1)}


def test_the_seed_decides():
    batches = []
    for number in (5, 5, 6):
        seed(number)
        batches.append(next(loader(coordinate_case()))["data"])
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_it_can_be_sent_to_worker_processes():
    sent = loader(coordinate_case())
    sent._data = None
    assert pickle.loads(pickle.dumps(sent)).size == (2, 8)

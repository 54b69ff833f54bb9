"""Patches of pseudo-HR cases: phases, alignment, padding, halo, and the true acquisition."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.segmentation.loader import (
    HRPatchLoader,
    PhasedCases,
    SliceWindow,
    initial_lr_patch_size,
    lr_class_locations,
)
from rehrseg_nnunet.segmentation.transforms import HALO_LR_SLICES

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


def memory_dataset(image, labels, label_manager=LABELS, identifiers=("case",)):
    """Cases whose data hold what is given; the U of a pseudo-HR case is its last channel."""
    unit = IntensityUnit(zero=(0.0,), length=(1.0,)).as_property()
    properties = {"class_locations": class_locations(labels, label_manager), **unit}
    return SimpleNamespace(identifiers=list(identifiers), load_case=lambda _: (image, labels, None, properties))


def pseudo_hr_case(factor=4, lr_slices=5, in_plane=(6, 7), seed=0):
    """Image = HR slice index + 1 (so that padding is known), U in (0, 1), random labels."""
    shape = (lr_slices * factor, *in_plane)
    rng = np.random.default_rng(seed)
    index = np.broadcast_to(np.arange(1, shape[0] + 1)[:, None, None], shape)
    data = np.stack([index, rng.random(shape)]).astype(np.float32)
    return data, rng.integers(0, 3, size=(1, *shape)).astype(np.int8)


def raw_loader(data, labels, *, factor=4, patch=(3, 6, 7), initial=None, batch_size=2, **options):
    return HRPatchLoader(
        memory_dataset(data, labels), batch_size, initial or patch, patch, LABELS, factor=factor, **options
    )


def phases_of(batch, factor):
    """Phase of each raw crop, from the slice index in its image channel: crops are aligned to LR slices."""
    index = batch["data"][:, 0].amax((2, 3)).numpy()
    phases = []
    for line in index:
        at = int(np.flatnonzero(line)[0])
        phases.append(int(line[at] - 1 - at) % factor)
    return phases


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("patch_slices", [2, 5, 9])  # smaller than, as many as and more than the volume's slices
def test_all_phases_occur_evenly(factor, patch_slices):
    np.random.seed(0)  # noqa: NPY002
    loader = raw_loader(*pseudo_hr_case(factor), factor=factor, patch=(patch_slices, 6, 7), batch_size=60 * factor)
    counts = np.bincount(phases_of(next(loader), factor), minlength=factor)
    assert len(counts) == factor
    assert (np.abs(counts - 60) < 25).all()


def test_a_single_thick_slice_is_seen_at_phase_0():
    data, labels = pseudo_hr_case(lr_slices=1)
    batch = next(raw_loader(data, labels, batch_size=20))
    assert set(phases_of(batch, 4)) == {0}


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_crops_are_the_volume_at_its_phase_and_padded_as_in_nnunet(factor):
    np.random.seed(1)  # noqa: NPY002
    data, labels = pseudo_hr_case(factor)
    patch = (4, 6, 7)
    batch = next(raw_loader(data, labels, factor=factor, patch=patch, initial=(6, 9, 10), batch_size=20))
    size = (factor * (6 + 2 * HALO_LR_SLICES), 9, 10)
    assert batch["data"].shape == (20, 2, *size)
    assert batch["target"].shape == (20, 1, *size)
    for image, target in zip(batch["data"], batch["target"], strict=True):
        inside = image[1] > 0
        slices = image[0][inside].unique().long() - 1
        # whole LR slices only, all of the same phase
        assert len(slices) % factor == 0
        assert torch.equal(slices, torch.arange(slices[0], slices[-1] + 1))
        assert (image[:, ~inside] == 0).all()
        assert (target[0][~inside] == -1).all()
        # voxels of image, U and labels are still together
        y = np.flatnonzero(inside.any(0).any(1))
        x = np.flatnonzero(inside.any(0).any(0))
        uncertainty = image[1][inside].reshape(len(slices), len(y), len(x)).numpy()
        windows = np.lib.stride_tricks.sliding_window_view(data[1][slices] + 1, (len(slices), len(y), len(x)))
        at = np.argwhere((windows == uncertainty).all((-1, -2, -3)))
        assert len(at) == 1
        _, y0, x0 = at[0]
        expected = labels[0, slices, y0 : y0 + len(y), x0 : x0 + len(x)]
        np.testing.assert_array_equal(target[0][inside].reshape(expected.shape), expected)


def test_patch_positions_along_z_are_those_of_nnunet_on_the_lr_grid():
    data, labels = pseudo_hr_case()
    loader = raw_loader(data, labels, patch=(3, 6, 7))
    stock = nnUNetDataLoader(memory_dataset(data[:, ::4], labels[:, ::4]), 2, (3, 6, 7), (3, 6, 7), LABELS)
    for force_foreground in (False, True):
        locations = {1: np.array([[0, 3, 2, 2]]), 2: np.array([[0, 0, 5, 1]])}
        for seed in range(20):
            np.random.seed(seed)  # noqa: NPY002
            (z0, *yx0), (z1, *yx1) = loader.get_bbox((20, 6, 7), force_foreground, locations)
            np.random.seed(seed)  # noqa: NPY002
            (k0, *yx0_lr), (k1, *yx1_lr) = stock.get_bbox((5, 6, 7), force_foreground, locations)
            assert (z0, z1) == (4 * (k0 - HALO_LR_SLICES), 4 * (k1 + HALO_LR_SLICES))
            assert (yx0, yx1) == (yx0_lr, yx1_lr)


def test_oversampled_patches_hold_foreground():
    np.random.seed(2)  # noqa: NPY002
    data, labels = pseudo_hr_case(lr_slices=12, in_plane=(14, 14))
    labels = np.zeros_like(labels)
    labels[0, 22, 11, 3] = 2
    loader = raw_loader(data, labels, patch=(3, 5, 5), batch_size=30, oversample_foreground_percent=1.0)
    halo = HALO_LR_SLICES * 4
    found = (next(loader)["target"][:, 0, halo:-halo] == 2).flatten(1).any(1)
    assert found.all()


def test_class_locations_become_lr_voxels():
    locations = {1: np.array([[0, 0, 5, 6], [0, 6, 1, 2], [0, 19, 3, 3]]), (1, 2): []}
    converted = lr_class_locations(locations, 4, 2, 4)
    assert converted[1].tolist() == [[0, 0, 5, 6], [0, 1, 1, 2], [0, 3, 3, 3]]
    assert converted[1, 2] == []
    assert locations[1][1, 1] == 6  # not changed in place


def test_slice_window_repeats_lr_slices():
    lr = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    window = SliceWindow(lr, start=0, slices=12, repeat=4)
    every = slice(None)
    for first in range(12):
        for stop in range(first + 1, 13):
            np.testing.assert_array_equal(
                window[every, slice(first, stop), every, every], lr.repeat(4, axis=1)[:, first:stop]
            )


@pytest.mark.parametrize("probability", [0.0, 1.0, 0.5])
def test_the_true_acquisition_is_shown_at_phase_0_with_the_given_probability(probability):
    np.random.seed(3)  # noqa: NPY002
    data, labels = pseudo_hr_case(factor=2)
    lr = memory_dataset(-data[:1, ::2], labels[:, ::2])
    cases = PhasedCases(memory_dataset(data, labels), factor=2, lr_dataset=lr, true_lr_probability=probability)
    phases = {True: [], False: []}
    for _ in range(400):
        marked, _, true_labels, _ = cases.load_case("case")
        phases[true_labels is not None].append(marked.case.start)
    assert len(phases[True]) / 400 == pytest.approx(probability, abs=0.1)
    assert not any(phases[True])
    assert not phases[False] or np.mean(phases[False]) == pytest.approx(0.5, abs=0.1)  # the other phases stay uniform


def test_the_true_acquisition_covers_the_same_region():
    np.random.seed(4)  # noqa: NPY002
    data, labels = pseudo_hr_case()
    lr_image = data[:1].reshape(1, 5, 4, 6, 7).mean(2) + 100
    lr_labels = labels[:, 1::4] + 10
    cases = PhasedCases(
        memory_dataset(data, labels), factor=4, lr_dataset=memory_dataset(lr_image, lr_labels), true_lr_probability=1.0
    )
    loader = raw_loader(data, labels, patch=(3, 4, 5), batch_size=40)
    loader._data = SimpleNamespace(
        load_case=lambda i: cases.at_phase(i, cases.dataset.load_case(i), phase=0, use_true_lr=True)
    )
    batch = next(loader)
    assert batch["target"].shape[1] == 2
    for image, target in zip(batch["data"], batch["target"], strict=True):
        inside = image[1] > 0
        hr_slice = ((image[0] - 100) - 2.5)[inside] / 4  # LR slice index, from mean slice index 4 k + 2.5
        assert torch.equal(hr_slice, hr_slice.round())
        hr_labels, lr_repeated = (t[inside].reshape(-1, 4, 5) for t in target)
        k = hr_slice.reshape(-1, 4, 5)[:, 0, 0].long()
        assert torch.equal(k, k[::4].repeat_interleave(4))
        uncertainty = image[1][inside].reshape(-1, 4, 5)
        windows = np.lib.stride_tricks.sliding_window_view(data[1, 4 * k[0] : 4 * k[-1] + 4] + 1, (4, 5), axis=(1, 2))
        _, y0, x0 = np.argwhere((windows == uncertainty[:, None, None].numpy()).all((-1, -2)))[0]
        np.testing.assert_array_equal(lr_repeated, lr_labels[0, k, y0 : y0 + 4, x0 : x0 + 5])
        np.testing.assert_array_equal(hr_labels, labels[0, 4 * k[0] : 4 * k[-1] + 4, y0 : y0 + 4, x0 : x0 + 5])


def test_cases_on_disk_and_pickling(tmp_path):
    data, labels = pseudo_hr_case()
    store = CaseStore(tmp_path, "pseudo_hr")
    store.open_or_create(
        CaseManifest(dataset_name="d", plans_name="p", configuration="c", fold=0, trainer="t", weights_sha256="0")
    )
    unit = IntensityUnit(zero=(0.0,), length=(1.0,)).as_property()
    store.write_case("case", data, labels, unit, plan(LABELS, factor=4, patch_size=(3, 6, 7)))
    loader = HRPatchLoader(nnUNetDatasetBlosc2(str(store.folder)), 3, (3, 6, 7), (3, 6, 7), LABELS, factor=4)
    copied = pickle.loads(pickle.dumps(loader))
    batches = []
    for each in (loader, copied):
        np.random.seed(5)  # noqa: NPY002
        batches.append(next(each))
    assert torch.equal(batches[0]["data"], batches[1]["data"])
    assert batches[0]["keys"].tolist() == ["case"] * 3
    np.random.seed(5)  # noqa: NPY002
    stored = nnUNetDatasetBlosc2(str(store.folder)).load_case("case")
    reference = next(raw_loader(stored[0][:], labels, batch_size=3))
    assert torch.equal(batches[0]["data"], reference["data"])


@pytest.mark.parametrize("patch", [(20, 56, 40), (21, 56, 40), (24, 64, 64)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_initial_patch_size_is_nnunets_rule_for_the_hr_patch(patch, factor):
    rotation = (-np.pi / 6, np.pi / 6)
    size = initial_lr_patch_size(
        patch, factor, rotation=rotation, dummy_2d=False, stock_initial_patch_size=(53, 80, 60)
    )
    z, y, x = get_patch_size((factor * patch[0], *patch[1:]), rotation, rotation, rotation, (0.85, 1.25))
    assert size[1:] == (y, x)
    assert 0 <= factor * size[0] - z < 2 * factor
    assert (size[0] - patch[0]) % 2 == 0


def test_initial_patch_size_in_plane_is_nnunets():
    size = initial_lr_patch_size(
        (10, 56, 40), 4, rotation=(-np.pi, np.pi), dummy_2d=True, stock_initial_patch_size=np.array((10, 65, 65))
    )
    assert size == (10, 65, 65)


def test_refusals():
    data, labels = pseudo_hr_case()
    with pytest.raises(ValueError, match="patch_size must have 3 entries"):
        raw_loader(data, labels, patch=(6, 7))
    with pytest.raises(ValueError, match="by an even number of slices"):
        raw_loader(data, labels, initial=(4, 6, 7))
    with pytest.raises(ValueError, match="lr_dataset must be given"):
        raw_loader(data, labels, true_lr_probability=0.5)
    with pytest.raises(ValueError, match="slices of case case must be a multiple of 4, got 19"):
        next(raw_loader(data[:, :19], labels[:, :19]))
    wrong = memory_dataset(data[:1, :4], labels[:, :4])
    with pytest.raises(ValueError, match="LR case case must have shape"):
        next(raw_loader(data, labels, lr_dataset=wrong, true_lr_probability=1.0, batch_size=50))

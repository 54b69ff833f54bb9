"""From thick-slice cases to the cases that SMORE interpolates, and when stage 1 may use them."""

import os
import pickle

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan
from torch import nn

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.slices.slice_profile import interpolate
from rehrseg_nnunet.smore.export import (
    STORE_NAME,
    export_smore,
    smore_case,
    smore_cases,
    smore_weights,
    super_resolve_slices,
)
from rehrseg_nnunet.smore.network import WDSR, WDSROutput

FACTOR = 3
PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
CASES = ("case_1", "case_10", "case_2")


def lr_case(seed=0, lowest=-1, highest=2, shape=(4, 6, 7)):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    return image, rng.integers(lowest, highest + 1, size=(1, *shape)).astype(np.int8)


def network(heads=3, seed=0):
    torch.manual_seed(seed)
    return WDSR(2, heads, FACTOR, blocks=1, features=4).eval()


class Position(nn.Module):
    """Interface of WDSR: the image's first channel is the column of each pixel, the labels the row."""

    def __init__(self):
        super().__init__()
        self.factor = FACTOR
        self.weight = nn.Parameter(torch.zeros(1))
        self.planes = []

    def forward(self, slices):
        self.planes.append(tuple(slices.shape[2:]))
        maps = slices.repeat_interleave(FACTOR, dim=2)
        rows = torch.arange(maps.shape[2], dtype=maps.dtype)[:, None].expand(maps.shape[2:])
        columns = torch.arange(maps.shape[3], dtype=maps.dtype).expand(maps.shape[2:])
        return WDSROutput(columns.expand(len(maps), 1, -1, -1), rows.expand(len(maps), 1, -1, -1))


def test_x_z_and_y_z_slices_are_averaged():
    stub = Position()
    output = super_resolve_slices(stub, torch.zeros(2, 4, 6, 7), slices_per_batch=5)
    z, y, x = torch.meshgrid(*(torch.arange(float(n)) for n in (12, 6, 7)), indexing="ij")
    torch.testing.assert_close(output.image[0], (x + y) / 2)
    torch.testing.assert_close(output.labels[0], z)
    assert stub.planes == [(4, 7)] * 2 + [(4, 6)] * 2


def test_untrained_it_interpolates_the_volume():
    volume = torch.randn(5, 4, 6, 7)
    output = super_resolve_slices(network(), volume)
    torch.testing.assert_close(output.image, interpolate(volume[:2], FACTOR, 1, order=3), rtol=0, atol=1e-5)
    assert torch.equal(output.labels > 0, interpolate(volume[2:], FACTOR, 1, order=1) > 0.5)


def test_the_network_sees_image_and_labels_of_each_slice():
    """A trained network's slices, one by one."""
    wdsr = network()
    for parameter in wdsr.parameters():
        nn.init.normal_(parameter, std=0.1)
    volume = torch.randn(5, 4, 6, 7)
    output = super_resolve_slices(wdsr, volume, slices_per_batch=4)
    with torch.no_grad():
        along_x, along_y = wdsr(volume[None, :, :, 2]), wdsr(volume[None, :, :, :, 5])
    for found, x, y in zip(output, along_x, along_y, strict=True):
        torch.testing.assert_close(found[:, :, 2, 5], (x[0, :, :, 5] + y[0, :, :, 2]) / 2)


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
def test_unknown_voxels_are_stamped_back(manager):
    image, labels = lr_case(highest=3 if manager is IGNORE else 2)
    heads = manager.num_segmentation_heads
    fine = smore_case(network(heads), image, labels, manager)
    assert fine[0].shape == (2, 12, 6, 7)
    assert fine[0].dtype == np.float32
    nearest = labels.repeat(FACTOR, axis=1)
    unknown = (nearest == -1) | (nearest == 3)
    np.testing.assert_array_equal(fine[1][unknown], nearest[unknown])
    assert ((fine[1] >= 0) & (fine[1] < 3))[~unknown].all()
    centres = (slice(None), slice(1, None, FACTOR))  # odd factor: the thick slices' own centres
    np.testing.assert_array_equal(fine[1][centres], labels)
    np.testing.assert_allclose(fine[0][centres], image, atol=1e-5)


def save(folder, identifier, seed):
    image, labels = lr_case(seed)
    for file in folder.glob(f"{identifier}[._]*"):  # blosc2 does not overwrite
        file.unlink()
    properties = {"spacing": [3.0, 1.0, 1.0], "class_locations": {1: "stale"}}
    nnUNetDatasetBlosc2.save_case(
        image, labels, properties, str(folder / identifier), chunks=(1, 4, 6, 7), blocks=(1, 4, 6, 7)
    )
    return image, labels


PLANNED = plan(PLAIN, factor=FACTOR, patch_size=(4, 6, 7))


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "preprocessed"
    folder.mkdir()
    for seed, identifier in enumerate(CASES):
        save(folder, identifier, seed)
    return nnUNetDatasetBlosc2(str(folder), list(CASES))


@pytest.fixture
def run(tmp_path):
    """A finished SMORE run without cases."""
    run = FoldRun("Dataset009_X", "SMORETrainer", "p", "c", 0, tmp_path)
    run.folder.mkdir(parents=True)
    torch.save({"network_weights": network().state_dict()}, run.final_checkpoint)
    return run


def opened(run):
    """The store of a run, as its export opens it."""
    store = CaseStore(run.folder, STORE_NAME)
    weights = hash_weights(network().state_dict())
    store.open_or_create(CaseManifest.of_run(run, weights_sha256=weights, made_with={"factor": FACTOR}))
    return store


def export(run, dataset, identifiers=CASES):
    store = opened(run)
    export_smore(network(), dataset, identifiers, store, PLANNED)
    return store


def cases_of(run, dataset, identifiers=CASES, factor=FACTOR):
    return smore_cases(run, dataset, iter(identifiers), factor=factor)


def test_cases_are_written_in_the_form_of_the_interpolated_ones(run, dataset):
    store = export(run, dataset)
    assert store.folder == run.folder / "interpolated"
    assert nnUNetDatasetBlosc2(str(store.folder)).identifiers == list(CASES)
    written = cases_of(run, dataset)
    assert written.identifiers == list(CASES)
    assert written.source_folder == str(store.folder)
    for identifier in CASES:
        image, labels, _, properties = written.load_case(identifier)
        stored = dataset.load_case(identifier)
        expected = smore_case(network(), stored[0][:], stored[1][:], PLAIN)
        np.testing.assert_array_equal(image[:], expected[0])
        np.testing.assert_array_equal(labels[:], expected[1])
        assert properties["spacing"] == [3.0, 1.0, 1.0]
        locations = class_locations(expected[1].astype(np.int8), PLAIN)
        assert locations.keys() == properties["class_locations"].keys()
        for label, voxels in properties["class_locations"].items():
            np.testing.assert_array_equal(voxels, locations[label])


def test_only_missing_and_outdated_cases_are_written_again(run, dataset):
    store = export(run, dataset)
    before = {i: (store.folder / f"{i}.pkl").stat().st_mtime_ns for i in CASES}
    (store.folder / "case_1_seg.b2nd").unlink()
    image, _ = save(dataset_folder := run.results / "preprocessed", "case_2", 7)
    for file in dataset_folder.glob("case_2[._]*"):
        os.utime(file, ns=(2**60, 2**60))
    with pytest.raises(ValueError, match=r"case_1_seg.b2nd is missing; run: nnUNetv2_train .* SMORETrainer .* --val"):
        cases_of(run, dataset)
    with pytest.raises(ValueError, match=r"case_2.b2nd must be as new as the preprocessed case.*; run: "):
        cases_of(run, dataset, ("case_10", "case_2"))
    export(run, dataset)
    after = {i: (store.folder / f"{i}.pkl").stat().st_mtime_ns for i in CASES}
    assert {i for i in CASES if before[i] != after[i]} == {"case_1", "case_2"}
    centres = nnUNetDatasetBlosc2(str(store.folder), ["case_2"]).load_case("case_2")[0][:, 1::FACTOR]
    np.testing.assert_allclose(centres, image, atol=1e-5)
    assert cases_of(run, dataset).source_folder == str(store.folder)


def test_a_run_without_all_cases_is_not_used(run, dataset):
    assert smore_weights(run) is None
    with pytest.raises(FileNotFoundError, match=r"interpolated.json does not exist"):
        cases_of(run, dataset)
    export(run, dataset, CASES[:2])
    assert cases_of(run, dataset, CASES[:2]).identifiers == list(CASES[:2])
    with pytest.raises(FileNotFoundError, match=r"case_2.b2nd: the case was not written"):
        cases_of(run, dataset)


def test_cases_of_other_weights_or_settings_are_not_used(run, dataset):
    export(run, dataset)
    with pytest.raises(ValueError, match="has factor 3, not 4"):
        cases_of(run, dataset, factor=4)
    assert smore_weights(run) == hash_weights(network().state_dict())
    torch.save({"network_weights": network().state_dict()}, run.best_checkpoint)
    torch.save({"network_weights": {"other": torch.zeros(1)}}, run.final_checkpoint)
    assert cases_of(run, dataset).identifiers == list(CASES)  # the best checkpoint made them
    run.best_checkpoint.unlink()
    with pytest.raises(ValueError, match="the checkpoint was replaced after the export"):
        cases_of(run, dataset)


def test_nan_is_refused(run, dataset):
    broken = network()
    nn.init.constant_(broken.residual.bias, float("nan"))
    store = opened(run)
    with pytest.raises(ValueError, match=r"case_1: .* must be finite"):
        export_smore(broken, dataset, CASES, store, PLANNED)
    assert store.complete_cases() == []


def test_the_stored_properties_are_the_cases_own(run, dataset):
    store = export(run, dataset)
    with (store.folder / "case_1.pkl").open("rb") as stream:
        properties = pickle.load(stream)
    assert properties["spacing"] == [3.0, 1.0, 1.0]
    assert set(properties["rehrseg_source"]) == {"case_1.b2nd", "case_1_seg.b2nd", "case_1.pkl"}

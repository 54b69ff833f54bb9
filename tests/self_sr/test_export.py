"""From LR cases to pseudo-HR cases on disk."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from planned import plan
from torch import nn

from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.config.self_sr import ExportConfig
from rehrseg_nnunet.nnunet.label_channels import head_labels
from rehrseg_nnunet.self_sr.calibration import Calibration
from rehrseg_nnunet.self_sr.export import (
    STORE_NAME,
    ExportOptions,
    export_pseudo_hr,
    label_agreement,
    robust_min_max,
    super_resolve_case,
)
from rehrseg_nnunet.self_sr.network import SelfSRNetwork, SelfSROutput, interpolate_middle
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade

FACTOR = 3
NETWORK_ALONE = ExportConfig(back_projection_steps=0, volume_offsets=False)
PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
REGIONS_IGNORE = LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2])


class Interpolating(nn.Module):
    """Interface of the self-SR network: interpolates image and labels; U is the slice number in the window."""

    def __init__(self, image_channels=1, sign=1.0):
        super().__init__()
        self.factor, self.image_channels, self.sign = FACTOR, image_channels, sign
        self.weight = nn.Parameter(torch.zeros(1))
        self.windows = 0

    def forward(self, window):
        self.windows += len(window)
        maps = interpolate_middle(window, FACTOR)
        image, labels = maps[:, : self.image_channels], maps[:, self.image_channels :]
        return SelfSROutput(image, self.sign * (labels - 0.5), torch.rand_like(image[:, :1]))


def lr_case(highest=2, lowest=0, slices=4, plane=(6, 7), channels=1, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(channels, slices, *plane)).astype(np.float32)
    return image, rng.integers(lowest, highest + 1, size=(1, slices, *plane)).astype(np.int8)


def restore(network, image, labels, manager, config=NETWORK_ALONE):
    return super_resolve_case(network, image, labels, manager, config=config)


def centres(volume):
    """HR slices at the LR slices' own centres (odd factor)."""
    return volume[:, FACTOR // 2 :: FACTOR]


@pytest.mark.parametrize("manager", [PLAIN, REGIONS])
def test_a_network_that_interpolates_keeps_image_and_labels_at_the_centres(manager):
    image, labels = lr_case(channels=2)
    hr = restore(Interpolating(2), image, labels, manager)
    assert hr.image.shape == (2, 12, 6, 7)
    assert hr.uncertainty.shape == hr.labels.shape == (1, 12, 6, 7)
    assert hr.labels.dtype == np.int16
    np.testing.assert_allclose(centres(hr.image), image, atol=1e-5)
    np.testing.assert_array_equal(centres(hr.labels), labels)


@pytest.mark.parametrize("manager", [IGNORE, REGIONS_IGNORE])
def test_unknown_voxels_are_stamped_back_from_the_nearest_slice(manager):
    image, labels = lr_case(highest=3, lowest=-1)
    hr = restore(Interpolating(), image, labels, manager)
    nearest = labels.repeat(FACTOR, axis=1)
    for value in (-1, 3):
        np.testing.assert_array_equal(hr.labels == value, nearest == value)


def test_without_an_ignore_label_only_minus_one_is_stamped():
    image, labels = lr_case(lowest=-1)
    hr = restore(Interpolating(), image, labels, PLAIN)
    np.testing.assert_array_equal(hr.labels == -1, labels.repeat(FACTOR, axis=1) == -1)
    assert set(np.unique(hr.labels)) == {-1, 0, 1, 2}


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS, REGIONS_IGNORE])
def test_volumes_are_those_of_the_thick_labels(manager):
    """Of a network that sees structures too large."""
    image, labels = lr_case(highest=3 if manager.has_ignore_label else 2, slices=8, plane=(24, 24))
    network = Interpolating()
    network.forward = lambda window, stock=network.forward: _too_large(stock(window), manager)
    config = NETWORK_ALONE.model_copy(update={"volume_offsets": True})
    volumes = [restore(network, image, labels, manager, config=c).labels for c in (NETWORK_ALONE, config)]
    for group in head_labels(manager):
        wanted = FACTOR * np.isin(labels, group).sum()
        before, after = (np.isin(volume, group).sum() / wanted for volume in volumes)
        assert after == pytest.approx(1, abs=0.01)
        assert abs(before - 1) > 0.1


def _too_large(output, manager):
    noise = torch.randn(output.labels.shape, generator=torch.Generator().manual_seed(0))
    if manager.has_regions:
        noise[:, 1:] = noise[:, :1]  # so that one region stays inside the other
    larger = torch.full((output.labels.shape[1], 1, 1, 1), 0.3)
    if not manager.has_regions:
        larger[0] = 0
    return output._replace(labels=output.labels + 0.5 * noise + larger)


def test_the_image_can_be_smores_and_labels_stay_the_networks():
    image, labels = lr_case()
    rng = np.random.default_rng(1)
    smore_image = rng.normal(size=(1, 12, 6, 7)).astype(np.float32)
    own = NETWORK_ALONE.model_copy(update={"image": "self_sr"})
    smore = NETWORK_ALONE.model_copy(update={"image": "smore"})

    def export(config, given):
        network = Interpolating()
        return super_resolve_case(network, image, labels, PLAIN, config=config, smore_image=given)

    np.testing.assert_array_equal(export(smore, smore_image).image, smore_image)
    np.testing.assert_array_equal(export(own, smore_image).image, export(smore, None).image)
    np.testing.assert_array_equal(export(smore, smore_image).labels, export(own, None).labels)
    projected = export(smore.model_copy(update={"back_projection_steps": 1}), smore_image).image
    misfit = [
        np.abs(degrade(torch.from_numpy(candidate), FACTOR, 1).numpy() - image).mean()
        for candidate in (projected, smore_image)
    ]
    assert misfit[0] < misfit[1]


def test_minus_one_is_background_for_its_neighbours():
    """Beside -1, the network must see background and not an unknown voxel."""
    image = np.zeros((1, 2, 1, 2), np.float32)
    labels = np.array([[[[-1, 1]], [[0, 1]]]], dtype=np.int8)
    hr = restore(Interpolating(), image, labels, PLAIN)
    np.testing.assert_array_equal(hr.labels[0, :, 0, 0], [-1, -1, -1, 0, 0, 0])


def test_back_projection_brings_the_image_closer_to_the_acquired_one():
    image, labels = lr_case(slices=6)
    gaps = []
    for steps in range(4):
        hr = restore(
            Interpolating(), image, labels, PLAIN, NETWORK_ALONE.model_copy(update={"back_projection_steps": steps})
        )
        gaps.append(np.abs(degrade(torch.from_numpy(hr.image), FACTOR, 1).numpy() - image).mean())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[2] < 0.3 * gaps[0]


def test_uncertainty_is_scaled_robustly():
    uncertainty = np.random.default_rng(0).random((20, 20, 20))
    uncertainty[0, 0, 0] = 1e6
    scaled = robust_min_max(uncertainty)
    assert scaled.dtype == np.float32
    assert (scaled.min(), scaled.max()) == (0, 1)
    assert np.median(scaled) == pytest.approx(0.5, abs=0.05)  # one hot voxel flattens plain min-max to 0
    assert (robust_min_max(np.full((2, 2), 0.3)) == 0).all()
    with pytest.raises(ValueError, match="uncertainty must be finite"):
        robust_min_max(np.array([0.0, np.nan]))


def test_agreement_is_the_mean_dice_of_the_classes_that_occur():
    reference = np.array([0, 1, 1, 2, 2, 0])
    labels = np.array([0, 1, 0, 2, 2, 0])
    groups = [(0,), (1,), (2,)]
    assert label_agreement(reference, reference, groups) == 1
    assert label_agreement(labels, reference, groups) == pytest.approx((2 / 3 + 1) / 2)
    assert label_agreement(labels, reference, [(0,), (1,), (2,), (5,)]) == pytest.approx((2 / 3 + 1) / 2)
    assert label_agreement(labels, reference, [(1, 2), (2,)]) == pytest.approx((6 / 7 + 1) / 2)
    assert label_agreement(np.where(labels == 2, 0, labels), reference, groups) == pytest.approx(1 / 3)
    assert np.isnan(label_agreement(reference * 0, reference * 0, groups))


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "lr"
    folder.mkdir()
    ball = np.zeros((6, 8, 8), np.int8)
    ball[1:5, 2:6, 2:6] = 1
    for number, identifier in enumerate(("a", "b", "c")):
        image = np.random.default_rng(number).normal(size=(1, 6, 8, 8)).astype(np.float32)
        nnUNetDatasetBlosc2.save_case(
            image,
            ball[None],
            {"spacing": [3.0, 1.0, 1.0]},
            str(folder / identifier),
            chunks=(1, 6, 8, 8),
            blocks=(1, 6, 8, 8),
        )
    return nnUNetDatasetBlosc2(str(folder))


@pytest.fixture
def store(tmp_path):
    store = CaseStore(tmp_path, STORE_NAME)
    store.open_or_create(
        CaseManifest(
            dataset_name="Dataset009_X",
            plans_name="p",
            configuration="3d_fullres",
            fold=0,
            trainer="SelfSRTrainer",
            weights_sha256="0" * 64,
        )
    )
    return store


def export(network, dataset, identifiers, store, config=NETWORK_ALONE, **options):
    planned = plan(PLAIN, factor=FACTOR, patch_size=(3, 8, 8))
    options = ExportOptions(config, **options)
    return export_pseudo_hr(network, dataset, identifiers, store, planned, options=options)


def test_missing_cases_are_written_once(dataset, store):
    network = Interpolating()
    agreement = export(network, dataset, iter(["a", "b"]), store)
    assert agreement == {"a": 1, "b": 1}
    assert store.complete_cases() == ["a", "b"]
    windows = network.windows
    assert windows == 2 * 7
    assert set(export(network, dataset, ["a", "b", "c"], store)) == {"c"}
    assert network.windows == windows + 7
    assert export(network, dataset, ["a", "b", "c"], store) == {}


def test_what_is_written_is_what_the_network_said(dataset, store):
    torch.manual_seed(0)
    export(Interpolating(), dataset, ["a"], store)
    image, labels, _, _ = dataset.load_case("a")
    torch.manual_seed(0)
    expected = restore(Interpolating(), image[:], labels[:], PLAIN)
    data, seg, _, properties = nnUNetDatasetBlosc2(str(store.folder)).load_case("a")
    np.testing.assert_array_equal(data[:1], expected.image)
    np.testing.assert_allclose(data[1], robust_min_max(expected.uncertainty)[0], atol=1e-6)
    np.testing.assert_array_equal(seg[:], expected.labels)
    assert properties["spacing"] == [3.0, 1.0, 1.0]
    assert IntensityUnit.of_properties(properties) == IntensityUnit.of_case(image[:])
    smooth = interpolate_labels(labels[:][0], FACTOR, 0, spacing_mm=(3, 1, 1))
    assert (seg[:][0] == smooth).mean() > 0.9


def test_u_is_stored_as_the_probability_that_the_label_is_wrong(dataset, store):
    calibration = Calibration(uncertainty=(0.0, 0.5, 1.0), wrong=(0.1, 0.1, 0.3))
    torch.manual_seed(0)
    export(Interpolating(), dataset, ["a"], store, calibration=calibration)
    torch.manual_seed(0)
    image, labels, _, _ = dataset.load_case("a")
    raw = restore(Interpolating(), image[:], labels[:], PLAIN).uncertainty[0]
    stored = nnUNetDatasetBlosc2(str(store.folder)).load_case("a")[0][1]
    np.testing.assert_allclose(stored, np.interp(raw, (0.5, 1), (0.1, 0.3)), atol=1e-6)


@pytest.mark.parametrize("mode", ["residual", "direct"])
@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (400.0, -3000.0)])
def test_scale_and_offset_of_a_case_change_neither_labels_nor_u(mode, scale, offset):
    torch.manual_seed(0)
    network = SelfSRNetwork(2, 3, FACTOR, base_features=2, candidates=3, image_mode=mode, label_mode="direct").eval()
    torch.nn.init.normal_(network.head.image_branch.weight)  # the mixture matters
    image, labels = lr_case(channels=2, plane=(12, 14))
    moved = (scale * image.astype(np.float64) + offset).astype(np.float32)
    config = NETWORK_ALONE.model_copy(update={"back_projection_steps": 2})
    first, second = (restore(network, i, labels, PLAIN, config) for i in (image, moved))
    assert (first.labels == second.labels).mean() > 0.999  # but for a logit within rounding of another
    for kind in ("uncertainty", "network_uncertainty"):
        np.testing.assert_allclose(getattr(second, kind), getattr(first, kind), atol=2e-3)
    np.testing.assert_allclose((second.image - offset) / scale, first.image, atol=5e-3)
    assert first.network_uncertainty.std() > 1e-3


def test_a_network_that_inverts_the_labels_is_noticed(dataset, store):
    assert export(Interpolating(sign=-1), dataset, ["a"], store)["a"] < 0.5


class Broken(Interpolating):
    """Its image or its uncertainty is not finite anywhere."""

    def __init__(self, part, value):
        super().__init__()
        self.part, self.value = part, value

    def forward(self, window):
        output = super().forward(window)
        return output._replace(**{self.part: torch.full_like(getattr(output, self.part), self.value)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["image", "uncertainty"])
def test_what_is_not_finite_is_refused(dataset, store, part, value):
    with pytest.raises(ValueError, match=r"a: pseudo-HR image and uncertainty must be finite.*smaller learning_rate"):
        export(Broken(part, value), dataset, ["a"], store)
    assert store.complete_cases() == []


def test_smores_images_are_those_of_the_same_case(dataset, store, tmp_path):
    smore = {i: np.full((1, 18, 8, 8), number, np.float32) for number, i in enumerate("abc")}
    folder = tmp_path / "smore"
    folder.mkdir()
    for identifier, image in smore.items():
        sizes = {"chunks": image.shape, "blocks": image.shape}
        labels = np.zeros((1, 18, 8, 8), np.int8)
        nnUNetDatasetBlosc2.save_case(image, labels, {}, str(folder / identifier), **sizes)
    config = NETWORK_ALONE.model_copy(update={"image": "smore"})
    export(Interpolating(), dataset, ["a", "c"], store, config, smore=nnUNetDatasetBlosc2(str(folder)))
    written = nnUNetDatasetBlosc2(str(store.folder))
    for identifier in ("a", "c"):
        np.testing.assert_array_equal(written.load_case(identifier)[0][:1], smore[identifier])


def test_cases_older_than_the_preprocessed_ones_are_written_anew(dataset, store):
    export(Interpolating(), dataset, ["a", "b"], store)
    file = Path(dataset.source_folder, "b.pkl")
    file.write_bytes(pickle.dumps({"spacing": [3.0, 1.0, 2.0]}))
    assert set(export(Interpolating(), dataset, ["a", "b"], store)) == {"b"}

"""The transform pipeline of stage 2: physics of the degradation, agreement of all targets, nnU-Net's shapes."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.rot90 import Rot90Transform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.segmentation.loader import HRPatchLoader
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.segmentation.transforms import (
    HALO_LR_SLICES,
    LRLabelTransform,
    TakeUncertaintyOut,
    ThinScales,
    at_centres,
    build_training_transforms,
)
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, half_support

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "c": 3}, None)
SCALES = [[1, 1, 1], [1, 0.5, 0.5], [0.5, 0.25, 0.25]]
UNIT = IntensityUnit(zero=(0.5, -1.0), length=(3.0, 2.0))


@pytest.fixture(autouse=True)
def ties_go_to(monkeypatch):
    """What would be drawn: the lower side unless a test says otherwise."""

    def choose(upper_ties):
        monkeypatch.setattr(LRLabelTransform, "get_parameters", lambda *_, **__: {"upper_ties": upper_ties})

    choose(False)
    return choose


def stock_transforms(patch, *, dummy_2d=True, mirror_axes=(0, 1, 2), use_mask=(False, False), **options):
    return nnUNetTrainer.get_training_transforms(
        patch,
        (-np.pi, np.pi),
        options.pop("deep_supervision_scales", None),
        mirror_axes,
        dummy_2d,
        use_mask_for_norm=list(use_mask),
        **options,
    )


def fixed(patch, *, dummy_2d, mirror_axes=(), use_mask=False, rotation=None):
    """nnU-Net's list without its intensity transforms and with a fixed or no rotation, mirroring always."""
    spatial = SpatialTransform(
        patch[1:] if dummy_2d else patch,
        0,
        False,
        p_rotation=float(rotation is not None),
        rotation=rotation or 0.0,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    transforms = [Convert3DTo2DTransform(), spatial, Convert2DTo3DTransform()] if dummy_2d else [spatial]
    if mirror_axes:
        transforms.append(AlwaysMirror(mirror_axes))
    if use_mask:
        transforms.append(MaskImageTransform([0], 0, 0))
    return ComposeTransforms([*transforms, RemoveLabelTransform(-1, 0)])


class AlwaysMirror(MirrorTransform):
    def get_parameters(self, **data_dict):
        return {"axes": list(self.allowed_axes)}


def memory_dataset(data, labels, label_manager=LABELS):
    properties = {"class_locations": class_locations(labels, label_manager), **UNIT.as_property()}
    return SimpleNamespace(identifiers=["case"], load_case=lambda _: (data, labels, None, properties))


def volume(factor, lr_slices=6, in_plane=(9, 8), channels=2, seed=0):
    """Two image channels, U, and blobs of labels (-1 included)."""
    rng = np.random.default_rng(seed)
    shape = (lr_slices * factor, *in_plane)
    data = rng.normal(size=(channels, *shape))
    coarse = rng.integers(-1, 4, size=(1, lr_slices * 2, 3, 4))
    labels = np.repeat(np.repeat(np.repeat(coarse, -(-factor // 2), 1)[:, : shape[0]], 3, 2), 2, 3)
    return np.concatenate([data, rng.random((1, *shape))]).astype(np.float32), labels[..., :9, :8].astype(np.int8)


def sample_at(data, labels, first_lr_slice, *, factor, phase, patch, transforms, lr=None, normalise_uncertainty=False):
    """One sample at a known place, cropped by the loader's own code: image, LR labels, the other targets."""
    loader = HRPatchLoader(
        memory_dataset(data, labels),
        1,
        patch,
        patch,
        LABELS,
        factor=factor,
        transforms=transforms,
        normalise_uncertainty=normalise_uncertainty,
    )
    cases = copy.copy(loader._data)
    cases.lr_dataset = None if lr is None else memory_dataset(*lr)
    case = cases.dataset.load_case("case")
    loader._data = SimpleNamespace(load_case=lambda i: cases.at_phase(i, case, phase=phase, use_true_lr=lr is not None))
    start, stop = (k * factor for k in (first_lr_slice - HALO_LR_SLICES, first_lr_slice + patch[0] + HALO_LR_SLICES))
    loader.get_bbox = lambda *_: ([start, 0, 0], [stop, *patch[1:]])
    batch = next(loader)
    lr_labels, others = split(batch["target"])
    return batch["data"][0], [t[0] for t in lr_labels], PatchTargets(*(t[0] for t in others))


def split(targets):
    """LR labels per scale, and the rest."""
    count = len(PatchTargets._fields)
    return targets[:-count], PatchTargets(*targets[-count:])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_the_halo_covers_the_slice_profile(factor):
    assert HALO_LR_SLICES * factor >= half_support(factor)


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("factor", [3, 4])
@pytest.mark.parametrize("first", [-2, 1, 4])
def test_patch_equals_a_crop_of_the_degraded_volume_at_every_phase(factor, first, dummy_2d):
    data, labels = volume(factor)
    patch = (3, 9, 8)
    transforms = build_training_transforms(fixed(patch, dummy_2d=dummy_2d), factor=factor, highest_label=3)
    for phase in range(factor):
        image, [lr_labels], (hr_labels, uncertainty, unaugmented, inside, _) = sample_at(
            data, labels, first, factor=factor, phase=phase, patch=patch, transforms=transforms
        )
        slices = (data.shape[1] - phase) // factor
        shifted = slice(phase, phase + slices * factor)
        whole = torch.from_numpy(data[:, shifted])
        whole_labels = torch.from_numpy(labels[:, shifted])
        real = [k for k in range(first, first + 3) if 0 <= k < slices]
        at = [k - first for k in real]
        padding = [k for k in range(3) if k not in at]
        torch.testing.assert_close(image[:, at], degrade(whole[:-1], factor, 1)[:, real])
        centre = [(factor - 1) // 2, factor // 2]  # of a thick slice, as its labels
        expected_u = whole[-1:].unflatten(1, (-1, factor))[:, :, centre].mean(2)
        torch.testing.assert_close(uncertainty[:, at], expected_u[:, real])
        hr = whole_labels.unflatten(1, (-1, factor))[:, real]
        assert torch.equal(hr_labels.unflatten(1, (-1, factor))[:, at], hr.clamp(min=0))
        expected = degrade_labels(whole_labels, factor, 1)[:, real].clamp(min=0)
        assert torch.equal(lr_labels[:, at], expected.to(lr_labels.dtype))
        torch.testing.assert_close(UNIT.undo(unaugmented), image)
        assert inside.flatten().tolist() == [k in at for k in range(3)]
        assert (image[:, padding] == 0).all()
        assert (uncertainty[:, padding] == 0).all()
        assert (lr_labels[:, padding] == 0).all()
        assert (hr_labels.unflatten(1, (-1, factor))[:, padding] == 0).all()


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("factor", [3, 4])
@pytest.mark.parametrize("axes", [(0,), (0, 1, 2)])
def test_flips_move_every_part_alike(factor, axes, dummy_2d):
    data, labels = volume(factor)
    patch = (4, 9, 8)
    options = {"factor": factor, "highest_label": 3, "hr_uncertainty": True}
    common = {"factor": factor, "phase": 1, "patch": patch}
    plain = build_training_transforms(fixed(patch, dummy_2d=dummy_2d), **options)
    mirrored = build_training_transforms(fixed(patch, dummy_2d=dummy_2d, mirror_axes=axes), **options)
    dims = [a + 1 for a in axes]
    image, lr, others = sample_at(data, labels, 2, transforms=plain, **common)
    flipped, flipped_lr, flipped_others = sample_at(data, labels, 2, transforms=mirrored, **common)
    torch.testing.assert_close(flipped, image.flip(dims))
    for one, other in zip([*flipped_lr, *flipped_others], [*lr, *others], strict=True):
        torch.testing.assert_close(one, other.flip(dims))
    # flipping along z commutes with the degradation: the flipped patch is a degraded flipped volume
    slices = (data.shape[1] - 1) // factor
    shifted = slice(1, 1 + slices * factor)
    turned = [np.ascontiguousarray(np.flip(a[:, shifted], dims)) for a in (data, labels)]
    first = slices - 6 if 0 in axes else 2
    again, again_lr, again_others = sample_at(*turned, first, transforms=plain, **{**common, "phase": 0})
    torch.testing.assert_close(again, flipped)
    for one, other in zip([*again_lr, *again_others], [*flipped_lr, *flipped_others], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_all_targets_agree_under_nnunets_full_augmentation(factor, dummy_2d):
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    data, labels = volume(factor)
    patch = (4, 8, 6)
    transforms = build_training_transforms(stock_transforms(patch, dummy_2d=dummy_2d), factor=factor, highest_label=3)
    initial = (4, 10, 9) if dummy_2d else (6, 10, 9)
    loader = HRPatchLoader(
        memory_dataset(data, labels), 16, initial, patch, LABELS, factor=factor, transforms=transforms
    )
    batch = next(loader)
    _, (hr_labels, uncertainty, unaugmented, inside, hr_uncertainty) = split(batch["target"])
    assert batch["data"].shape == (16, 2, 4, 8, 6)
    assert hr_labels.shape == (16, 1, 4 * factor, 8, 6)
    assert uncertainty.shape == (16, 1, 4, 8, 6)
    assert unaugmented.shape == batch["data"].shape
    assert (inside.shape, inside.dtype) == ((16, 1, 4, 1, 1), torch.bool)
    assert hr_uncertainty.numel() == 0
    assert (batch["data"].dtype, hr_labels.dtype, uncertainty.dtype) == (torch.float32, torch.int8, torch.float32)
    assert torch.isfinite(batch["data"]).all()
    assert uncertainty.min() >= 0
    assert uncertainty.max() <= 1
    assert set(hr_labels.unique().tolist()) == {0, 1, 2, 3}
    assert batch["keys"].tolist() == ["case"] * 16


def test_either_side_of_ties_is_drawn(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    transform = LRLabelTransform(4)
    labels = torch.tensor([1, 1, 2, 2]).view(1, 4, 1, 1)
    drawn = [transform(segmentation=labels)["segmentation"].item() for _ in range(100)]
    assert 30 < drawn.count(1) < 70
    assert drawn.count(1) + drawn.count(2) == 100


@pytest.mark.parametrize("upper_ties", [False, True])
@pytest.mark.parametrize("dummy_2d", [True, False])
def test_lr_labels_are_the_degraded_hr_labels_after_rotation_and_flips(dummy_2d, upper_ties, ties_go_to):
    ties_go_to(upper_ties)
    data, labels = volume(4)
    labels = labels.clip(0)  # -1 votes as a value of its own before it becomes 0
    labels[labels == 0] = 1  # only padding is 0 in the result, where both are padding
    patch = (6, 9, 8)
    stock = fixed(patch, dummy_2d=dummy_2d, mirror_axes=(0, 2), rotation=0.3)
    transforms = build_training_transforms(stock, factor=4, highest_label=3)
    _, [lr_labels], (hr_labels, *_) = sample_at(data, labels, 0, factor=4, phase=0, patch=patch, transforms=transforms)
    with_padding = torch.where(hr_labels == 0, -1, hr_labels)
    expected = degrade_labels(with_padding, 4, 1, upper_ties=upper_ties)
    assert torch.equal(lr_labels, expected.where(expected > 0, 0).to(lr_labels.dtype))


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("rotation", [None, 0.35])
def test_uncertainty_stays_on_its_structure(dummy_2d, rotation):
    factor, shape = 4, (24, 16, 16)
    data = np.zeros((3, *shape), dtype=np.float32)
    data[:, 9:15, 9:12, 3:6] = 1  # the same marker in image and U, away from the centre
    labels = (data[:1] > 0).astype(np.int8)
    patch = (6, 16, 16)
    stock = fixed(patch, dummy_2d=dummy_2d, mirror_axes=(0, 1), rotation=rotation)
    transforms = build_training_transforms(stock, factor=factor, highest_label=1)
    image, _, (hr_labels, uncertainty, *_) = sample_at(
        data, labels, 0, factor=factor, phase=0, patch=patch, transforms=transforms
    )

    def centroid(mass, scale):
        grid = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in mass.shape], indexing="ij"))
        position = (grid * mass).sum((1, 2, 3)) / mass.sum()
        position[0] = scale * position[0] + (scale - 1) / 2
        return position

    assert (centroid(image[0], factor) - centroid(uncertainty[0], factor)).abs().max() < 0.4
    assert (centroid(image[0], factor) - centroid(hr_labels[0].float(), 1)).abs().max() < 0.4


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("true_lr", [True, False])
def test_uncertainty_of_thin_slices_is_that_of_the_case(dummy_2d, true_lr):
    """Also on true acquisitions, whose HR labels are pseudo labels."""
    factor, patch = 4, (3, 9, 8)
    data, labels = volume(factor)
    lr = (data[:-1, ::factor], labels[:, ::factor]) if true_lr else None
    transforms = build_training_transforms(
        fixed(patch, dummy_2d=dummy_2d), factor=factor, highest_label=3, hr_uncertainty=True
    )
    _, _, targets = sample_at(data, labels, 2, factor=factor, phase=0, patch=patch, transforms=transforms, lr=lr)
    whole = torch.from_numpy(data[-1:, 8:20])
    torch.testing.assert_close(targets.hr_uncertainty, whole)
    torch.testing.assert_close(targets.uncertainty, torch.zeros(1, *patch) if true_lr else at_centres(whole, factor))


@pytest.mark.parametrize("dummy_2d", [True, False])
@pytest.mark.parametrize("phase", [0, 3])
def test_uncertainty_is_downsampled_first_and_brought_to_0_and_1_then(dummy_2d, phase):
    """Eq. 7: an average of r thin slices is never as extreme as one, so the other order keeps the weights high."""
    factor, patch = 4, (5, 9, 8)
    data, labels = volume(factor, lr_slices=40)
    transforms = build_training_transforms(fixed(patch, dummy_2d=dummy_2d), factor=factor, highest_label=3)
    found = [
        sample_at(
            data,
            labels,
            first,
            factor=factor,
            phase=phase,
            patch=patch,
            transforms=transforms,
            normalise_uncertainty=True,
        )[2].uncertainty
        for first in range(0, 35, 5)
    ]
    centre = [(factor - 1) // 2, factor // 2]  # of a thick slice, as its labels
    phases = range(data.shape[1] - factor + 1)  # where a thick slice can begin
    thick = np.stack([data[-1, k : k + factor][centre].mean(0) for k in phases])
    low, high = np.percentile(thick, (0.5, 99.5))
    expected = (thick[phase::factor][:35] - low) / (high - low)
    np.testing.assert_allclose(torch.cat(found, dim=1)[0], expected.clip(0, 1), atol=1e-5)
    assert expected.min() < 0.05 < 0.95 < expected.max()


def test_padding_is_certain_background_after_rotation():
    patch = (6, 9, 8)
    data, labels = volume(4)
    data[-1] = 1
    transforms = build_training_transforms(fixed(patch, dummy_2d=False, rotation=0.4), factor=4, highest_label=3)
    image, _, targets = sample_at(data, labels, 0, factor=4, phase=0, patch=patch, transforms=transforms)
    uncertainty = targets.uncertainty
    padding = (image == 0).all(0)
    assert padding.any()
    assert (uncertainty[0][padding] == 0).all()
    assert (uncertainty[0][~padding] > 0).all()


def test_in_plane_augmentation_commutes_with_the_degradation():
    factor, patch = 4, (3, 9, 8)
    data, labels = volume(factor)
    stock = fixed(patch, dummy_2d=True, rotation=0.5)
    transforms = build_training_transforms(stock, factor=factor, highest_label=3)
    image, *_ = sample_at(data, labels, 1, factor=factor, phase=0, patch=patch, transforms=transforms)
    on_hr = stock(image=torch.from_numpy(data[:-1]))["image"]
    torch.testing.assert_close(image, degrade(on_hr, factor, 1)[:, 1:4])


def test_transforms_on_intensities_leave_targets_alone():
    factor, patch = 2, (4, 9, 8)
    data, labels = volume(factor)
    stock = stock_transforms(patch, mirror_axes=())
    stock.transforms[1].p_rotation = stock.transforms[1].p_scaling = 0
    for transform in stock.transforms:
        if isinstance(transform, RandomTransform):
            transform.apply_probability = 1
    plain = build_training_transforms(fixed(patch, dummy_2d=True), factor=factor, highest_label=3)
    common = {"factor": factor, "phase": 0, "patch": patch}
    intense = build_training_transforms(stock, factor=factor, highest_label=3)
    image, lr, others = sample_at(data, labels, 1, transforms=plain, **common)
    changed, same_lr, same_others = sample_at(data, labels, 1, transforms=intense, **common)
    assert not torch.allclose(image, changed)
    for one, other in zip([*lr, *others], [*same_lr, *same_others], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(UNIT.undo(others.image), image)  # what the teacher sees


@pytest.mark.parametrize("dummy_2d", [True, False])
def test_the_true_acquisition_arrives_unchanged_with_its_label(dummy_2d):
    factor, patch = 4, (3, 9, 8)
    data, labels = volume(factor)
    rng = np.random.default_rng(9)
    lr = rng.normal(size=(2, 6, 9, 8)).astype(np.float32), rng.integers(0, 4, size=(1, 6, 9, 8)).astype(np.int8)
    transforms = build_training_transforms(fixed(patch, dummy_2d=dummy_2d), factor=factor, highest_label=3)
    image, [lr_labels], (hr_labels, uncertainty, unaugmented, *_) = sample_at(
        data, labels, 2, factor=factor, phase=0, patch=patch, transforms=transforms, lr=lr
    )
    assert (uncertainty == 0).all()  # nothing is uncertain about it
    torch.testing.assert_close(unaugmented, UNIT.apply(image))
    torch.testing.assert_close(image, torch.from_numpy(lr[0][:, 2:5]))
    assert torch.equal(lr_labels, torch.from_numpy(lr[1][:, 2:5]).to(lr_labels.dtype))
    assert torch.equal(hr_labels, torch.from_numpy(labels[:, 8:20]).clamp(min=0))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_true_acquisitions_slices_stay_slices_under_nnunets_full_augmentation(sparse):
    """Each slice of the acquisition has one value and one label, so it must have these wherever it shows."""
    factor, patch, slices = 4, (3, 9, 8), 9
    data = np.zeros((3, slices * factor, 9, 8), dtype=np.float32)
    labels = np.zeros((1, slices * factor, 9, 8), dtype=np.int8)
    values = np.arange(1, slices + 1).reshape(1, slices, 1, 1)
    lr_image = np.broadcast_to(10.0 * values, (2, slices, 9, 8)).astype(np.float32)
    lr_labels = np.broadcast_to(values % 4, (1, slices, 9, 8)).astype(np.int8)
    stock = stock_transforms(patch, dummy_2d=False, mirror_axes=())
    stock.transforms = [t for t in stock.transforms if not isinstance(t, RandomTransform)]
    stock.transforms[0].p_rotation = stock.transforms[0].p_scaling = 1
    transforms = build_training_transforms(
        stock, factor=factor, highest_label=3, ignore_label=4 if sparse else None, sparse_labels=sparse
    )
    loader = HRPatchLoader(
        memory_dataset(data, labels),
        8,
        (5, 13, 12),  # with the margin for rotation
        patch,
        LABELS,
        factor=factor,
        transforms=transforms,
        lr_dataset=memory_dataset(lr_image, lr_labels),
        true_lr_probability=1,
    )
    batch = next(loader)
    shown = batch["data"][:, 0]
    slice_values = shown.flatten(2).amax(2, keepdim=True).unsqueeze(-1)
    inside = shown > 0.99 * slice_values  # the rest is outside the volume, in part
    assert inside.float().mean() > 0.3
    numbers = (slice_values / 10).round()
    torch.testing.assert_close(slice_values, 10 * numbers)
    expected = (numbers % 4).expand_as(shown)
    assert torch.equal(batch["target"][0][:, 0][inside].float(), expected[inside])


def test_masked_normalisation_uses_the_lr_labels():
    factor, patch = 4, (3, 9, 8)
    data, labels = volume(factor)
    transforms = build_training_transforms(fixed(patch, dummy_2d=True, use_mask=True), factor=factor, highest_label=3)
    image, *_ = sample_at(data, labels, 1, factor=factor, phase=0, patch=patch, transforms=transforms)
    outside = degrade_labels(torch.from_numpy(labels), factor, 1)[0, 1:4] == -1
    assert outside.any()
    assert (image[0][outside] == 0).all()
    assert (image[0][~outside] != 0).all()
    assert (image[1] != 0).all()


@pytest.mark.parametrize("kind", ["labels", "ignore", "regions", "regions_ignore"])
@pytest.mark.parametrize("scales", [None, SCALES])
def test_targets_have_the_shapes_and_types_of_nnunets_loader(kind, scales):
    factor, patch, initial = 4, (4, 8, 8), (4, 9, 8)
    label_manager = {
        "labels": LABELS,
        "ignore": LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None),
        "regions": LabelManager({"background": 0, "whole": (1, 2, 3), "core": 2}, [1, 2]),
        "regions_ignore": LabelManager({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, [1, 2]),
    }[kind]
    regions = label_manager.foreground_regions if label_manager.has_regions else None
    ends = {"regions": regions, "ignore_label": label_manager.ignore_label, "deep_supervision_scales": scales}
    data, labels = volume(factor)
    loader = HRPatchLoader(
        memory_dataset(data, labels, label_manager),
        2,
        initial,
        patch,
        label_manager,
        factor=factor,
        transforms=build_training_transforms(stock_transforms(patch), factor=factor, highest_label=3, **ends),
    )
    lr_case = data[:-1, ::factor], labels[:, ::factor]
    stock = nnUNetDataLoader(
        memory_dataset(*lr_case, label_manager),
        2,
        initial,
        patch,
        label_manager,
        transforms=stock_transforms(patch, **ends),
    )
    mine, theirs = next(loader), next(stock)
    assert mine["data"].shape == theirs["data"].shape
    their_targets = theirs["target"] if isinstance(theirs["target"], list) else [theirs["target"]]
    lr_targets, (hr_target, *_) = split(mine["target"])
    assert [(t.shape, t.dtype) for t in lr_targets] == [(t.shape, t.dtype) for t in their_targets]
    full = their_targets[0].shape
    assert hr_target.shape == (*full[:2], factor * full[2], *full[3:])
    assert hr_target.dtype == (torch.bool if regions is not None else torch.int8)


@pytest.mark.parametrize("kind", ["labels", "regions"])
@pytest.mark.parametrize(("slices", "seen"), [(4, 12), (5, 16)])  # a network of stride 4 sees 12 slices and 15 + 1
def test_thin_slices_have_targets_at_the_scales_of_their_network(kind, slices, seen):
    factor, patch = 3, (slices, 8, 8)
    regions = [(1, 2, 3), 2] if kind == "regions" else None
    scales = [[1, 1, 1], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]]
    transforms = build_training_transforms(
        stock_transforms(patch, dummy_2d=False),
        factor=factor,
        highest_label=3,
        regions=regions,
        thin=ThinScales(scales, seen),
    )
    data, labels = volume(factor)
    loader = HRPatchLoader(memory_dataset(data, labels), 2, patch, patch, LABELS, factor=factor, transforms=transforms)
    lr, *coarser = next(loader)["target"][: -len(PatchTargets._fields)]
    (hr, *_) = split(next(loader)["target"])[1]
    assert lr.shape[2:] == patch
    assert [tuple(t.shape[2:]) for t in coarser] == [(seen // 2, 4, 4), (seen // 4, 2, 2)]
    assert hr.shape[2:] == (factor * slices, 8, 8)
    assert {t.dtype for t in (hr, *coarser)} == {torch.bool if regions else torch.int8}
    assert {t.shape[1] for t in (hr, *coarser)} == {2 if regions else 1}


def test_coarser_targets_are_what_nnunet_makes_of_the_labels_that_the_network_sees():
    labels = torch.randint(0, 4, (1, 15, 8, 8), generator=torch.Generator().manual_seed(0))
    (coarse,) = ThinScales([[1, 1, 1], [0.5, 0.5, 0.5]], 16).coarser(labels)
    seen = torch.cat([labels, labels[:, -1:]], dim=1)
    assert torch.equal(coarse, seen[:, 1::2, 1::2, 1::2])  # nearest, as nnU-Net takes it


def test_regions_and_ignore_channel_hold_the_right_voxels():
    factor, patch = 4, (3, 9, 8)
    data, labels = volume(factor)
    transforms = build_training_transforms(
        fixed(patch, dummy_2d=True),
        factor=factor,
        highest_label=3,
        regions=[(1, 2), 2],
        ignore_label=3,
        deep_supervision_scales=SCALES,
    )
    _, (lr, *_), (hr, *_) = sample_at(data, labels, 1, factor=factor, phase=0, patch=patch, transforms=transforms)
    hr_map = torch.from_numpy(labels[0, 4:16])
    lr_map = degrade_labels(torch.from_numpy(labels), factor, 1)[0, 1:4]
    for found, expected in ((hr, hr_map), (lr, lr_map)):
        assert torch.equal(found, torch.stack([(expected == 1) | (expected == 2), expected == 2, expected == 3]))


def test_labels_above_127_are_not_wrapped():
    factor, patch = 2, (3, 9, 8)
    data, labels = volume(factor)
    labels = np.where(labels == 3, np.int16(300), labels.astype(np.int16))
    transforms = build_training_transforms(fixed(patch, dummy_2d=True), factor=factor, highest_label=300)
    _, _, (hr, *_) = sample_at(data, labels, 1, factor=factor, phase=0, patch=patch, transforms=transforms)
    assert torch.equal(hr, torch.from_numpy(labels[:, 2:8]).clamp(min=0))


def test_a_network_of_thin_slices_gets_augmentation_of_thin_slices():
    def lowers_resolution(**options):
        stock = stock_transforms((4, 8, 8), dummy_2d=False)
        built = build_training_transforms(stock, factor=4, highest_label=3, **options)
        inner = [getattr(t, "transform", None) for t in built.transforms]
        (found,) = [t for t in inner if type(t).__name__ == "SimulateLowResolutionTransform"]
        return found.ignore_axes

    assert lowers_resolution(sees_thin_slices=True) == (0,)
    assert lowers_resolution() is None


@pytest.mark.parametrize("dummy_2d", [True, False])
def test_intensities_leave_padding_empty_where_the_network_tells_it_from_the_scan(dummy_2d):
    """Padding of nothing but zeros is how a network of thin slices knows it, at prediction too."""
    factor, patch = 4, (6, 9, 8)
    data, labels = volume(factor, lr_slices=4)
    spatial = fixed(patch, dummy_2d=dummy_2d).transforms
    noise = [GaussianNoiseTransform(noise_variance=(0.5, 0.5)), GaussianNoiseTransform(noise_variance=(0.5, 0.5))]
    stock = ComposeTransforms([*spatial[:-1], *noise, spatial[-1]])
    at = {"factor": factor, "phase": 0, "patch": patch}
    options = {"factor": factor, "highest_label": 3, "sees_thin_slices": True}
    for keeps in (True, False):
        transforms = build_training_transforms(stock, **options, keeps_padding=keeps)
        image = sample_at(data, labels, -1, transforms=transforms, **at)[0]
        empty = (image == 0).flatten(2).all(2).all(0)
        assert empty.tolist() == ([True, False, False, False, False, True] if keeps else [False] * 6)


def test_stock_list_is_not_changed_and_everything_pickles():
    stock = stock_transforms((4, 8, 8), dummy_2d=False)
    before = list(stock.transforms)
    built = build_training_transforms(
        stock, factor=4, highest_label=3, deep_supervision_scales=SCALES, sees_thin_slices=True
    )
    assert stock.transforms == before
    assert stock.transforms[0].patch_size == (4, 8, 8)
    assert isinstance(pickle.loads(pickle.dumps(built)).transforms[0], TakeUncertaintyOut)


def test_no_augmentation_list_works():
    data, labels = volume(2)
    stock = nnUNetTrainer.get_validation_transforms(None)
    transforms = build_training_transforms(stock, factor=2, highest_label=3)
    image, *_ = sample_at(data, labels, 1, factor=2, phase=0, patch=(3, 9, 8), transforms=transforms)
    torch.testing.assert_close(image, degrade(torch.from_numpy(data[:-1]), 2, 1)[:, 1:4])


def test_unknown_transforms_are_refused():
    stock = ComposeTransforms([RandomTransform(Rot90Transform(1)), RemoveLabelTransform(-1, 0)])
    with pytest.raises(NotImplementedError, match="got Rot90Transform"):
        build_training_transforms(stock, factor=4, highest_label=3)

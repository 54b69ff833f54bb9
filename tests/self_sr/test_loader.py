"""Batches of self-SR windows: what they contain, and that image and labels stay together through augmentation."""

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations, save_case
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.config.self_sr import SelfSRConfig
from rehrseg_nnunet.self_sr.loader import DEVIATIONS, SelfSRLoader, intensity_transforms

PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])
MASKED = 3  # the ignore label, or one above all labels
SHAPE = (12, 13, 14)


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)  # noqa: NPY002 (nnU-Net's workers seed the global state)
    torch.manual_seed(0)


def coordinate_case(shape=SHAPE, manager=PLAIN, seed=0, lowest=-1):
    """Image channels hold every voxel's own position, so that any crop tells where it is from; random labels."""
    image = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).astype(np.float32)
    highest = 3 if manager is IGNORE else 2
    labels = np.random.default_rng(seed).integers(lowest, highest + 1, size=(1, *shape)).astype(np.int8)
    return image, labels


def properties_of(image, labels, manager, unit=None):
    """Images keep their intensities unless a unit is given: coordinates stay coordinates."""
    channels = len(image)
    unit = unit or IntensityUnit(zero=(0.0,) * channels, length=(1.0,) * channels)
    return {"class_locations": class_locations(labels, manager), **unit.as_property()}


def memory_dataset(image, labels, manager, unit=None):
    properties = properties_of(image, labels, manager, unit)
    return SimpleNamespace(identifiers=["case"], load_case=lambda _: (image, labels, None, properties))


def loader(
    case,
    *,
    manager=PLAIN,
    factor=3,
    patch=(8, 8),
    batch_size=4,
    axes=("x", "y"),
    augment=False,
    zoom=0.0,
    foreground=0.0,
    label_dropout=0.0,
    spacing_mm=None,
    unit=None,
    **transforms,
):
    config = SelfSRConfig(patch_size=patch, scaling_probability=zoom, label_dropout=label_dropout)
    return SelfSRLoader(
        memory_dataset(*case, manager, unit),
        batch_size,
        config=config,
        factor=factor,
        label_manager=manager,
        spacing_mm=spacing_mm or (factor, 1, 1),
        axes=axes,
        oversample_foreground_percent=foreground,
        augment=augment,
        **transforms,
    )


@pytest.mark.parametrize(("manager", "heads"), [(PLAIN, 3), (IGNORE, 3), (REGIONS, 2)])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_shapes_and_types(manager, heads, factor):
    batch = next(
        loader(coordinate_case(manager=manager), manager=manager, factor=factor, patch=(6, 10), augment=True, zoom=1.0)
    )
    image, labels, mask = batch["target"]
    assert batch["data"].shape == (4, 3 + heads, 4, 6, 10)
    assert image.shape == (4, 3, factor, 6, 10)
    assert mask.shape == (4, 1, factor, 6, 10)
    assert batch["data"].dtype == image.dtype == mask.dtype == torch.float32
    if manager is REGIONS:
        assert labels.shape == (4, heads + 1, factor, 6, 10)
        assert labels.dtype == torch.bool
    else:
        assert labels.shape == (4, 1, factor, 6, 10)
        assert labels.dtype == torch.int16
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert list(batch["keys"]) == ["case"] * 4


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("patch", [(8, 8), (6, 11), (20, 17)])  # smaller and larger than the volume
def test_targets_are_the_volume_where_they_say_they_are(augment, patch):
    volume, stored = coordinate_case()
    batch = next(loader((volume, stored), patch=patch, batch_size=24, augment=augment))
    image, labels, mask = batch["target"]
    position = image.round().long()
    assert torch.equal(position.float(), image)
    z, y, x = (position[:, c].numpy() for c in range(3))
    expected = np.maximum(stored[0][z, y, x], 0)  # -1 counts as background
    inside = mask[:, 0].numpy() == 1
    np.testing.assert_array_equal(labels[:, 0].numpy()[inside], expected[inside])
    assert (labels[:, 0].numpy()[~inside] == MASKED).all()
    for sample in range(24):
        where = np.stack([c[sample][inside[sample]] for c in (z, y, x)], axis=1)
        assert len(np.unique(where, axis=0)) == inside[sample].sum()  # padding repeats voxels, what counts does not
    smallest = [min(p, n) for p, n in zip(sorted(patch), (min(SHAPE),) * 2, strict=True)]
    assert inside.sum((1, 2, 3)).min() >= np.prod(smallest)  # at least a slice of the part that has data


def test_both_axes_flips_and_transposes_occur():
    batch = next(loader(coordinate_case(), batch_size=200, augment=True))
    image = batch["target"][0]
    moving = [tuple(int(torch.diff(s, dim=d).abs().amax((1, 2, 3)).argmax()) for d in (2, 3)) for s in image]
    assert set(moving) == {(0, 1), (1, 0), (0, 2), (2, 0)}  # (slice axis y: z and x in plane, slice axis x: z and y)
    signs = {tuple(torch.sign(torch.diff(s, dim=d).sum()).item() for d in (2, 3)) for s in image}
    assert signs == {(1, 1), (1, -1), (-1, 1), (-1, -1)}


@pytest.mark.parametrize(("axes", "channel"), [(("y",), 1), (("x",), 2)])
def test_slices_run_along_the_chosen_axis_in_both_directions(axes, channel):
    batch = next(loader(coordinate_case(), batch_size=30, axes=axes))
    image, _, mask = batch["target"]
    steps = torch.diff(image[:, channel], dim=1)[mask[:, 0, 1:].bool() & mask[:, 0, :-1].bool()]
    assert set(steps.tolist()) == {-1.0, 1.0}
    others = [c for c in range(3) if c != channel]
    assert (torch.diff(image[:, others], dim=2) == 0).all()


@pytest.mark.parametrize("axis", ["y", "x"])
@pytest.mark.parametrize("patch", [(8, 8), (20, 20)])
def test_input_image_and_input_labels_stay_together(axis, patch):
    """Where nothing changes along the slice axis, thick slices are the volume: image = label map must survive."""
    plane = np.random.default_rng(1).integers(0, 3, size=SHAPE)
    along = 1 if axis == "y" else 2
    labels = np.broadcast_to(plane.take([0], axis=along), SHAPE)[None].astype(np.int8)
    batch = next(loader((labels.astype(np.float32), labels), axes=(axis,), patch=patch, batch_size=20, augment=True))
    image, one_hot = batch["data"][:, 0], batch["data"][:, 1:]
    known = one_hot.sum(1) == 1
    assert known.any()
    torch.testing.assert_close(image[known], one_hot.argmax(1)[known].float(), rtol=0, atol=1e-5)
    target, hr_labels, mask = batch["target"]
    counted = mask == 1
    assert torch.equal(target[counted], hr_labels[counted].float())
    # the same in-plane pixels are known in input and target
    assert torch.equal(known.all(1), mask[:, 0].amax(1).bool())


def test_input_positions_are_the_thick_slices_centres():
    factor = 3
    batch = next(loader(coordinate_case((12, 12, 48)), factor=factor, axes=("x",), batch_size=60))
    lr, hr, mask = batch["data"][:, 2, :, 0, 0], batch["target"][0][:, 2, :, 0, 0], batch["target"][2][:, 0, :, 0, 0]
    inner = ((lr > 8) & (lr < 39)).all(1) & mask.all(1).bool()  # the profile is complete
    assert inner.sum() > 10
    steps = torch.diff(lr[inner], dim=1)
    torch.testing.assert_close(steps.abs(), torch.full_like(steps, factor), rtol=0, atol=1e-4)
    torch.testing.assert_close(hr[inner][:, 0], lr[inner][:, 1], rtol=0, atol=1e-4)  # odd factor: slice 1's own centre


def test_one_hot_channels_sum_to_one_but_for_ignored_and_outside_voxels():
    case = coordinate_case(manager=IGNORE)
    inside = next(loader(case, manager=IGNORE, batch_size=20))["data"][:, 3:].sum(1)
    assert set(inside.unique().tolist()) == {0.0, 1.0}
    assert set(next(loader(coordinate_case(), batch_size=20))["data"][:, 3:].sum(1).unique().tolist()) == {1.0}
    labels = np.where(case[1] == 3, 0, case[1])
    padded = next(loader((case[0], labels), manager=IGNORE, patch=(20, 20)))["data"][:, 3:].sum(1)
    assert padded.mean() == pytest.approx(0.4, abs=0.1)
    assert (padded.amax((2, 3)) == 1).all()


def test_regions_and_their_mask():
    volume, stored = coordinate_case()
    batch = next(loader((volume, stored), manager=REGIONS, patch=(20, 20), batch_size=10))
    image, regions, mask = batch["target"]
    z, y, x = (image[:, c].round().long().numpy() for c in range(3))
    truth = torch.from_numpy(stored[0][z, y, x])
    counted = mask[:, 0] == 1
    assert torch.equal(regions[:, -1], ~counted)
    assert torch.equal(regions[:, 0][counted], (truth > 0)[counted])
    assert torch.equal(regions[:, 1][counted], (truth == 2)[counted])
    assert not regions[:, :-1].any(1)[~counted].any()


def test_ignored_voxels_are_masked_for_the_labels_only():
    volume, stored = coordinate_case(manager=IGNORE)
    batch = next(loader((volume, stored), manager=IGNORE, batch_size=20))
    image, labels, mask = batch["target"]
    z, y, x = (image[:, c].round().long().numpy() for c in range(3))
    ignored = torch.from_numpy(stored[0][z, y, x] == 3) & mask[:, 0].bool()
    assert ignored.any()
    assert (labels[:, 0][ignored] == 3).all()


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
@pytest.mark.parametrize("seed", range(3))
def test_oversampled_windows_contain_foreground(manager, seed):
    """One voxel, far enough from the ends that every phase can reach it."""
    shape = (24, 25, 26)
    labels = np.zeros((1, *shape), dtype=np.int8)
    voxel = tuple(np.random.default_rng(seed).integers(4, 20, size=3))
    labels[(0, *voxel)] = 2
    volume, _ = coordinate_case(shape)
    batch = next(loader((volume, labels), manager=manager, batch_size=30, foreground=1.0))
    targets = batch["target"][1]
    found = (targets[:, 1] if manager is REGIONS else targets[:, 0] == 2).flatten(1).sum(1)
    assert (found == 1).all()
    none = next(loader((volume, labels), manager=manager, batch_size=30))["target"][1]
    assert (none[:, 1] if manager is REGIONS else none[:, 0] == 2).flatten(1).any(1).sum() < 10


def test_only_the_last_part_of_a_batch_is_oversampled():
    labels = np.zeros((1, 48, 48, 48), dtype=np.int8)
    labels[0, 20, 20, 20] = 1
    batch = next(loader((labels.astype(np.float32), labels), batch_size=9, foreground=1 / 3))
    assert (batch["target"][1] == 1).flatten(1).any(1)[6:].all()


@pytest.mark.parametrize("manager", [PLAIN, IGNORE])
def test_cases_without_foreground_give_random_windows(manager):
    volume, labels = coordinate_case()
    batch = next(loader((volume, np.zeros_like(labels)), manager=manager, foreground=1.0, batch_size=30))
    assert (batch["target"][1][batch["target"][2] == 1] == 0).all()
    assert len(torch.unique(batch["target"][0][:, 0, 0, 0, 0])) > 3


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_zoom_scales_in_plane_only(zoom):
    config = SelfSRConfig(patch_size=(8, 8), scaling_probability=1, scaling=(zoom, zoom), label_dropout=0)
    source = loader(coordinate_case((24, 24, 24)), axes=("x",), batch_size=6, augment=True)
    source.config = config
    image, _, mask = next(source)["target"]
    in_plane = image[:, 0].diff(dim=2).abs().amax((1, 2, 3)).maximum(image[:, 0].diff(dim=3).abs().amax((1, 2, 3)))
    torch.testing.assert_close(in_plane, torch.full_like(in_plane, 1 / zoom), rtol=0, atol=1e-4)
    steps = image[:, 2].diff(dim=1).abs()[mask[:, 0, 1:].bool() & mask[:, 0, :-1].bool()]
    assert set(steps.tolist()) == {1.0}


def test_tone_changes_both_images_and_noise_the_input_alone():
    tone = MultiplicativeBrightnessTransform(multiplier_range=(2, 2), synchronize_channels=True)
    noise = GaussianNoiseTransform(noise_variance=(1, 1), p_per_channel=1, synchronize_channels=True)
    batches = []
    for transforms in ({}, {"tone": tone}, {"noise": noise}):
        np.random.seed(3)  # noqa: NPY002
        batches.append(next(loader(coordinate_case(), batch_size=1, augment=True, **transforms)))
    plain, bright, noisy = batches
    torch.testing.assert_close(bright["data"][:, :3], 2 * plain["data"][:, :3])
    torch.testing.assert_close(bright["target"][0], 2 * plain["target"][0])
    noise = DEVIATIONS * (noisy["data"][:, :3] - plain["data"][:, :3])  # of a unit of so many standard deviations
    assert 0.5 < noise.std() < 2
    torch.testing.assert_close(noisy["target"][0], plain["target"][0])
    for batch in (bright, noisy):
        assert torch.equal(batch["data"][:, 3:], plain["data"][:, 3:])
        assert torch.equal(batch["target"][1], plain["target"][1])
        assert torch.equal(batch["target"][2], plain["target"][2])


def test_validation_has_no_augmentation():
    tone = MultiplicativeBrightnessTransform(multiplier_range=(2, 2), synchronize_channels=True)
    image = next(loader(coordinate_case(), batch_size=20, tone=tone, axes=("x",)))["target"][0]
    assert (image[:, 0].diff(dim=2) == 1).all()
    assert (image[:, 1].diff(dim=3) == 1).all()


def test_nnunets_intensity_transforms_are_found():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = nnUNetTrainer.get_training_transforms((4, 8, 8), (-0.5, 0.5), None, (0, 1, 2), True)
    tone, noise = intensity_transforms(stock)
    names = [type(transform.transform).__name__ for transform in (*tone.transforms, *noise.transforms)]
    assert names == [
        "MultiplicativeBrightnessTransform",
        "ContrastTransform",
        "GammaTransform",
        "GammaTransform",
        "GaussianNoiseTransform",
    ]
    batch = next(loader(coordinate_case(), batch_size=30, augment=True, tone=tone, noise=noise))
    assert torch.isfinite(batch["data"]).all()
    assert torch.isfinite(batch["target"][0]).all()


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 5.0), (400.0, -3000.0)])
def test_scale_and_offset_of_a_case_change_no_window(scale, offset):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = nnUNetTrainer.get_training_transforms((4, 8, 8), (-0.5, 0.5), None, (0, 1, 2), True)
    tone, noise = intensity_transforms(stock)
    image = np.random.default_rng(0).normal(size=(1, *SHAPE))
    _, labels = coordinate_case()
    batches = []
    for moved in (image, scale * image + offset):
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        unit = IntensityUnit.of_case(moved)
        source = loader((moved, labels), batch_size=30, augment=True, unit=unit, tone=tone, noise=noise)
        batches.append(next(source))
    torch.testing.assert_close(batches[0]["data"], batches[1]["data"], rtol=0, atol=1e-3)
    torch.testing.assert_close(batches[0]["target"][0], batches[1]["target"][0], rtol=0, atol=1e-3)


def test_windows_have_the_intensities_of_the_whole_case():
    """Not those of their own range: a window beside a bright rim has less contrast for it."""
    image, labels = coordinate_case()
    unit = IntensityUnit(zero=(1.0, 2.0, 3.0), length=(10.0, 20.0, 40.0))
    batches = []
    for each in (None, unit):
        np.random.seed(0)  # noqa: NPY002
        batches.append(next(loader((image, labels), batch_size=8, unit=each)))
    for plain, normalised in ((b["data"][:, :3], n["data"][:, :3]) for b, n in [batches]):
        expected = torch.stack([unit.apply(sample) for sample in plain])
        torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
def test_some_training_windows_have_no_labels(manager):
    case = coordinate_case(manager=manager, lowest=0)
    batch = next(loader(case, manager=manager, batch_size=200, augment=True, label_dropout=0.25))
    targets = batch["target"][1]
    without = batch["data"][:, 3:].flatten(1).sum(1) == 0
    assert 25 < without.sum() < 75
    counted = ~targets[:, -1:].bool() if manager is REGIONS else targets != MASKED
    assert not counted[without].any()
    assert counted[~without].flatten(1).any(1).all()
    assert batch["target"][2][without].any()  # the image is trained
    assert (
        next(loader(case, manager=manager, batch_size=50, label_dropout=1.0))["data"][:, 3:].sum((1, 2, 3, 4))
    ).all()


@pytest.mark.parametrize(("axes", "channel"), [(("y",), 1), (("x",), 2)])
@pytest.mark.parametrize(("spacing_mm", "factor"), [((6.0, 0.75, 0.75), 4), ((3.0, 1.0, 1.2), 4), ((5.0, 1.0, 1.0), 2)])
def test_windows_have_the_voxels_of_the_export(axes, channel, spacing_mm, factor):
    """There, target slices lie c/r apart, thick slices c, and pixels are those of the plane."""
    shape = (40, 60, 60)
    volume, labels = coordinate_case(shape)
    stored_mm = (spacing_mm[0] / factor, *spacing_mm[1:])
    volume *= np.array(stored_mm, np.float32)[:, None, None, None]  # positions in mm
    source = loader((volume, labels), factor=factor, axes=axes, batch_size=30, patch=(12, 12), spacing_mm=spacing_mm)
    batch = next(source)
    thick, fine = batch["data"][:, :3], batch["target"][0]
    other = 3 - channel

    def inner(steps, positions, axis_mm, margin):
        inside = (positions > margin) & (positions < axis_mm - margin)
        return steps[inside]

    axis_mm = shape[channel] * stored_mm[channel]
    steps = fine[:, channel].diff(dim=1).abs()
    found = inner(steps, fine[:, channel, 1:], axis_mm, spacing_mm[0])
    torch.testing.assert_close(found, torch.full_like(found, spacing_mm[0] / factor), rtol=0.03, atol=0)
    steps = thick[:, channel].diff(dim=1).abs()
    found = inner(steps, thick[:, channel, 1:], axis_mm, 3 * spacing_mm[0])
    torch.testing.assert_close(found, torch.full_like(found, spacing_mm[0]), rtol=0.03, atol=0)
    for position, pixel_mm in ((0, spacing_mm[channel]), (other, spacing_mm[other])):
        dimension = 2 if position == 0 else 3
        steps = fine[:, position].diff(dim=dimension)[..., 2:-2, 2:-2]  # the zoom repeats edges
        torch.testing.assert_close(steps, torch.full_like(steps, pixel_mm), rtol=0.05, atol=0)


def test_too_thin_volumes_are_refused():
    with pytest.raises(ValueError, match="slices along the simulated axis must be at least 3, got 2"):
        next(loader(coordinate_case((12, 2, 12)), axes=("y",)))


def test_a_loader_of_stored_cases_survives_pickling(tmp_path):
    image, labels = coordinate_case()
    save_case(
        tmp_path / "cases",
        "case",
        image,
        labels,
        properties_of(image, labels, PLAIN),
        patch_size=(8, 8, 8),
        scratch=tmp_path / "scratch",
    )
    source = SelfSRLoader(
        nnUNetDatasetBlosc2(str(tmp_path / "cases"), ["case"]),
        3,
        config=SelfSRConfig(patch_size=(8, 8)),
        factor=3,
        label_manager=PLAIN,
        spacing_mm=(3, 1, 1),
        axes=("x", "y"),
        oversample_foreground_percent=0.33,
        augment=True,
    )
    batches = []
    for each in (
        source,
        pickle.loads(pickle.dumps(source)),
        loader((image, labels), batch_size=3, augment=True, zoom=0.5, foreground=0.33, label_dropout=0.1),
    ):
        np.random.seed(5)  # noqa: NPY002
        batches.append(next(each))
    for other in batches[1:]:
        assert torch.equal(batches[0]["data"], other["data"])
        assert all(torch.equal(a, b) for a, b in zip(batches[0]["target"], other["target"], strict=True))

"""Augmentation of pairs: both images move alike, and only the source changes its intensities."""

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from rehrseg_nnunet.guided.pair_transforms import split_channels, training_transforms, validation_transforms
from rehrseg_nnunet.guided.paired_channels import PairedChannels

PATCH = (8, 16, 16)
CHANNELS = PairedChannels(source=(0, 2), privileged=(1,))
UNMASKED = [False, False, False]


def stock(*, patch=PATCH, dummy_2d=False, masked=(False, False)):
    return nnUNetTrainer.get_training_transforms(
        patch, (-0.5, 0.5), None, tuple(range(len(patch))), dummy_2d, use_mask_for_norm=list(masked)
    )


def always(transforms):
    """Every random transform is applied, and space is always moved."""
    for transform in transforms.transforms:
        if hasattr(transform, "apply_probability"):
            transform.apply_probability = 1
            if hasattr(transform.transform, "p_per_channel"):
                transform.transform.p_per_channel = 1
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 1
    return transforms


def sample(patch=PATCH, *, equal=True, seed=0):
    """Three channels, all the same image, and labels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1 if equal else 3, *patch, generator=generator)
    return {
        "image": image.repeat(3, *[1] * len(patch)) if equal else image,
        "segmentation": torch.ones(1, *patch, dtype=torch.int16),
    }


def apply(transforms, data, seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the transforms' own)
    out = transforms(**{key: value.clone() for key, value in data.items()})
    return out["image"], *out["segmentation"]


@pytest.mark.parametrize("dummy_2d", [False, True])
def test_both_move_alike(dummy_2d):
    """Without intensities, the difference of equal channels stays 0 wherever they go."""
    transforms = always(training_transforms(stock(dummy_2d=dummy_2d), CHANNELS, masked=UNMASKED, intensities=False))
    for seed in range(5):
        data = sample(seed=seed)
        source, privileged, inside = apply(transforms, data, seed)
        assert not torch.equal(source[:1], data["image"][:1])
        torch.testing.assert_close(source, privileged.expand(2, *PATCH), rtol=0, atol=0)
        assert source.shape == (2, *PATCH)
        assert inside.shape == (1, *PATCH)
        assert inside.dtype == torch.bool


@pytest.mark.parametrize("patch", [PATCH, (16, 24)])
def test_intensities_of_the_privileged_image_stay(patch):
    """It is what the same draws of space alone make of it, whatever is done to the source."""
    data = sample(patch)
    mirrors = range(len(patch))
    augmented = always(training_transforms(stock(patch=patch), CHANNELS, masked=UNMASKED, intensities=True))
    for transform in augmented.transforms:
        if isinstance(transform, SpatialTransform):
            transform.p_rotation = transform.p_scaling = 0
    found = {False: 0, True: 0}
    for seed in range(4):
        source, privileged, _ = apply(augmented, data, seed)
        original = data["image"][:1]
        flips = [axes for axes in powerset(mirrors) if torch.equal(original.flip([a + 1 for a in axes]), privileged)]
        assert len(flips) == 1  # it was mirrored, and no more
        found[torch.equal(source[:1], privileged)] += 1
    assert found == {False: 4, True: 0}


def powerset(axes):
    return [[a for a in axes if number >> a & 1] for number in range(2 ** len(axes))]


@pytest.mark.parametrize("masked", [False, True])
def test_outside_the_mask_the_privileged_image_is_what_its_scheme_says(masked):
    data = sample(equal=False)
    data["segmentation"][:, :, :, :5] = -1
    source, privileged, inside = apply(validation_transforms(CHANNELS, masked=[False, masked, False]), data)
    assert not inside[..., :5].any()
    assert inside[..., 5:].all()
    torch.testing.assert_close(source, data["image"][[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(privileged[..., 5:], data["image"][1:2, ..., 5:], rtol=0, atol=0)
    assert bool((privileged[..., :5] == 0).all()) == masked


def test_masked_sources_are_0_outside_after_augmentation():
    data = sample()
    data["segmentation"][:, :, :, :8] = -1
    transforms = training_transforms(
        stock(masked=(True, False)), CHANNELS, masked=[True, True, False], intensities=True
    )
    source, privileged, inside = apply(always(transforms), data, 3)
    assert inside.any()
    assert (source[:1][~inside] == 0).all()
    assert (source[1:][~inside] != 0).any()
    assert (privileged[~inside] == 0).all()


def test_the_channels_of_a_case():
    image = np.arange(3, dtype=np.float16)[:, None, None, None] * np.ones((3, 2, 2, 2), np.float16)
    source, privileged = split_channels(image, CHANNELS)
    assert source[:, 0, 0, 0].tolist() == [0, 2]
    assert privileged[:, 0, 0, 0].tolist() == [1]
    assert source.dtype == privileged.dtype == torch.float32

"""The head in a scan, masked or not, with air or without; never nothing."""

import numpy as np
import pytest

from rehrseg_nnunet.guided.foreground import foreground, inside_masks

SHAPE = (16, 16, 16)


@pytest.fixture
def ball():
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    return sum(axis**2 for axis in axes) < 0.6


def scan(ball, rng, *, tissue=(60, 100), noise=3.0):
    """A head of two tissues in Rician air."""
    clean = np.where(ball, rng.choice(tissue, size=SHAPE), 0.0)
    return np.hypot(clean + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE)).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("offset", [0, -1000])
def test_a_head_in_air(ball, rng, channels, offset):
    image = np.stack([scan(ball, rng) * (1 + 3 * c) + offset for c in range(channels)])
    assert np.mean(foreground(image) == ball) > 0.995
    assert inside_masks(image).all()


def test_a_crop_without_air_is_foreground_everywhere(rng):
    image = rng.choice([45.0, 90.0], size=(1, *SHAPE)) + rng.normal(0, 3, (1, *SHAPE))
    assert foreground(image).all()


def test_masks_of_both_scans_count_and_their_holes_do_not(ball, rng):
    moved = np.roll(ball, 2, axis=0)
    image = np.stack([np.where(mask, scan(ball, rng) + 1, 0) for mask in (ball, moved)])
    image[:, 8, 8, 8] = 0
    np.testing.assert_array_equal(foreground(image), ball & moved)
    one_masked = np.stack([image[0], scan(ball, rng)])
    np.testing.assert_array_equal(foreground(one_masked), ball)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, *SHAPE)),
        np.full((2, *SHAPE), 5.0),
        np.stack([np.arange(16) < 8, np.arange(16) >= 8]).astype(float)[:, :, None, None] * np.ones(SHAPE),
    ],
    ids=["empty", "constant", "masks without a common voxel"],
)
def test_it_is_never_empty(image):
    assert foreground(image).all()

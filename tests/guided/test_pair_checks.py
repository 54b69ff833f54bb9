"""Edges of the two scans of a pair: what they agree on, and which pairs stand out."""

import numpy as np
import pytest
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
from scipy.ndimage import binary_fill_holes

from rehrseg_nnunet.guided.low_field import LowField, case_generator, low_field_twin
from rehrseg_nnunet.guided.pair_checks import TOO_MUCH_ADDED, added_share, doubtful_pairs, edge_correlation

SHAPE = (16, 16, 16)
EVERYWHERE = np.ones(SHAPE, bool)


def head(seed):
    """Two balls at random places."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size) for size in SHAPE), indexing="ij")
    image = np.full(SHAPE, 20.0)
    for radius, value in ((5, 60.0), (3, 100.0)):
        centre = rng.uniform(5, 11, 3)
        image[sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < radius**2] = value
    return image[None]


def test_contrast_scale_and_offset_do_not_matter():
    image = head(0)
    for other in (image, 3 * image + 7, 200 - image):
        assert edge_correlation(image, other, EVERYWHERE) == pytest.approx(1)
    assert edge_correlation(image, np.concatenate([image, 50 - image]), EVERYWHERE) == pytest.approx(1)


def test_it_falls_with_every_voxel_of_a_shift():
    image = head(0)
    values = [edge_correlation(image, np.roll(image, shift, axis=2), EVERYWHERE) for shift in range(5)]
    assert (np.diff(values) < -0.05).all()


def test_only_what_is_inside_counts():
    image, inside = head(0), EVERYWHERE.copy()
    inside[8:] = False
    other = image.copy()
    other[0, 12:] = np.random.default_rng(0).normal(0, 0.1, (4, 16, 16))
    assert edge_correlation(image, other, inside) > edge_correlation(image, other, EVERYWHERE)


def test_a_constant_scan_has_no_edges():
    assert np.isnan(edge_correlation(head(0), np.ones((1, *SHAPE)), EVERYWHERE))


def test_a_misregistered_pair_stands_out_among_noisy_ones():
    correlations = {}
    for case in range(6):
        image = head(case)[0]
        scanner = LowField(2.0, 12.0, 0.7)
        twin = low_field_twin(image, (1, 1, 1), scanner, head=EVERYWHERE, random=case_generator(0, str(case)))
        moved = np.roll(twin, 3, axis=1) if case == 4 else twin
        correlations[str(case)] = edge_correlation(moved[None], image[None], EVERYWHERE)
    assert list(doubtful_pairs(correlations)) == ["4"]


def test_few_pairs_and_constant_ones_are_not_judged():
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1}) == {}
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1, "d": float("nan")}) == {}
    assert doubtful_pairs({"a": 0.9, "b": 0.8, "c": 0.1, "d": 0.9, "e": float("nan")}) == {"c": (0.1, 0.9)}


def stripped(*, last):
    """A scan with data in a box that ends at a voxel of the last axis."""
    image = np.zeros((1, *SHAPE))
    image[:, 2:12, 2:12, 2:last] = 5
    return image


def normalised(usual, *others, by_mask=True):
    """The usual scan's z-scores by nnU-Net, within the mask of all channels or its box, where it is not 0."""
    data, mask, box = crop_to_nonzero(np.concatenate([usual, *others]).astype(np.float32))
    scheme = ZScoreNormalization(use_mask_for_norm=by_mask, intensityproperties={})
    return scheme.run(data[0].copy(), mask[0])[usual[0][tuple(slice(*ends) for ends in box)] != 0]


RNG = np.random.default_rng(0)
NOISE = RNG.uniform(0.1, 3, (1, *SHAPE))
STRIPPED = stripped(last=12) * RNG.uniform(0.5, 1, (1, *SHAPE))
SLAB = STRIPPED * (np.arange(16) < 6)


@pytest.mark.parametrize(
    ("usual", "better", "expected"),
    [
        (STRIPPED, SLAB, 0),
        (STRIPPED + NOISE, STRIPPED, 0),
        (STRIPPED + NOISE, SLAB, 0),
        (STRIPPED, 3 * STRIPPED + 1 * (STRIPPED > 0), 0),
        (SLAB, STRIPPED, 1.5),
        (STRIPPED, STRIPPED + NOISE, 3.096),
    ],
    ids=["slab", "air without noise", "slab of air with noise", "same mask", "slab as usual scan", "noise in air"],
)
def test_what_the_better_scan_adds_changes_nnunets_intensities_of_the_usual_one(usual, better, expected):
    assert added_share(usual, better) == pytest.approx(expected)
    alone, together = normalised(usual), normalised(usual, better)
    assert np.allclose(alone, together) == (expected == 0)


def test_in_large_boxes_nnunet_normalises_by_no_mask():
    usual = RNG.integers(0, 3, (1, *SHAPE)) * (np.arange(16) < 15)  # zeros of air
    better = np.roll(usual, 5, axis=1)
    assert added_share(usual, better) == 0
    assert np.array_equal(normalised(usual, by_mask=False), normalised(usual, better, by_mask=False))
    assert added_share(usual, NOISE) == pytest.approx(1 / 15)
    assert not np.allclose(normalised(usual, by_mask=False), normalised(usual, NOISE, by_mask=False))


def test_any_channel_of_the_usual_scan_has_its_voxels():
    both = np.concatenate([stripped(last=11), stripped(last=12)])
    assert added_share(both, stripped(last=12)) == 0
    assert added_share(both[:1], both) == pytest.approx(1 / 9)


def test_holes_of_a_mask_do_not_count():
    """nnU-Net fills them, those too that the two scans close together."""
    image = stripped(last=12)
    image[:, 5:8, 5:8, 5:8] = 0
    assert added_share(image, stripped(last=12)) == 0
    lid = stripped(last=12)
    image[:, 5:8, 5:8, 8:] = 0  # up to the edge of the mask
    lid[..., :11] = 0
    filled = (image != 0) | (lid != 0)
    expected = binary_fill_holes(filled[0]).sum() / (image != 0).sum() - 1
    assert added_share(image, lid) == pytest.approx(expected)
    assert expected > filled.sum() / (image != 0).sum() - 1


def test_holes_are_those_of_scipy():
    for seed, share in enumerate((0.1, 0.5, 0.9)):
        ours, theirs = np.random.default_rng(seed).random((2, 1, *SHAPE)) < share
        ours[:, :, :, 9:] = theirs[:, :, :, 11:] = False
        mine, both = (binary_fill_holes(mask[0]) for mask in (ours, ours | theirs))
        assert added_share(ours, theirs) == pytest.approx(both.sum() / mine.sum() - 1)


def test_a_scan_without_mask_has_nothing_outside():
    image = np.random.default_rng(0).integers(0, 100, (1, *SHAPE))  # zeros of air
    assert added_share(image, image[:, ::-1]) == 0
    empty = np.zeros((1, *SHAPE))  # which is said as constant
    assert added_share(stripped(last=12), empty) == added_share(empty, stripped(last=12)) == 0


def test_under_the_threshold_intensities_move_little():
    values = np.random.default_rng(0).normal(100, 25, 100_000)

    def moved(share):
        both = np.append(values, np.zeros(int(share * len(values))))
        usual = np.array([50.0, 100, 150])
        return np.abs((usual - both.mean()) / both.std() - (usual - values.mean()) / values.std()).max()

    assert moved(TOO_MUCH_ADDED) < 0.2
    assert moved(0.07) > 0.65

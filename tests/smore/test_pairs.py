"""SMORE's pairs: the thick rows lie where the convention says, whatever the symmetry, phase and position."""

import numpy as np
import pytest
import torch

from rehrseg_nnunet.slices.slice_profile import degrade_labels
from rehrseg_nnunet.smore.pairs import make_slice_pair, sample_slice, turn, turned_pixel

OUTSIDE = 9


def coordinate_slice(shape=(17, 22)):
    """Channels hold every pixel's own position; random labels."""
    image = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij"))
    return image, torch.from_numpy(np.random.default_rng(0).integers(-1, 4, size=shape).astype(np.int16))


def draw(seed, *, size=(3, 8), factor=3, shape=(17, 22), **options):
    image, labels = coordinate_slice(shape)
    spec = sample_slice(shape, factor, size, np.random.default_rng(seed), **options)
    return spec, make_slice_pair(image, labels, spec, factor, outside=OUTSIDE)


@pytest.mark.parametrize("size", [(3, 8), (9, 30)])  # smaller and larger than the slice
@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("seed", range(8))
def test_image_and_labels_are_the_slice_where_they_say_they_are(seed, factor, size):
    _, labels = coordinate_slice()
    _, pair = draw(seed, size=size, factor=factor)
    assert pair.lr_image.shape == (2, *size)
    assert pair.hr_image.shape == (2, factor * size[0], size[1])
    assert pair.mask.shape == (1, factor * size[0], size[1])
    inside = pair.mask[0] == 1
    y, x = pair.hr_image.long()
    assert torch.equal(pair.hr_labels[inside], labels[y, x][inside])
    assert (pair.hr_labels[~inside] == OUTSIDE).all()
    assert len(torch.unique(torch.stack([y[inside], x[inside]]), dim=1).T) == inside.sum()
    assert inside.any()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_thick_rows_are_centred_on_their_thin_ones(factor):
    """Positions are a ramp, which the slice profile keeps where it lies inside the slice."""
    compared = 0
    for seed in range(12):
        spec, pair = draw(seed, size=(2, 8), factor=factor, shape=(60, 70))
        centres = pair.hr_image.unflatten(1, (2, factor)).mean(dim=2)
        away = ((centres > 12) & (centres < torch.tensor([47.0, 57.0])[:, None, None])).all(0)
        torch.testing.assert_close(pair.lr_image[:, away], centres[:, away], rtol=0, atol=1e-4)
        assert torch.equal(pair.lr_labels, degrade_labels(pair.hr_labels, factor, 0, upper_ties=spec.upper_ties))
        compared += int(away.sum())
    assert compared > 40


def test_all_symmetries_phases_and_positions_occur():
    specs = [draw(seed)[0] for seed in range(600)]
    assert {(s.mirror, s.turns) for s in specs} == {(m, t) for m in (False, True) for t in range(4)}
    assert {s.offset for s in specs} == {0, 1, 2}
    assert {s.upper_ties for s in specs} == {False, True}
    upright = [s for s in specs if s.turns % 2 == 0 and s.offset == 0]
    assert {s.rows for s in upright} == {(k, k + 3) for k in range(3)}  # 17 rows hold 5 thick ones
    assert {s.columns for s in upright} == {(k, k + 8) for k in range(15)}
    plain = [draw(seed, augment=False)[0] for seed in range(40)]
    assert {(s.mirror, s.turns) for s in plain} == {(False, 0), (False, 1)}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turns", range(4))
def test_a_turned_pixel_is_where_the_turn_takes_it(turns, mirror):
    plane = torch.zeros(5, 7)
    plane[1, 4] = 1
    assert turn(plane, mirror=mirror, turns=turns)[turned_pixel((1, 4), (5, 7), mirror=mirror, turns=turns)] == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_given_pixel_is_contained(seed):
    """Away from the border, where every phase has it."""
    pixel = np.random.default_rng(seed).integers(3, 14, size=2)
    _, pair = draw(seed, pixel=pixel)
    found = (pair.hr_image == torch.from_numpy(pixel).float()[:, None, None]).all(0) & (pair.mask[0] == 1)
    assert found.sum() == 1


def test_the_same_draw_gives_the_same_pair_and_changes_nothing():
    image, labels = coordinate_slice()
    before = image.clone(), labels.clone()
    first, second = (draw(3)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    spec = draw(3)[0]
    make_slice_pair(image, labels, spec, 3, outside=OUTSIDE)
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])


def test_slices_smaller_than_the_factor():
    with pytest.raises(ValueError, match="pixels along the simulated axis must be at least 4, got 3"):
        sample_slice((3, 3), 4, (1, 1), np.random.default_rng(0))

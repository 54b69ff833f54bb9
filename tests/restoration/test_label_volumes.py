"""Labels that keep the volume they have on thick slices."""

import numpy as np
import pytest
import torch

from rehrseg_nnunet.restoration.label_volumes import keep_volumes
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels, interpolated_distance
from rehrseg_nnunet.slices.slice_profile import degrade_labels


def random_logits(seed, heads=4, voxels=500):
    return torch.randn(heads, voxels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_every_label_gets_its_number_of_voxels(seed):
    logits, wanted = random_logits(seed), [250, 30, 219, 1]
    before = logits.clone()
    kept = keep_volumes(logits, wanted, regions=False)
    assert torch.bincount(kept.argmax(0), minlength=4).tolist() == wanted
    assert torch.equal(logits, before)
    # only the label's level changes
    assert torch.equal(kept[0], logits[0])
    for head in range(1, 4):
        shift = kept[head] - logits[head]
        torch.testing.assert_close(shift, shift[:1].expand(500))


def test_labels_that_already_have_their_volume_stay_where_they_are():
    logits = random_logits(0)
    decided = logits.argmax(0)
    kept = keep_volumes(logits, torch.bincount(decided, minlength=4).tolist(), regions=False)
    assert torch.equal(kept.argmax(0), decided)


def test_two_labels_take_the_voxels_with_the_largest_margin():
    logits = random_logits(1, heads=2)
    kept = keep_volumes(logits, [-1, 77], regions=False).argmax(0)
    best = (logits[1] - logits[0]).argsort(descending=True)[:77]
    assert sorted(kept.nonzero()[:, 0].tolist()) == sorted(best.tolist())


def test_regions_do_not_compete():
    logits, wanted = random_logits(2), [400, 0, 500, 123]
    kept = keep_volumes(logits, wanted, regions=True)
    assert (kept > 0).sum(1).tolist() == wanted
    for head, count in enumerate(wanted):
        inside = kept[head] > 0
        if 0 < count < 500:
            assert logits[head][inside].min() > logits[head][~inside].max()


def test_a_label_without_voxels_gets_none_and_one_with_all_gets_all():
    logits = random_logits(3, heads=3)
    assert not (keep_volumes(logits, [450, 0, 50], regions=False).argmax(0) == 1).any()
    assert (keep_volumes(logits, [0, 0, 500], regions=False).argmax(0) == 2).all()


def test_cavalieri_volumes_have_no_bias_where_shapes_taper_off():
    """A tilted rod seen at all four phases: interpolated shapes lose a part of it, thick slices do not."""
    factor, spacing = 4, (4.0, 1.0, 1.0)
    z, y, x = np.ogrid[:48, :24, :24]
    along, across = (z - 24) + 0.6 * (x - 12), (x - 12) - 0.6 * (z - 24)
    rod = ((across / 4.0) ** 2 + ((y - 12) / 4.5) ** 2 + (along / 17.0) ** 2 < 1).astype(np.int16)
    ratios = {"thick": [], "interpolated": [], "kept": []}
    for phase in range(factor):
        fine = torch.from_numpy(rod[phase : phase + 44])
        for upper in (False, True):
            thick = degrade_labels(fine, factor, 0, upper_ties=upper).numpy()
            distance = [interpolated_distance(thick == c, factor, 0, spacing_mm=spacing).flatten() for c in (0, 1)]
            kept = keep_volumes(torch.stack(distance), [-1, factor * int(thick.sum())], regions=False).argmax(0)
            ratios["thick"].append(factor * thick.sum() / rod.sum())
            ratios["interpolated"].append(interpolate_labels(thick, factor, 0, spacing_mm=spacing).sum() / rod.sum())
            ratios["kept"].append(int(kept.sum()) / rod.sum())
    means = {name: np.mean(values) for name, values in ratios.items()}
    assert means["thick"] == pytest.approx(1, abs=0.01)
    assert means["interpolated"] < 0.98
    assert means["kept"] == pytest.approx(1, abs=0.01)

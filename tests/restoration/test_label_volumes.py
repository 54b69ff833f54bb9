"""Offsets that make volumes what thick labels say."""

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.restoration.label_volumes import LARGEST, offsets_for, volume_offsets

FACTOR = 3
PLAIN = LabelManager({"background": 0, "a": 1, "b": 2}, None)
IGNORE = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": (1, 2), "core": 2}, [1, 2])


def soft(classes=4, voxels=4000, seed=0):
    logits = torch.randn(classes, voxels, generator=torch.Generator().manual_seed(seed))
    logits[0] += 1
    return logits


def counts(logits, offsets):
    return (logits + offsets[:, None]).argmax(dim=0).bincount(minlength=len(logits))[1:].tolist()


@pytest.mark.parametrize("wanted", [[900, 600, 300], [400, 400, 1500], [1200, 100, 700]])
def test_every_class_gets_its_voxels(wanted):
    logits = soft()
    offsets = offsets_for(logits, wanted)
    assert offsets[0] == 0
    assert counts(logits, offsets) == pytest.approx(wanted, abs=3)


def test_offsets_that_were_added_are_taken_back():
    logits, added = soft(seed=2), torch.tensor([0, 0.7, -0.4, 0.2])
    offsets = offsets_for(logits - added[:, None], counts(logits, torch.zeros(4)))
    torch.testing.assert_close(offsets, added, atol=0.05, rtol=0)


def test_what_is_right_stays():
    logits = soft(seed=3)
    wanted = counts(logits, torch.zeros(4))
    assert counts(logits, offsets_for(logits, wanted)) == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize("sharp", [1, 30])
def test_offsets_are_bounded(sharp):
    """And what no bounded offset can change is not asked for."""
    logits = soft(classes=2, voxels=500) * sharp
    assert offsets_for(logits, [499])[1] == LARGEST
    assert offsets_for(logits, [1])[1] == -LARGEST


def test_decided_voxels_count():
    """A naive search over all voxels finds the same."""
    logits = soft(classes=2, voxels=2000, seed=4) * 4
    wanted = 700
    offset = offsets_for(logits, [wanted])[1]
    leads = (logits[0] - logits[1]).sort().values
    assert leads[wanted - 1] < offset < leads[wanted]


def test_logits_that_are_all_alike_stay_as_they_are():
    """An offset would give all of a class's voxels away at once."""
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    logits = torch.nn.functional.one_hot(labels).T.float()
    assert offsets_for(logits, [18, 12]).tolist() == [0, 0, 0]


def test_a_class_without_thick_voxels_keeps_its_logits():
    assert offsets_for(soft(), [900, 0, 300])[2] == 0


@pytest.mark.parametrize("manager", [PLAIN, IGNORE, REGIONS])
def test_unknown_voxels_do_not_count(manager):
    heads = 2 if manager.has_regions else 3
    logits = torch.randn(heads, 6 * FACTOR, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (6, 16, 16), generator=torch.Generator().manual_seed(2))
    cropped = volume_offsets(logits[:, : 4 * FACTOR], labels[:4], FACTOR, manager)
    labels[4] = -1
    labels[5] = 3 if manager.has_ignore_label else -1
    torch.testing.assert_close(volume_offsets(logits, labels, FACTOR, manager), cropped)


def test_regions_are_independent():
    logits = torch.randn(2, 6 * FACTOR, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 3, (6, 16, 16), generator=torch.Generator().manual_seed(2))
    offsets = volume_offsets(logits, labels, FACTOR, REGIONS)
    for region, group in enumerate([(1, 2), (2,)]):
        wanted = FACTOR * int(torch.isin(labels, torch.tensor(group)).sum())
        assert int((logits[region] + offsets[region] > 0).sum()) == pytest.approx(wanted, abs=1)

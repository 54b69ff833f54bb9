"""Which phase every mirrored prediction is taken at, and their mean."""

from itertools import chain, combinations

import numpy as np
import pytest
import torch

from rehrseg_nnunet.prediction.slice_phases import PhaseMean, mirrored_phases
from rehrseg_nnunet.slices.geometry import hr_slice_positions

AXES = [None, (), (0,), (1,), (1, 2), (0, 1), (0, 2), (0, 1, 2), (2, 0, 1)]
FACTORS = [2, 3, 4, 5, 7, 8]


def passes_of(axes, *, factor, slices=5):
    return [
        (phase, frozenset(mirrors))
        for phase, group in mirrored_phases(axes, slices=slices, factor=factor).items()
        for mirrors in group
    ]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("factor", FACTORS)
def test_every_combination_of_mirrored_axes_once_as_in_nnunet(axes, factor):
    axes_there = axes or ()
    expected = chain.from_iterable(combinations(axes_there, n) for n in range(len(axes_there) + 1))
    found = [mirrors for _, mirrors in passes_of(axes, factor=factor)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert (0, frozenset()) in passes_of(axes, factor=factor)  # the scan as it is


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_scan_mirrored_along_z_is_predicted_at_mirrored_phases(axes, factor):
    passes = passes_of(axes, factor=factor)
    assert all(abs(phase) <= factor / 2 for phase, _ in passes)
    if axes and 0 in axes:
        assert set(passes) == {(-phase, mirrors ^ {0}) for phase, mirrors in passes}


@pytest.mark.parametrize(
    ("factor", "counts"), [(2, [4, 4]), (3, [4, 2, 2]), (4, [2, 2, 2, 2]), (7, [2, 1, 1, 1, 1, 1, 1])]
)
def test_phases_are_spread_over_the_slice(factor, counts):
    phases = [phase for phase, _ in passes_of((0, 1, 2), factor=factor)]
    assert np.bincount(np.array(phases) % factor, minlength=factor).tolist() == counts


def test_where_all_is_at_one_phase():
    assert mirrored_phases((0, 1, 2), slices=1, factor=4).keys() == {0}
    assert mirrored_phases((0, 1, 2), slices=5, factor=1).keys() == {0}
    assert mirrored_phases((0,), slices=5, factor=4) == {0: [(), (0,)]}
    assert mirrored_phases(None, slices=5, factor=4) == {0: [()]}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("slices", [2, 3, 5])
def test_the_mean_is_of_every_prediction_between_slice_centres(factor, slices):
    generator, passes = torch.Generator().manual_seed(0), {0: 2, 1: 3, -1: 1, -(factor // 2): 2}
    values = {phase: torch.randn(2, factor * slices, 2, 3, generator=generator) for phase in passes}
    mean = PhaseMean(slices, factor)
    for phase, weight in passes.items():
        mean.add(values[phase].clone(), phase, weight=weight)
    result = mean.mean()
    assert result.shape == (2, factor * slices, 2, 3)
    for j, position in enumerate(hr_slice_positions(slices, factor)):
        there = []
        for phase, weight in passes.items():
            centres = np.arange(slices) + phase / factor
            first, last = max(0, centres[0]), min(slices - 1, centres[-1])
            if phase == 0 or first - 1e-9 <= position <= last + 1e-9:
                there.append((values[phase][:, j - phase], weight))
        expected = sum(value * weight for value, weight in there) / sum(weight for _, weight in there)
        torch.testing.assert_close(result[:, j], expected)

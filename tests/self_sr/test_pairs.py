"""Windows and targets cut from a block must be those of the whole volume, wherever the window lies.

`make_pair` sees a block only. LR slices equal those of the whole (flipped) volume everywhere, the slices before the
phase and after the last thick slice included: the block carries what the profiles reach.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rehrseg_nnunet.self_sr.network import interpolate_middle
from rehrseg_nnunet.self_sr.pairs import WindowSpec, make_pair, resize_in_plane, sample_window
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels, half_support, slice_profile

FACTORS = (2, 3, 4, 5)


@st.composite
def specs(draw):
    factor = draw(st.sampled_from(FACTORS))
    slices = draw(st.integers(factor, 7 * factor + 2))
    offset = draw(st.integers(0, min(factor, slices - factor + 1) - 1))
    thick = (slices - offset) // factor
    window = draw(st.one_of(st.sampled_from((-1, thick - 1)), st.integers(-1, thick - 1)))
    flip, upper_ties = draw(st.booleans()), draw(st.booleans())
    return WindowSpec(slices, factor, offset, window, flip=flip, upper_ties=upper_ties)


def all_windows(slices, factor, offset, flip=False):
    thick = (slices - offset) // factor
    return [WindowSpec(slices, factor, offset, window, flip) for window in range(-1, thick)]


def volume(slices, seed=0):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(2, slices, 3, 4)))
    return image, torch.from_numpy(rng.integers(-1, 3, size=(slices, 3, 4)).astype(np.int16))


def cut(image, labels, spec):
    block = slice(*spec.stored_block)
    return make_pair(image[:, block], labels[block], spec)


def seen(image, labels, spec):
    """The volume as its simulated acquisition sees it: flipped, cut at the phase, a whole number of thick slices."""
    if spec.flip:
        image, labels = image.flip(1), labels.flip(0)
    used = slice(spec.offset, spec.offset + spec.factor * spec.thick_slices)
    return image[:, used], labels[used]


def acquired(image, spec):
    """All thick slices of the phase from the whole (flipped) volume, by their definition: float64 sums."""
    if spec.flip:
        image = image.flip(1)
    r = spec.factor
    weights = slice_profile(r).numpy()
    taps = np.arange(len(weights)) - (len(weights) - 1) / 2
    thick = []
    for k in range(spec.thick_slices):
        positions = np.rint(spec.offset + r * k + (r - 1) / 2 + taps).astype(int)
        inside = (positions >= 0) & (positions < spec.slices)
        values = image[:, positions[inside]].numpy() * weights[inside, None, None]
        thick.append(values.sum(axis=1) / weights[inside].sum())
    return torch.from_numpy(np.stack(thick, axis=1))


@settings(deadline=None, max_examples=150)
@given(specs())
def test_a_pair_is_cut_from_the_whole_degraded_volume(spec):
    image, labels = volume(spec.slices)
    pair = cut(image, labels, spec)
    whole, whole_labels = seen(image, labels, spec)
    lr = acquired(image, spec)
    lr_labels = degrade_labels(whole_labels, spec.factor, 0, upper_ties=spec.upper_ties)
    window = [min(max(k, 0), spec.thick_slices - 1) for k in range(spec.window - 1, spec.window + 3)]
    torch.testing.assert_close(pair.lr_image, lr[:, window], rtol=0, atol=1e-12)
    assert torch.equal(pair.lr_labels, lr_labels[window])
    first = spec.factor * spec.window + spec.factor // 2
    for target, index in enumerate(range(first, first + spec.factor)):
        inside = 0 <= index < whole.shape[1]
        assert (pair.mask[:, target] == inside).all()
        if inside:
            assert torch.equal(pair.hr_image[:, target], whole[:, index])
            assert torch.equal(pair.hr_labels[target], whole_labels[index])


@settings(deadline=None, max_examples=100)
@given(specs())
def test_shapes_and_blocks(spec):
    start, stop = spec.block
    assert 0 <= start < stop <= spec.slices
    before, after = spec.context
    assert (start + before - spec.offset) % spec.factor == (stop - after - spec.offset) % spec.factor == 0
    assert stop - start <= 8 * spec.factor  # four slices and their halo, however long the volume is
    stored = spec.stored_block
    marked = torch.zeros(spec.slices, dtype=torch.bool)
    marked[slice(*stored)] = True
    if spec.flip:
        marked = marked.flip(0)
    assert marked.nonzero().ravel().tolist() == list(range(start, stop))
    pair = cut(*volume(spec.slices), spec)
    assert pair.lr_image.shape == (2, 4, 3, 4)
    assert pair.lr_labels.shape == (4, 3, 4)
    assert pair.hr_image.shape == (2, spec.factor, 3, 4)
    assert pair.hr_labels.shape == (spec.factor, 3, 4)
    assert pair.mask.shape == (1, spec.factor, 3, 4)


@pytest.mark.parametrize("factor", FACTORS)
def test_inner_blocks_hold_the_profiles_halo(factor):
    spec = WindowSpec(slices=12 * factor, factor=factor, offset=1, window=5, flip=False)
    start, stop = spec.block
    assert start <= 1 + factor * 4 - half_support(factor)
    assert stop >= 1 + factor * 8 + half_support(factor)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("flip", [False, True])
def test_the_first_thick_slice_of_a_phase_sees_the_data_before_it(factor, flip):
    """On a ramp it lies at its centre where a phase leaves enough slices before it."""
    slices, offset = 8 * factor + factor - 1, factor - 1
    ramp = torch.arange(slices, dtype=torch.float64).view(1, -1, 1, 1)
    spec = WindowSpec(slices, factor, offset, 0, flip)
    first = cut(ramp.flip(1) if flip else ramp, torch.zeros(slices, 1, 1, dtype=torch.int16), spec).lr_image[0, 1, 0, 0]
    centre = offset + (factor - 1) / 2
    at_phase_0 = degrade(ramp, factor, 1, context=(0, factor - 1))[0, 0, 0, 0] + offset
    assert abs(first - centre) < 0.4 * abs(at_phase_0 - centre)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("flip", [False, True])
def test_the_windows_of_a_phase_cover_every_slice_once(factor, flip):
    for slices in (factor, 3 * factor, 4 * factor + 1):
        for offset in range(min(factor, slices - factor + 1)):
            windows = all_windows(slices, factor, offset, flip)
            thick = (slices - offset) // factor
            assert len(windows) == thick + 1
            image = torch.arange(slices, dtype=torch.float64).view(1, -1, 1, 1)
            pairs = [cut(image, torch.zeros(slices, 1, 1, dtype=torch.int16), spec) for spec in windows]
            covered = torch.cat([pair.hr_image[pair.mask.bool()] for pair in pairs])
            whole, _ = seen(image, torch.zeros(slices, 1, 1), windows[0])
            assert torch.equal(covered, whole.flatten())


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("flip", [False, True])
def test_a_ramp_lies_on_the_line_between_the_middle_slices(factor, flip):
    """Profile, targets and the network's interpolation have one convention; exact where the profile is complete."""
    slices = 8 * factor + 1
    image = torch.stack([torch.arange(slices), 5 - 2 * torch.arange(slices)]).double()[..., None, None]
    for spec in all_windows(slices, factor, 1, flip)[3:-3]:
        pair = cut(image, torch.zeros(slices, 1, 1, dtype=torch.int16), spec)
        linear = interpolate_middle(pair.lr_image[None], factor)[0]
        torch.testing.assert_close(linear, pair.hr_image, rtol=0, atol=1e-10)
        assert pair.mask.all()


def test_inputs_are_not_changed():
    image, labels = volume(12)
    before = image.clone(), labels.clone()
    pair = cut(image, labels, WindowSpec(12, 3, 0, 0, flip=True))
    for part in pair:
        part.fill_(9)
    assert torch.equal(image, before[0])
    assert torch.equal(labels, before[1])


def test_every_phase_flip_and_window_is_drawn():
    rng = np.random.default_rng(0)
    drawn = [sample_window(9, 4, rng) for _ in range(600)]
    counts = {}
    for spec in drawn:
        key = (spec.offset, spec.flip, spec.window)
        counts[key] = counts.get(key, 0) + 1
    expected = {(o, f, k) for o in range(4) for f in (False, True) for k in range(-1, (9 - o) // 4)}
    assert set(counts) == expected
    assert 240 < sum(spec.upper_ties for spec in drawn) < 360
    per_phase = [sum(n for (offset, _, _), n in counts.items() if offset == o) for o in range(4)]
    assert min(per_phase) > 100


@pytest.mark.parametrize("factor", FACTORS)
def test_the_smallest_volumes(factor):
    rng = np.random.default_rng(0)
    assert {sample_window(factor, factor, rng).offset for _ in range(20)} == {0}
    assert {sample_window(factor + 1, factor, rng).offset for _ in range(20)} == {0, 1}
    with pytest.raises(ValueError, match=f"must be at least {factor}, got {factor - 1}"):
        sample_window(factor - 1, factor, rng)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(FACTORS), st.integers(0, 20), st.integers(0, 2**16), st.data())
def test_the_window_around_a_slice_targets_it(factor, more, seed, data):
    slices = factor + more
    centre = data.draw(st.integers(0, slices - 1))
    spec = sample_window(slices, factor, np.random.default_rng(seed), centre=centre)
    image = torch.arange(slices, dtype=torch.float64).view(1, -1, 1, 1)
    labels = torch.zeros(slices, 1, 1, dtype=torch.int16)
    pair = cut(image, labels, spec)
    reachable = centre in seen(image, labels, spec)[0]
    assert (centre in pair.hr_image[pair.mask.bool()]) == reachable
    assert reachable or slices % factor or spec.offset


def test_zoom_keeps_positions_and_label_values():
    size = 8
    ramp = torch.arange(size, dtype=torch.float32)
    image = torch.stack([ramp.view(1, -1, 1).expand(3, size, size), ramp.view(1, 1, -1).expand(3, size, size)])
    labels = (image[0] >= 4).short() * 5 - (image[1] < 2).short()
    assert resize_in_plane(image, labels, (size, size)) == (image, labels)
    zoomed, zoomed_labels = resize_in_plane(image, labels, (16, 12))
    assert zoomed.shape == (2, 3, 16, 12)
    for axis, length in enumerate((16, 12)):
        expected = ((torch.arange(length) + 0.5) * size / length - 0.5).clamp(0, size - 1)
        torch.testing.assert_close(zoomed[axis].movedim(axis + 1, -1)[0, 0], expected)
    assert zoomed_labels.dtype == labels.dtype
    assert set(zoomed_labels.unique().tolist()) == set(labels.unique().tolist())
    assert torch.equal(zoomed_labels[:, :, -1], torch.where(zoomed[0, :, :, -1] > 3.5, 5, 0).short())

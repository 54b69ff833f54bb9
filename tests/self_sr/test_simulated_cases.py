"""Cases made thick along an in-plane axis, whose truth is known."""

import numpy as np
import pytest
import torch

from rehrseg_nnunet.cases.phantom import make_phantom
from rehrseg_nnunet.self_sr.simulated_cases import simulated_case, simulated_cases
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

FACTOR = 2


@pytest.fixture(scope="module")
def phantom():
    image, labels = make_phantom((16, 16, 16), np.random.default_rng(1))
    return (image[None] / 50).astype(np.float32), labels[None].astype(np.int16)


@pytest.mark.parametrize("upper_ties", [False, True])
@pytest.mark.parametrize("axis", [1, 2])
def test_a_simulated_case_is_the_degraded_volume_with_its_slices_first(axis, upper_ties):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 6, 9, 11)).astype(np.float32)
    labels = rng.integers(-1, 3, size=(1, 6, 9, 11)).astype(np.int8)
    before = image.copy()
    (lr, lr_labels), (truth, true_labels) = simulated_case(image, labels, 4, axis, upper_ties=upper_ties)
    expected = image[:, :, :8].transpose(0, 2, 1, 3) if axis == 1 else image[..., :8].transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(truth, expected)
    assert lr.shape == (2, 2, 6, 11 if axis == 1 else 9)
    assert true_labels.shape == (1, *truth.shape[1:])
    np.testing.assert_allclose(lr, degrade(torch.from_numpy(truth), 4, 1).numpy())
    thick_labels = degrade_labels(torch.from_numpy(true_labels), 4, 1, upper_ties=upper_ties)
    np.testing.assert_array_equal(lr_labels, thick_labels.numpy())
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("upper_ties", [False, True])
def test_both_axes_in_plane_play_the_slice_axis(phantom, upper_ties):
    image, labels = phantom
    cases = list(simulated_cases(phantom, FACTOR, (2.0, 1.0, 1.0), upper_ties=upper_ties))
    assert [case.name for case in cases] == ["simulated along y", "simulated along x"]
    assert [case.spacing_mm for case in cases] == [(2, 1, 1), (2, 1, 1)]
    for axis, case in zip((1, 2), cases, strict=True):
        expected = simulated_case(image, labels, FACTOR, axis, upper_ties=upper_ties)
        for found, volumes in zip((case.lr, case.truth), expected, strict=True):
            for ours, theirs in zip(found, volumes, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert list(simulated_cases(phantom, 17, (17.0, 1.0, 1.0), upper_ties=upper_ties)) == []  # too short


@pytest.mark.parametrize(("spacing_mm", "factor"), [((6.0, 0.75, 0.75), 4), ((2.0, 0.5, 1.5), 2)])
def test_voxels_are_those_of_a_thick_slice_case(spacing_mm, factor):
    """A blob of known size in mm keeps it, and the simulated slices are as thick as the real ones."""
    shape = (24, 48, 32)
    stored_mm = np.array((spacing_mm[0] / factor, *spacing_mm[1:]))
    centres = [(np.arange(n) + 0.5) * mm for n, mm in zip(shape, stored_mm, strict=True)]
    middle = np.array(shape) * stored_mm / 2
    squared = sum((c - m) ** 2 for c, m in zip(np.meshgrid(*centres, indexing="ij"), middle, strict=True))
    blob = np.exp(-squared / (2 * 5.0**2)).astype(np.float32)[None]
    labels = (blob > 0.5).astype(np.int16)
    for axis, case in zip((1, 2), simulated_cases((blob, labels), factor, spacing_mm, upper_ties=False), strict=True):
        other = 3 - axis
        np.testing.assert_allclose(case.spacing_mm, (spacing_mm[0], spacing_mm[axis], spacing_mm[other]), rtol=0.05)
        image, true_labels = case.truth
        assert image.shape[1] == case.lr[0].shape[1] * factor
        mm = np.array((case.spacing_mm[0] / factor, *case.spacing_mm[1:]))
        volume = (labels.sum() * stored_mm.prod(), true_labels.sum() * mm.prod())
        assert volume[0] == pytest.approx(volume[1], rel=0.05)
        for a in range(3):
            positions = (np.arange(image.shape[1 + a]) + 0.5) * mm[a]
            weights = image[0].sum(axis=tuple(b for b in range(3) if b != a))
            mean = (weights * positions).sum() / weights.sum()
            deviation = np.sqrt((weights * (positions - mean) ** 2).sum() / weights.sum())
            original = (axis, 0, other)[a]
            stored = blob[0].sum(axis=tuple(b for b in range(3) if b != original))
            expected = np.sqrt((stored * (centres[original] - middle[original]) ** 2).sum() / stored.sum())
            assert deviation == pytest.approx(expected, rel=0.1)

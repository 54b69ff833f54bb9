"""The shapes of a window's labels, against distances and splines of scipy and the interpolation of volumes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from rehrseg_nnunet.self_sr.network import SelfSRNetwork, target_fractions
from rehrseg_nnunet.self_sr.window_shapes import REACH, ShapeInterpolation, signed_distances
from rehrseg_nnunet.slices.shape_interpolation import interpolated_distance, signed_distance

FACTORS = (2, 3, 4, 7)


def blobs(seed, shape, share=0.3):
    """Random masks of a few voxels in a row."""
    coarse = np.random.default_rng(seed).random((*shape[:-1], -(-shape[-1] // 3))) < share
    return np.repeat(coarse, 3, axis=-1)[..., : shape[-1]]


def window(seed=0, *, batch=2, labels=3, height=20, width=24):
    """One-hot labels (B, K, 4, H, W)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, labels, size=(batch, 4, -(-height // 5), -(-width // 6)))
    label_map = torch.from_numpy(coarse.repeat(5, axis=2).repeat(6, axis=3)[:, :, :height, :width])
    return torch.nn.functional.one_hot(label_map, labels).movedim(-1, 1).float()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 9), st.integers(1, 12))
def test_distances_are_the_exact_ones_up_to_the_limit(seed, shape, step, reach):
    masks = np.stack([blobs(seed + i, shape, share) for i, share in enumerate((0.02, 0.3, 0.9))])
    expected = np.stack([signed_distance(mask, (step, 1, 1)) for mask in masks])
    for i, mask in enumerate(masks):  # there is no other side: as far as it gets
        if mask.all() or not mask.any():
            expected[i] = np.where(mask, np.inf, -np.inf)
    found = signed_distances(torch.from_numpy(masks), (step, 1, 1), reach=reach)
    torch.testing.assert_close(found, torch.from_numpy(expected.clip(-reach, reach).astype(np.float32)))


@pytest.mark.parametrize("factor", FACTORS)
def test_shapes_are_the_natural_spline_of_the_distances_at_the_target_slices(factor):
    labels = window()
    found = ShapeInterpolation(factor)(labels)
    positions = 1 + target_fractions(factor, like=torch.zeros((), dtype=torch.float64)).numpy()
    for sample, restored in zip(labels, found, strict=True):
        for mask, fine in zip(sample, restored, strict=True):
            distance = np.clip(signed_distance(mask.bool().numpy(), (factor, 1, 1)), -REACH, REACH)
            expected = CubicSpline(range(4), distance, bc_type="natural")(positions)
            np.testing.assert_allclose(fine.detach().numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("factor", FACTORS)
def test_a_window_alone_agrees_with_the_interpolation_of_volumes(factor):
    """A volume of four slices is its own middle window."""
    masks = torch.zeros(1, 1, 4, 12, 12)
    for k in range(4):
        masks[0, 0, k, 3 : 7 + k, 4:8] = 1
    volume = interpolated_distance(masks[0, 0].bool().numpy(), factor, 0, spacing_mm=(factor, 1, 1))
    first = factor + factor // 2
    near = volume[first : first + factor].abs() < REACH / 2
    found = ShapeInterpolation(factor)(masks)[0, 0]
    assert near.any()
    torch.testing.assert_close(found[near], volume[first : first + factor][near], atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [2, 4])
def test_shapes_turn_with_the_window(factor):
    labels, shapes = window(height=24), ShapeInterpolation(factor)
    for dims in ([2], [3], [3, 4]):
        torch.testing.assert_close(shapes(labels.flip(dims)), shapes(labels).flip(dims), atol=1e-5, rtol=0)
    torch.testing.assert_close(shapes(labels.mT.contiguous()), shapes(labels).mT, atol=1e-5, rtol=0)


def test_training_starts_from_the_interpolated_shapes():
    torch.manual_seed(0)
    network = SelfSRNetwork(1, 3, 4, base_features=8)
    labels = window(height=16, width=16)
    with torch.no_grad():
        logits = network(torch.cat((torch.rand(2, 1, 4, 16, 16), labels), dim=1)).labels
        shapes = ShapeInterpolation(4)(labels)
    assert (logits - shapes).abs().max() < 0.5
    assert (logits.argmax(1) == shapes.argmax(1)).float().mean() > 0.97


def test_a_label_that_is_nowhere_in_the_window_is_as_far_away_as_can_be():
    labels = torch.zeros(1, 2, 4, 5, 5)
    labels[:, 0] = 1
    found = ShapeInterpolation(3)(labels)
    torch.testing.assert_close(found[:, 0], torch.full((1, 3, 5, 5), float(REACH)))
    torch.testing.assert_close(found[:, 1], torch.full((1, 3, 5, 5), float(-REACH)))


def test_the_weight_is_trained_and_nothing_is_lost_in_mixed_precision():
    labels, shapes = window(), ShapeInterpolation(4)
    plain = shapes(labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = shapes(labels)
    assert torch.equal(plain, mixed)
    mixed.sum().backward()
    torch.testing.assert_close(shapes.weight.grad, plain.detach().sum())
    assert list(shapes.state_dict()) == ["weight"]


def test_direct_labels_do_without():
    assert not any(name.startswith("shapes") for name in SelfSRNetwork(1, 2, 4, label_mode="direct").state_dict())

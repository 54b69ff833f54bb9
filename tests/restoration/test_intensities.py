"""The intensity unit of restoring networks."""

import pytest
import torch

from rehrseg_nnunet.restoration.intensities import MIN_RANGE, normalise


def batch(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 30 + 100


@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (2, 3, 5, 6)])
def test_every_sample_and_channel_gets_mean_0_and_range_1(shape):
    image = batch(*shape)
    before = image.clone()
    unit, lowest, value_range = normalise(image)
    assert lowest.shape == value_range.shape == (2, 3, *(1 for _ in shape[2:]))
    for b in range(2):
        for c in range(3):
            one = unit[b, c]
            assert one.mean().item() == pytest.approx(0, abs=1e-12)
            assert (one.max() - one.min()).item() == pytest.approx(1)
            assert lowest[b, c].item() == image[b, c].min()
            assert value_range[b, c].item() == pytest.approx((image[b, c].max() - image[b, c].min()).item())
    torch.testing.assert_close(
        (unit - unit.amin(dim=tuple(range(2, len(shape))), keepdim=True)) * value_range + lowest, image
    )
    assert torch.equal(image, before)


@pytest.mark.parametrize(("scale", "offset"), [(1e-4, 0.0), (500.0, -1000.0)])
def test_scale_and_offset_do_not_matter(scale, offset):
    image = batch(1, 2, 4, 5, 6)
    unit, lowest, value_range = normalise(image)
    moved = normalise(scale * image + offset)
    torch.testing.assert_close(moved[0], unit)
    torch.testing.assert_close(moved[1], scale * lowest + offset)
    torch.testing.assert_close(moved[2], scale * value_range)


@pytest.mark.parametrize("value", [0.0, -1024.1, 3e4])
def test_constant_windows_are_zero(value):
    unit, lowest, value_range = normalise(torch.full((1, 1, 4, 7, 5), value))
    assert (unit == 0).all()
    assert lowest.item() == pytest.approx(value)
    assert value_range.item() == pytest.approx(MIN_RANGE)

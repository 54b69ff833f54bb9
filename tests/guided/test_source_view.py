"""What the keeper sees of another dataset's patches."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from rehrseg_nnunet.guided.source_view import SourceView

STRIDES = (2, 4, 4)


def patch():
    return torch.randn(2, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0))


def test_channels_in_the_keeper_s_order():
    image = patch()
    assert torch.equal(SourceView(channels=(2, 0)).source(image, STRIDES), image[:, [2, 0]])


def test_intensities_are_converted_by_channel():
    image = patch()
    source = SourceView(channels=(1, 2), scales=(2.0, 1.0), offsets=(0.0, -5.0)).source(image, STRIDES)
    torch.testing.assert_close(source, torch.stack([2 * image[:, 1], image[:, 2] - 5], dim=1))


def test_axes_go_there_and_back():
    image = patch()
    view = SourceView(channels=(0, 1, 2), axes=(2, 0, 1))
    source = view.source(image, STRIDES)
    assert source.shape == (2, 3, 12, 4, 8)
    assert torch.equal(source[:, :, 7, 1, 3], image[:, :, 1, 3, 7])
    assert torch.equal(view.back(source), image)
    plain = SourceView(channels=(0,))
    assert plain.back(image) is image


def test_another_spacing_is_resized_over_the_same_field_of_view():
    """A ramp of millimetres stays one, but for the half voxel beyond the outer centres."""
    x = torch.arange(16.0).expand(1, 1, 4, 4, 16) + 0.5
    view = SourceView(channels=(0,), spacing_ratio=(1.0, 1.0, 2.0))
    source = view.source(x, STRIDES)
    assert source.shape == (1, 1, 4, 4, 32)
    expected = (torch.arange(32.0) + 0.5) / 2
    torch.testing.assert_close(source[0, 0, 0, 0, 1:-1], expected[1:-1])


@pytest.mark.parametrize(
    ("ratio", "size"), [((1.0, 1.0, 1.0), (4, 8, 12)), ((2.0, 1.1, 0.5), (8, 12, 8)), ((0.1, 0.1, 0.34), (2, 4, 8))]
)
def test_sizes_are_rounded_up_to_the_keeper_s_strides(ratio, size):
    view = SourceView(channels=(0,), spacing_ratio=ratio)
    assert view.patch_size((4, 8, 12), STRIDES) == size
    assert view.source(patch(), STRIDES).shape[2:] == size


def test_ratios_are_in_the_keeper_s_axes():
    view = SourceView(channels=(0,), axes=(2, 0, 1), spacing_ratio=(0.5, 1.0, 1.0))
    assert view.patch_size((4, 8, 12), (1, 1, 1)) == (6, 4, 8)


@pytest.mark.parametrize("size", [(4, 8, 12), (5, 7, 9), (1, 3, 5)])
def test_without_a_ratio_too(size):
    expected = tuple(-(-voxels // stride) * stride for voxels, stride in zip(size, STRIDES, strict=True))
    assert SourceView(channels=(0,)).patch_size(size, STRIDES) == expected


def between_centres(line, length):
    """Numbers along one axis, drawn to a length: linear between the voxels' centres, constant beyond the outer ones."""
    centres = (np.arange(length) + 0.5) * len(line) / length - 0.5
    return np.interp(centres, np.arange(len(line)), line)


@pytest.mark.parametrize("ratio", [(), (1.0, 1.3, 0.7)])
def test_rounded_up_patches_are_drawn_to_their_size_axis_by_axis(ratio):
    view = SourceView(channels=(0,), spacing_ratio=ratio)
    image = torch.randn(1, 1, 3, 10, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = image[0, 0].numpy()
    for axis, length in enumerate(view.patch_size((3, 10, 13), STRIDES)):
        expected = np.apply_along_axis(between_centres, axis, expected, length)
    np.testing.assert_allclose(view.source(image, STRIDES)[0, 0].numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("ratio", [(), (1.0, 1.3, 0.7)])
@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flips_commute(ratio, axis):
    view = SourceView(channels=(0,), axes=(2, 0, 1), spacing_ratio=ratio)
    image = torch.randn(1, 1, 3, 10, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flipped = view.back(view.source(image.flip(axis), STRIDES)).flip(axis)
    torch.testing.assert_close(flipped, view.back(view.source(image, STRIDES)))


def test_it_comes_back_from_json():
    view = SourceView(channels=(1,), axes=(1, 0), spacing_ratio=(0.5, 2.0), offsets=(1.0,))
    assert SourceView(**json.loads(json.dumps(dataclasses.asdict(view)))) == view


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scales": (1.0, 2.0)}, r"scales must be as many as channels \(0,\), got \(1.0, 2.0\)"),
        ({"offsets": (1.0, 2.0)}, "offsets must be as many as channels"),
        ({"axes": (0, 2)}, r"axes must be an order of axes from 0 on, got \(0, 2\)"),
        ({"axes": (1, 1)}, "axes must be an order"),
        ({"spacing_ratio": (1.0, 0.0)}, r"spacing_ratio must be positive, got \(1.0, 0.0\)"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SourceView(channels=(0,), **wrong)

import json
import math
from pathlib import Path

import pytest
import torch

from rehrseg_nnunet.self_sr.flavr import (
    FLAVR,
    FLAVRDecoder,
    FLAVREncoder,
    GatedUpConv,
    merge_slices,
    smooth_plane,
    split_slices,
)

REFERENCE = json.loads((Path(__file__).parent / "flavr_4x_reference.json").read_text())


def reference_weights() -> dict[str, torch.Tensor]:
    """The weights that the reference values were computed with: one generator per name, in sorted order."""
    weights = {}
    for index, (name, shape) in enumerate(sorted(REFERENCE["shapes"].items())):
        values = torch.randn(shape, generator=torch.Generator().manual_seed(100003 + index))
        weights[name] = values * (math.sqrt(2 / values[0].numel()) if len(shape) > 1 else 0.01)
    return weights


def assert_matches(tensor: torch.Tensor, reference: dict) -> None:
    assert list(tensor.shape) == reference["shape"]
    sampled = tensor.flatten()[reference["index"]]
    torch.testing.assert_close(sampled, torch.tensor(reference["value"]), atol=1e-4, rtol=0)


def test_published_network_is_reproduced():
    with torch.device("meta"):  # 42 million initial values that nobody needs
        network = FLAVR(3, 3)
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == REFERENCE["shapes"]
    network.load_state_dict(reference_weights(), assign=True)
    frames = torch.rand((1, 3, 4, 32, 48), generator=torch.Generator().manual_seed(1001))
    with torch.no_grad():
        assert_matches(network(frames), REFERENCE["output"])
        centred = frames - frames.mean(dim=(2, 3, 4), keepdim=True)
        layer1 = network.encoder.layer1_features(centred)
        assert_matches(layer1[:, :8], REFERENCE["x1_slice"])
        torch.testing.assert_close(layer1, network.encoder(centred)[1], rtol=0, atol=0)


def test_widths_and_frames_scale():
    network = FLAVR(2, 5, base_features=3)
    assert network(torch.rand(2, 2, 4, 8, 16)).shape == (2, 2, 5, 8, 16)
    features = network.encoder(torch.rand(1, 2, 4, 16, 24))
    assert [tuple(f.shape[1:]) for f in features] == [
        (3, 4, 8, 12), (3, 4, 8, 12), (6, 4, 4, 6), (12, 4, 2, 3), (24, 4, 2, 3),
    ]  # fmt: skip


def test_adding_a_constant_to_a_colour_adds_it_to_every_frame():
    torch.manual_seed(0)
    network = FLAVR(2, 3, base_features=2).double()
    frames = torch.rand(2, 2, 4, 8, 8, dtype=torch.float64)
    shift = torch.tensor([3.0, -7.0], dtype=torch.float64).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(network(frames + shift), network(frames) + shift)


def test_layer1_does_not_need_the_later_layers():
    encoder = FLAVREncoder(2, base_features=2)
    for name in ("layer2", "layer3", "layer4"):
        delattr(encoder, name)
    assert encoder.layer1_features(torch.rand(1, 2, 4, 16, 8)).shape == (1, 2, 4, 8, 4)


def test_merge_and_split_are_inverse_and_slice_major():
    features = torch.arange(2 * 3 * 4).reshape(1, 2, 3, 2, 2)
    merged = merge_slices(features)
    assert torch.equal(merged[:, 2:4], features[:, :, 1])
    assert torch.equal(split_slices(merged, 3), features)


@pytest.mark.parametrize("shape", [(1, 3, 3, 8, 8), (1, 3, 4, 12, 8), (1, 3, 4, 8, 9)])
def test_unusable_sizes_are_refused(shape):
    with pytest.raises(ValueError, match=r"frames must be 4 frames of a size divisible by 8, got"):
        FLAVR(3, 3, base_features=1)(torch.zeros(shape))


@pytest.mark.parametrize("smooth", [False, True])
def test_smoothed_upsampling_draws_no_checkerboard(smooth):
    """A constant plane stays constant away from its borders, whatever the weights."""
    torch.manual_seed(0)
    plane = GatedUpConv(3, 2, smooth=smooth)(torch.ones(1, 3, 4, 8, 8))[..., 3:-3, 3:-3]
    assert ((plane - plane[..., :1, :1]).abs().amax() < 1e-6) == smooth


def test_smoothing_is_1_2_1_in_plane():
    impulse = torch.zeros(1, 1, 3, 5, 5)
    impulse[0, 0, 1, 2, 2] = 16
    smooth = smooth_plane(impulse)
    assert smooth[0, 0, 1, 1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    assert smooth.sum() == 16
    assert torch.equal(smooth_plane(torch.ones(1, 1, 1, 3, 4)), torch.ones(1, 1, 1, 3, 4))


def test_smoothing_has_no_weights_so_published_ones_fit():
    plain, smooth = (FLAVRDecoder(base_features=2, smooth=smooth).state_dict() for smooth in (False, True))
    assert {name: value.shape for name, value in plain.items()} == {n: v.shape for n, v in smooth.items()}

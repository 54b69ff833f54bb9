"""The mean over the plane's symmetries, against its own definition."""

import pytest
import torch

from rehrseg_nnunet.inference.self_ensemble import plane_symmetries, super_resolve_ensemble
from rehrseg_nnunet.inference.super_resolve import super_resolve
from rehrseg_nnunet.networks.self_sr import SelfSRNetwork


@pytest.fixture
def network():
    torch.manual_seed(0)
    return SelfSRNetwork(1, 2, 2, base_features=4, candidates=2).eval()


def case(plane=(8, 16)):
    generator = torch.Generator().manual_seed(1)
    foreground = (torch.rand(3, *plane, generator=generator) > 0.5).float()
    return torch.randn(1, 3, *plane, generator=generator), torch.stack([1 - foreground, foreground])


def test_the_eight_symmetries_of_the_plane_and_their_inverses():
    plane = torch.arange(6.0).view(1, 2, 3)
    images = [apply(plane) for apply, _ in plane_symmetries()]
    assert len({tuple(image.flatten().tolist()) + tuple(image.shape) for image in images}) == 8
    for (_, undo), image in zip(plane_symmetries(), images, strict=True):
        torch.testing.assert_close(undo(image), plane, rtol=0, atol=0)
    torch.testing.assert_close(images[0], plane, rtol=0, atol=0)


def test_it_is_the_mean_of_the_turned_cases(network):
    image, labels = case()
    single = []
    for flipped in (False, True):
        for transposed in (False, True):
            for mirrored in (False, True):
                dims = [d for d, on in ((2, flipped), (3, mirrored)) if on]

                def turn(v, dims=dims, transposed=transposed):
                    v = v.flip(dims)
                    return v.transpose(2, 3).contiguous() if transposed else v

                output = super_resolve(network, turn(image), turn(labels))
                single.append([(t.transpose(2, 3) if transposed else t).flip(dims) for t in output])
    for ours, parts in zip(super_resolve_ensemble(network, image, labels), zip(*single, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(parts).mean(0), rtol=0, atol=1e-5)


def test_it_turns_with_the_case(network):
    image, labels = case()
    for apply, _ in plane_symmetries():
        turned = super_resolve_ensemble(network, apply(image), apply(labels))
        for ours, expected in zip(turned, super_resolve_ensemble(network, image, labels), strict=True):
            torch.testing.assert_close(ours, apply(expected), rtol=0, atol=1e-5)
    assert not torch.allclose(
        super_resolve_ensemble(network, image, labels).image, super_resolve(network, image, labels).image
    )

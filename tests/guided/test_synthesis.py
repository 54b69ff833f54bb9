"""Images of whole cases: windows that join, and the way back to the case's file."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guidance_shapes import shape_of
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import nn

from rehrseg_nnunet.guided.synthesis import file_stems, in_case_grid, synthesise
from rehrseg_nnunet.guided.teacher import Teacher

CPU = torch.device("cpu")
RESAMPLING = {
    "architecture": {},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def plans(forward=(0, 1, 2)):
    return SimpleNamespace(
        transpose_forward=list(forward),
        transpose_backward=[forward.index(axis) for axis in range(3)],
    )


class Doubled(nn.Module):
    """Two channels of one, and what it saw."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.sizes = set()

    def forward(self, patch):
        self.sizes.add(tuple(patch.shape[2:]))
        return SimpleNamespace(image=torch.cat([patch, self.scale * patch], 1))


@pytest.mark.parametrize(("patch", "case"), [((8, 8, 8), (5, 19, 12)), ((8, 8), (3, 11, 8))])
def test_windows_cover_every_voxel_once(patch, case):
    network = Doubled()
    image = torch.randn(1, *case)
    found = synthesise(network, image, patch_size=patch, device=CPU)
    assert network.sizes == {patch}
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.cat([image, 2 * image]).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("restored", [True, False])
def test_patches_of_a_ramp_join(restored):
    """A window further along a ramp is as the one before it, only brighter: so is the synthesised image.

    Without level restoration it is not brighter: networks with instance norms see that from a patch's border at most.
    """
    torch.manual_seed(0)
    teacher = Teacher(shape_of("cube"), level_restoration=restored)
    slope = 0.25
    ramp = (slope * torch.arange(40.0)).expand(1, 16, 16, 40).contiguous()
    found = synthesise(teacher, ramp, patch_size=(16, 16, 16), device=CPU)
    further = found[..., 16:32] - found[..., 8:24]  # windows are 8 voxels apart
    if restored:
        np.testing.assert_allclose(further, 8 * slope, atol=1e-4)
    else:
        assert abs(further.mean()) < slope


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("forward", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_the_file_gets_what_was_cropped_and_turned(forward, masked):
    """Normalised within a mask, background is 0 beside it too, and not the darkest of the head."""
    rng = np.random.default_rng(0)
    raw = rng.normal(size=(7, 9, 11)).astype(np.float32)
    turned = raw.transpose(forward)
    box = [[1, 5], [2, 7], [0, 6]]
    properties = {
        "spacing": [3.0, 1.0, 0.5],
        "shape_before_cropping": turned.shape,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": tuple(b - a for a, b in box),
    }
    cropped = turned[tuple(slice(*edges) for edges in box)]
    spacing = [properties["spacing"][axis] for axis in forward]
    configuration = ConfigurationManager({"spacing": spacing, **RESAMPLING})
    found = in_case_grid(cropped, properties, plans(forward), configuration, masked=masked)
    expected = np.full_like(turned, 0 if masked else cropped.min())
    expected[tuple(slice(*edges) for edges in box)] = cropped
    np.testing.assert_array_equal(found, expected.transpose(np.argsort(forward)))


def test_a_ramp_is_resampled_to_a_ramp():
    """Thick slices too, which nnU-Net would copy."""
    shape = (6, 10, 8)
    properties = {
        "spacing": [2.0, 1.0, 1.0],
        "shape_before_cropping": shape,
        "bbox_used_for_cropping": [[0, n] for n in shape],
        "shape_after_cropping_and_before_resampling": shape,
    }
    fine = np.broadcast_to((np.arange(12.0) + 0.5)[:, None, None] / 2, (12, 10, 8))
    configuration = ConfigurationManager({"spacing": [1.0, 1.0, 1.0], **RESAMPLING})
    found = in_case_grid(fine, properties, plans(), configuration, masked=False)
    np.testing.assert_allclose(found[1:-1, 0, 0], np.arange(1, 5) + 0.5, atol=1e-5)
    coarse = np.broadcast_to((np.arange(3.0) + 0.5)[:, None, None] * 2, (3, 10, 8))
    configuration = ConfigurationManager({"spacing": [4.0, 1.0, 1.0], **RESAMPLING})
    found = in_case_grid(coarse, properties, plans(), configuration, masked=False)
    np.testing.assert_allclose(found[1:-1, 0, 0], np.arange(1, 5) + 0.5, atol=1e-5)


def test_names_of_files():
    assert file_stems("out/case", [1]) == ["out/case"]
    assert file_stems("out/case", [2, 3]) == ["out/case_0002", "out/case_0003"]

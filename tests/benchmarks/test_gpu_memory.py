"""The counts of docs/reference/gpu-memory.md beside what PyTorch keeps for the backward pass, default networks."""

from pathlib import Path

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from benchmarks.gpu.memory import (
    CONVOLUTIONS,
    FEATURES,
    PARAMETERS,
    STRIDES,
    hr_head_values_per_voxel,
    self_sr_values_per_pixel,
    table,
    unet_values_per_voxel,
)
from rehrseg_nnunet.config.rehrseg import RehrsegConfig
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.segmentation.hr_network import set_output_mode
from rehrseg_nnunet.self_sr.network import SelfSRNetwork

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "gpu-memory.md"
CLASSES = 3


def kept_values(network, image):
    """Values of all tensors that are kept for the backward pass, each memory block once, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes() / tensor.element_size(), tensor)  # alive: addresses are unique
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(image)
    return sum(values for values, _ in kept.values())


def unet():
    return PlainConvUNet(
        1,
        len(FEATURES),
        FEATURES,
        nn.Conv3d,
        [(1, 3, 3)] + [(3, 3, 3)] * (len(FEATURES) - 1),
        STRIDES,
        CONVOLUTIONS,
        CLASSES,
        CONVOLUTIONS,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    )


def test_unet_and_hr_head():
    network, image = unet(), torch.randn(1, 1, 8, 32, 64)
    plain = kept_values(network, image)
    assert plain / image.numel() == pytest.approx(unet_values_per_voxel(FEATURES, STRIDES), rel=0.01)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(PARAMETERS["unet"], rel=0.02)
    config = RehrsegConfig().segmentation.hr_head
    set_output_mode(add_hr_head(network, factor=4, teacher_channels=64, config=config), "training")
    added = (kept_values(network, image) - plain) / image.numel()
    expected = hr_head_values_per_voxel(hidden_features=config.hidden_features, factor=4, classes=CLASSES)
    assert added == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("factor", [3, 4])
def test_self_sr(factor):
    network, window = SelfSRNetwork(1, CLASSES, factor), torch.rand(1, 1 + CLASSES, 4, 16, 16)
    expected = self_sr_values_per_pixel(
        base_features=64, candidates=16, factor=factor, image_channels=1, label_channels=CLASSES
    )
    assert kept_values(network, window) / 16**2 == pytest.approx(expected, rel=0.05)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(PARAMETERS["self_sr"], rel=0.02)


def test_the_page_has_the_table():
    assert table() in PAGE.read_text()

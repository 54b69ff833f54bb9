"""nnU-Net's networks, small, and keepers for them."""

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from rehrseg_nnunet.config.guidance import FusionConfig
from rehrseg_nnunet.guided.guided_network import add_guidance
from rehrseg_nnunet.guided.keeper import Keeper
from rehrseg_nnunet.guided.shape import GuidanceShape
from rehrseg_nnunet.guided.source_view import SourceView

STRIDES = {3: [[1, 1, 1], [1, 2, 2], [2, 2, 2]], 2: [[1, 1], [2, 2], [2, 2]]}
KERNELS = {3: [[1, 3, 3], [3, 3, 3], [3, 3, 3]], 2: [[3, 3]] * 3}
FEATURES = [8, 12, 16]
KINDS = [(kind, dimension) for kind in ("plain", "residual") for dimension in (2, 3)]


def stock(kind="plain", dimension=3, *, deep_supervision=False, seed=0):
    """With two input channels and three labels."""
    torch.manual_seed(seed)
    cls, blocks = {
        "plain": (PlainConvUNet, "n_conv_per_stage"),
        "residual": (ResidualEncoderUNet, "n_blocks_per_stage"),
    }[kind]
    network = cls(
        input_channels=2,
        n_stages=3,
        features_per_stage=FEATURES,
        conv_op={2: nn.Conv2d, 3: nn.Conv3d}[dimension],
        kernel_sizes=KERNELS[dimension],
        strides=STRIDES[dimension],
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op={2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[dimension],
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **{blocks: 1},
    )
    network.apply(network.initialize)
    return network


def keeper_for(dimension=3, *, levels=3, sources=1, seed=1, residual=False):
    torch.manual_seed(seed)
    strides, kernels = STRIDES[dimension], KERNELS[dimension]
    more = levels - len(strides)
    shape = GuidanceShape(
        strides=(strides + [[2] * dimension] * more)[:levels],
        kernels=(kernels + [[3] * dimension] * more)[:levels],
        widths=[4] * levels,
        convs_per_block=1,
        source_channels=sources,
    )
    return Keeper(shape, kernel=3, residual=residual)


def guided(network, *, keeper=None, channels=(0,), learns=False, view=None, seed=2, **fusion):
    dimension = network.decoder.seg_layers[-1].weight.ndim - 2
    keeper = keeper or keeper_for(dimension, sources=len(channels))
    torch.manual_seed(seed)
    view = view or SourceView(channels=channels)
    return add_guidance(network, keeper, view=view, fusion=FusionConfig(**fusion), learns=learns)


def images(dimension=3, batch=2, seed=3):
    size = {2: (16, 24), 3: (4, 16, 24)}[dimension]
    return torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(seed))


def as_list(output):
    return output if isinstance(output, list) else [output]

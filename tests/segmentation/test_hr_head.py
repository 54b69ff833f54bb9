import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.segmentation.hr_head import HRHead, add_hr_head
from rehrseg_nnunet.segmentation.hr_network import (
    TrainingOutputs,
    get_output_mode,
    gives_hr_logits,
    output_mode,
    set_output_mode,
)
from rehrseg_nnunet.slices.slice_upsampling import LogitInterpolation

FACTOR = 3
CONFIG = HRHeadConfig(hidden_features=4)
LR_LOGITS = torch.zeros(())  # a direct head does not look at them
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def stock(kind="plain", *, deep_supervision=False, strides=STRIDES, conv_op=nn.Conv3d, seed=0):
    torch.manual_seed(seed)
    stages = len(strides)
    cls, blocks = {
        "plain": (PlainConvUNet, "n_conv_per_stage"),
        "residual": (ResidualEncoderUNet, "n_blocks_per_stage"),
    }[kind]
    norm = nn.InstanceNorm3d if conv_op is nn.Conv3d else nn.InstanceNorm2d
    return cls(
        input_channels=2,
        n_stages=stages,
        features_per_stage=[4, 6, 8, 8][:stages],
        conv_op=conv_op,
        kernel_sizes=3,
        strides=strides,
        num_classes=3,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **{blocks: 1},
    )


def with_head(network, **kwargs):
    torch.manual_seed(1)
    return add_hr_head(network, **{"factor": FACTOR, "teacher_channels": 5, "config": CONFIG, **kwargs})


def give_residual(network, seed=3):
    """Let the head add something to the interpolated logits, as after training."""
    with torch.no_grad():
        weight = network.decoder.seg_layers[-1].hr_head.second.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return network


def direct_head(**config):
    config = HRHeadConfig(label_mode="direct", **config)
    return with_head(stock(), config=config).decoder.seg_layers[-1].hr_head


def image(seed=2):
    return torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def as_list(output):
    return output if isinstance(output, list) else [output]


def count_convolutions(network, x):
    calls = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in network.modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    ]
    network(x)
    for handle in handles:
        handle.remove()
    return len(calls)


variants = pytest.mark.parametrize("kind", ["plain", "residual"])
deep = pytest.mark.parametrize("deep_supervision", [False, True])


@variants
@deep
def test_lr_mode_is_the_stock_network(kind, deep_supervision):
    plain = stock(kind, deep_supervision=deep_supervision)
    network = with_head(copy.deepcopy(plain))
    outputs, expected = as_list(network(image())), as_list(plain(image()))
    assert len(outputs) == len(expected) == (2 if deep_supervision else 1)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
    assert isinstance(network(image()), list) == deep_supervision
    assert count_convolutions(network, image()) == count_convolutions(plain, image())


@variants
@deep
def test_training_mode_gives_everything_in_one_pass(kind, deep_supervision):
    plain = stock(kind, deep_supervision=deep_supervision)
    network = with_head(copy.deepcopy(plain))
    with output_mode(network, "training"):
        out = network(image())
        # HR head (2) and adaptor (1) on top of one pass
        assert count_convolutions(network, image()) == count_convolutions(plain, image()) + 3
    assert isinstance(out, TrainingOutputs)
    assert all(torch.equal(a, b) for a, b in zip(as_list(out.lr), as_list(plain(image())), strict=True))
    assert out.hr.shape == (2, 3, FACTOR * 4, 16, 16)
    assert out.adapted.shape == (2, 5, 4, 8, 8)
    assert torch.equal(out.student, plain.encoder(image())[1])
    with output_mode(network, "hr"):
        lr, hr = network(image())
        assert torch.equal(lr, as_list(out.lr)[0])
        assert torch.equal(hr, out.hr)
        assert count_convolutions(network, image()) == count_convolutions(plain, image()) + 2


@variants
def test_new_weights_are_named_as_segmentation_layers(kind):
    plain, network = stock(kind), with_head(stock(kind))
    new = set(network.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(network.state_dict())
    # two convolutions of the head and the adaptor, weight and bias each, and the taps of the interpolation, once
    assert len(new) == 7
    assert all(".seg_layers." in key for key in new)
    give_residual(network)
    other = with_head(stock(kind, seed=7))
    other.load_state_dict(network.state_dict(), strict=True)
    with output_mode(network, "hr"), output_mode(other, "hr"):
        assert all(torch.equal(a, b) for a, b in zip(network(image()), other(image()), strict=True))


@variants
def test_plain_checkpoint_passes_nnunets_pretrained_weights(kind, tmp_path):
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    plain, network = stock(kind, seed=5), with_head(stock(kind))
    head_before = {k: v.clone() for k, v in network.state_dict().items() if ".seg_layers." in k}
    torch.save({"network_weights": plain.state_dict()}, tmp_path / "checkpoint.pth")
    load_pretrained_weights(network, str(tmp_path / "checkpoint.pth"))
    for key, value in network.state_dict().items():
        assert torch.equal(value, head_before[key] if key in head_before else plain.state_dict()[key]), key


@variants
@deep
def test_gradients_reach_every_weight(kind, deep_supervision):
    network = give_residual(with_head(stock(kind, deep_supervision=deep_supervision)))
    set_output_mode(network, "training")
    out = network(image())
    sum(t.square().mean() for t in [*as_list(out.lr), out.hr, out.adapted]).backward()
    unused = {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"} if not deep_supervision else set()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # a bias in front of an instance norm has no effect; nnU-Net's networks have such biases
    biases_before_norm = {name for name in without if name.endswith("bias") and ".seg_layers." not in name}
    assert without - biases_before_norm == unused


@variants
def test_compiles_without_graph_break_in_every_mode(kind):
    network = give_residual(with_head(stock(kind, deep_supervision=True)))
    torch.compiler.reset()  # graphs of other tests of the same code count otherwise
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    for mode in ("lr", "training", "hr"):
        set_output_mode(compiled, mode)
        assert get_output_mode(network) == mode
        with torch.no_grad():
            torch.testing.assert_close(compiled(image()), network(image()), rtol=0, atol=0)


@variants
@deep
def test_a_new_residual_head_interpolates_the_lr_logits(kind, deep_supervision):
    network = with_head(stock(kind, deep_supervision=deep_supervision))
    with output_mode(network, "training"):
        out = network(image())
    lr = as_list(out.lr)[0]
    torch.testing.assert_close(out.hr, LogitInterpolation(FACTOR)(lr))
    assert out.hr.std() > 0.1 * lr.std() > 0


@deep
def test_the_hr_loss_does_not_teach_the_lr_head(deep_supervision):
    """Eq. 7 takes the weight of wrong pseudo labels from the LR loss; they must not come back by the HR logits."""
    network = give_residual(with_head(stock(deep_supervision=deep_supervision)))
    set_output_mode(network, "training")
    layer = network.decoder.seg_layers[-1]
    network(image()).hr.square().mean().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is None
    for name in ("hr_head.first.weight", "hr_head.second.weight"):
        assert layer.get_parameter(name).grad.abs().sum() > 0
    assert network.encoder.stages[0][0].convs[0].conv.weight.grad.abs().sum() > 0  # the features still learn from it


@pytest.mark.parametrize("upsampling", ["subpixel", "interpolate"])
def test_a_residual_is_what_the_direct_head_predicts_added_to_the_interpolated_logits(upsampling):
    features, lr = (torch.randn(2, c, 4, 6, 7, generator=torch.Generator().manual_seed(c)) for c in (4, 3))
    residual, direct = (
        HRHead(4, 3, factor=FACTOR, config=HRHeadConfig(label_mode=mode, upsampling=upsampling))
        for mode in ("residual", "direct")
    )
    direct.load_state_dict(residual.state_dict(), strict=False)
    torch.testing.assert_close(residual(features, lr) - direct(features, lr), residual.interpolation(lr))
    torch.testing.assert_close(direct(features, lr), direct(features, lr + 1))


def test_constant_features_give_constant_logits_away_from_the_border():
    head = direct_head(upsampling="interpolate", hidden_features=4)
    hr = head(torch.full((1, 4, 6, 9, 9), 0.7), LR_LOGITS)
    centre = hr[0, :, :, 4, 4]
    # kernels 3 and 5 look 3 HR slices far
    torch.testing.assert_close(centre[:, 3:-3], centre[:, 9:10].expand(-1, 12))
    assert not torch.allclose(centre[:, 0], centre[:, 9])


def test_constant_features_give_every_lr_slice_the_same_logits_with_subpixel_convolution():
    head = direct_head(hidden_features=4)
    hr = head(torch.full((1, 4, 6, 9, 9), 0.7), LR_LOGITS)
    slices = hr[0, :, :, 4, 4].unflatten(1, (6, FACTOR))
    # kernel 3 looks one LR slice far, kernel 5 one more
    torch.testing.assert_close(slices[:, 2:-2], slices[:, 2:3].expand(-1, 2, -1))


def test_subpixel_head_predicts_each_hr_slice_from_its_lr_neighbourhood():
    head = direct_head(upsampling="subpixel", hidden_features=4, first_kernel=3, second_kernel=1)
    features = torch.randn(1, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    hr = head(features, LR_LOGITS)
    assert hr.shape == (1, 3, 5 * FACTOR, 6, 7)
    maps = nn.functional.conv3d(features, head.first.weight, head.first.bias, padding=1)
    for lr_slice, sub in ((0, 0), (2, 1), (4, FACTOR - 1)):
        hidden = torch.stack([maps[:, FACTOR * channel + sub, lr_slice] for channel in range(4)], dim=1)
        logits = nn.functional.conv2d(hidden.relu(), head.second.weight[:, :, 0], head.second.bias)
        torch.testing.assert_close(hr[:, :, FACTOR * lr_slice + sub], logits)


def test_deepcopy_is_independent():
    network = with_head(stock())
    other = copy.deepcopy(network)
    set_output_mode(other, "hr")
    assert get_output_mode(network) == "lr"
    assert [logits.shape[2] for logits in other(image())] == [4, FACTOR * 4]


def test_mode_is_restored_after_an_error():
    network = with_head(stock())
    with pytest.raises(RuntimeError, match="stop"), output_mode(network, "hr"):
        raise RuntimeError("stop")
    assert get_output_mode(network) == "lr"


def test_reaches_through_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(with_head(stock(deep_supervision=True)))
        assert gives_hr_logits(wrapped)
        set_output_mode(wrapped, "training")
        out = wrapped(image())
        assert isinstance(out, TrainingOutputs)
        sum(t.mean() for t in [*out.lr, out.hr, out.adapted]).backward()
    finally:
        torch.distributed.destroy_process_group()


def test_student_is_the_first_stage_at_in_plane_stride_two():
    network = with_head(stock(strides=[[1, 1, 1], [2, 1, 1], [1, 2, 2], [2, 2, 2]]))
    with output_mode(network, "training"):
        assert network(image()).student.shape == (2, 8, 2, 8, 8)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.Sequential(nn.Conv3d(1, 1, 1)), "not Sequential"),
        (lambda: stock(strides=[[1, 1], [2, 2]], conv_op=nn.Conv2d), "not PlainConvUNet"),
        (lambda: stock(strides=[[1, 1, 1], [1, 4, 4]]), "in-plane stride 2"),
    ],
)
def test_refuses_other_networks(network, message):
    with pytest.raises(NotImplementedError, match=message):
        with_head(network())


def test_refuses_wrong_use():
    with pytest.raises(ValueError, match="factor must be"):
        with_head(stock(), factor=1)
    with pytest.raises(ValueError, match="without an HR head"):
        with_head(with_head(stock()))
    with pytest.raises(ValueError, match="mode must be"):
        set_output_mode(with_head(stock()), "both")
    with pytest.raises(ValueError, match="must have an HR head"):
        set_output_mode(stock(), "hr")

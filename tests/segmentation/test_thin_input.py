"""A network of thin slices that takes thick ones: what it returns in every mode, and where its slices lie."""

import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.segmentation.hr_network import (
    TrainingOutputs,
    get_output_mode,
    gives_hr_logits,
    hr_factor,
    output_mode,
    set_output_mode,
)
from rehrseg_nnunet.segmentation.thin_input import add_thin_input, interpolate_scan, padded_slices, pads_as_background
from rehrseg_nnunet.slices.slice_upsampling import ImageInterpolation, centre_slices, repeat_last_slice

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def unet(cls=PlainConvUNet, *, deep_supervision=False, strides=STRIDES, seed=0):
    torch.manual_seed(seed)
    blocks = "n_conv_per_stage" if cls is PlainConvUNet else "n_blocks_per_stage"
    return cls(
        input_channels=2,
        n_stages=len(strides),
        features_per_stage=[4, 6, 8][: len(strides)],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=strides,
        num_classes=3,
        n_conv_per_stage_decoder=1,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
        **{blocks: 1},
    )


def image(slices=4, seed=1):
    return torch.randn(2, 2, slices, 8, 12, generator=torch.Generator().manual_seed(seed))


def thin(network, factor=4):
    return add_thin_input(network, factor=factor, teacher_channels=5, interpolation="spline").eval()


@pytest.mark.parametrize("factor", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", [PlainConvUNet, ResidualEncoderUNet])
def test_it_is_the_networks_own_logits_of_the_interpolated_image(kind, factor):
    network = unet(kind).eval()
    stock = copy.deepcopy(network)
    extended = thin(network, factor)
    slices = 4 * factor
    seen = repeat_last_slice(ImageInterpolation(factor, "spline")(image()), padded_slices(slices, 4))
    expected = stock(seen)[:, :, :slices]
    with output_mode(extended, "hr"):
        thick_logits, thin_logits = extended(image())
    torch.testing.assert_close(thin_logits, expected)
    torch.testing.assert_close(thick_logits, centre_slices(expected, factor))
    torch.testing.assert_close(extended(image()), thick_logits)
    assert thick_logits.shape == (2, 3, 4, 8, 12)


@pytest.mark.parametrize("factor", [3, 4])
def test_training_outputs(factor):
    network = thin(unet(deep_supervision=True), factor)
    with output_mode(network, "training"):
        outputs = network(image())
    assert isinstance(outputs, TrainingOutputs)
    seen = padded_slices(4 * factor, 4)
    assert outputs.lr.shape == (2, 3, 4, 8, 12)
    assert [tuple(o.shape[2:]) for o in outputs.hr] == [(4 * factor, 8, 12), (seen // 2, 4, 6)]
    torch.testing.assert_close(outputs.lr, centre_slices(outputs.hr[0], factor))
    assert outputs.student.shape == (2, 6, 4, 4, 6)
    assert outputs.adapted.shape == (2, 5, 4, 4, 6)


def test_deep_supervision_gives_nnunets_validation_a_list_of_one():
    network = thin(unet(deep_supervision=True))
    (only,) = network(image())
    unwrap(network).decoder.deep_supervision = False
    torch.testing.assert_close(network(image()), only)


def test_the_student_is_the_mean_over_the_thin_slices_of_a_thick_one():
    network = thin(unet(), 4)
    with output_mode(network, "training"):
        outputs = network(image())
    skips = network.encoder(network.interpolation(image()))
    torch.testing.assert_close(outputs.student, skips[1].unflatten(2, (4, 2)).mean(3))


def test_where_slices_are_missing_at_the_far_end_the_last_one_is_repeated_and_seen_by_no_one():
    network = thin(unet(), 3)  # 4 slices are 12, 5 are 15 and a 16th
    with output_mode(network, "training"):
        outputs = network(image(5))
    assert outputs.hr.shape[2] == 15
    assert outputs.student.shape[2] == 5


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (2, 1)])
@pytest.mark.parametrize("factor", [3, 4])
def test_a_padded_scan_is_interpolated_as_the_scan_and_padded_then(factor, before, after):
    interpolation = ImageInterpolation(factor, "spline")
    scan = image(slices=5)
    scan[:, :, 2] = 0  # within the scan a slice of zeros is one that was acquired
    scan[:, 0, 0] = 0  # and so is one that another channel shows something in
    whole = image(slices=5 + before + after, seed=2)
    batch = torch.cat([functional.pad(scan, (0, 0, 0, 0, before, after)), whole])
    alone = functional.pad(interpolation(scan), (0, 0, 0, 0, factor * before, factor * after))
    torch.testing.assert_close(interpolate_scan(batch, interpolation), torch.cat([alone, interpolation(whole)]))


ZSCORE, CT = "ZScoreNormalization", "CTNormalization"


@pytest.mark.parametrize(
    ("schemes", "masked", "expected"),
    [
        ([ZSCORE], [False], False),
        ([ZSCORE], [True], True),
        ([CT], [False], False),
        (["NoNormalization", "RescaleTo01Normalization"], [False, False], True),
        ([ZSCORE, ZSCORE], [True, False], False),  # one channel tells padding from the scan
        (["SomebodysNormalization"], [False], False),
    ],
)
def test_padding_is_interpolated_where_zeros_are_the_scans_background(schemes, masked, expected):
    configuration = {"normalization_schemes": schemes, "use_mask_for_norm": masked}
    assert pads_as_background(configuration) == expected


@pytest.mark.parametrize("interpolates_padding", [True, False])
def test_the_network_sees_padding_as_it_was_told(interpolates_padding):
    stock = unet().eval()
    settings = {"factor": 4, "teacher_channels": 5, "interpolation": "spline"}
    network = add_thin_input(copy.deepcopy(stock), **settings, interpolates_padding=interpolates_padding).eval()
    scan, interpolation = functional.pad(image(slices=3), (0, 0, 0, 0, 0, 1)), ImageInterpolation(4, "spline")
    seen = interpolation(scan) if interpolates_padding else interpolate_scan(scan, interpolation)
    with output_mode(network, "hr"):
        torch.testing.assert_close(network(scan)[1], stock(seen))


def test_a_patch_beyond_the_scan_stays_empty():
    empty = torch.zeros(1, 2, 3, 4, 4)
    assert torch.equal(interpolate_scan(empty, ImageInterpolation(4, "spline")), torch.zeros(1, 2, 12, 4, 4))


def test_weights_keep_their_names_and_every_new_one_is_a_segmentation_layers():
    network = unet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    after = thin(network).state_dict()
    assert before.keys() < after.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(".seg_layers." in name for name in after.keys() - before.keys())


def test_all_weights_learn_from_the_training_outputs():
    network = thin(unet(deep_supervision=True))
    with output_mode(network, "training"):
        outputs = network(image())
    sum(t.square().sum() for t in (outputs.lr, *outputs.hr, outputs.adapted)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if "bias" not in n)


def test_it_answers_as_the_network_with_an_hr_head_does():
    plain, network = unet(), thin(unet(), 4)
    assert not gives_hr_logits(plain)
    assert gives_hr_logits(network)
    assert hr_factor(network) == 4
    assert get_output_mode(network) == "lr"
    set_output_mode(network, "hr")
    assert get_output_mode(network) == "hr"
    with pytest.raises(ValueError, match="mode must be one of"):
        set_output_mode(network, "thin")
    with pytest.raises(ValueError, match="network must be one of nnU-Net's own"):
        thin(network)


@pytest.mark.parametrize("factor", [1, 2.5])
def test_impossible_factors_are_refused(factor):
    with pytest.raises(ValueError, match="factor must be an integer of at least 2"):
        thin(unet(), factor)


def test_networks_without_a_stage_at_in_plane_stride_2_are_refused():
    with pytest.raises(NotImplementedError, match="in-plane stride 2"):
        thin(unet(strides=[[1, 1, 1], [2, 4, 4]]))

"""The teacher: sizes, noise in training only, levels that come back, patches that join."""

import copy
import pickle

import pytest
import torch
from guidance_counts import counted, decoder_count, encoder_count, reconstruction_count
from guidance_shapes import PATCHES, TABLES, patch_of, shape_of

from rehrseg_nnunet.guided.losses import TeacherLoss
from rehrseg_nnunet.guided.shape import GuidanceShape, level_sizes
from rehrseg_nnunet.guided.teacher import Teacher, TeacherDecoder, TeacherEncoder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def patch(name, channels=1, batch=2, dtype=torch.float32):
    return torch.randn(batch, channels, *patch_of(name), dtype=dtype)


def paper_shape():
    return GuidanceShape(
        strides=[(1, 1, 1), *[(2, 2, 2)] * 4],
        kernels=[(3, 3, 3)] * 5,
        widths=(16, 32, 64, 128, 256),
        convs_per_block=1,
    )


def test_the_paper_s_network_has_its_weights():
    teacher = Teacher(paper_shape())
    assert counted(teacher) == 4_794_560
    assert counted(teacher.encoder) == 1_175_472


@pytest.mark.parametrize("name", TABLES)
def test_weights_are_as_many_as_the_layers_say(name):
    shape = shape_of(name, privileged_channels=2)
    teacher = Teacher(shape)
    assert counted(teacher.encoder) == encoder_count(shape)
    assert counted(teacher.decoder) == decoder_count(shape)
    assert counted(teacher.reconstruction) == reconstruction_count(shape)
    assert counted(Teacher(shape, feature_reconstruction=False)) == encoder_count(shape) + decoder_count(shape)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("name", "size"), PATCHES)
def test_sizes(name, size, channels):
    shape = shape_of(name, privileged_channels=channels)
    image = torch.randn(2, channels, *size)
    output = Teacher(shape)(image)
    expected = [(2, width, *own) for width, own in zip(shape.widths, level_sizes(shape, size), strict=True)]
    assert [tuple(own.shape) for own in output.features] == expected
    assert [tuple(own.shape) for own in output.rebuilt] == expected[:-1]
    assert output.image.shape == image.shape


@pytest.mark.parametrize("name", TABLES)
def test_a_times_y_plus_b_comes_back_as_a_times_and_plus_b(name):
    teacher = Teacher(shape_of(name, privileged_channels=2)).double().eval()
    image = patch(name, 2, dtype=torch.float64)
    a, b = (torch.rand(2, 2, *(1,) * (image.ndim - 2), dtype=torch.float64) + 0.1 for _ in range(2))
    torch.testing.assert_close(teacher(100 * a * image - 30 * b).image, 100 * a * teacher(image).image - 30 * b)


@pytest.mark.parametrize("value", [0.0, -2.0, 300.0])
@pytest.mark.parametrize("training", [True, False])
def test_a_constant_patch_is_reproduced(value, training):
    teacher = Teacher(shape_of("thick slices")).train(training)
    image = torch.full((1, 1, 4, 16, 24), value)
    torch.testing.assert_close(teacher(image).image, image)


def test_without_restoration_it_is_blind_to_the_level():
    """What restoration is for: instance normalisation hides the level of everything but the padding's edge."""
    teacher = Teacher(shape_of("cube"), level_restoration=False).double().eval()
    image = patch("cube", dtype=torch.float64)
    torch.testing.assert_close(teacher(3 * image).image, teacher(image).image, rtol=0, atol=1e-3)
    assert (teacher(image + 5).image - teacher(image).image).mean().abs() < 1


def decoder_inputs(teacher, image):
    """Features that the decoder gets in one pass, and those that the pass returns."""
    got = []
    hook = teacher.decoder.register_forward_pre_hook(lambda _, args: got.extend(args[0]))
    output = teacher(image)
    hook.remove()
    return got, output.features


@pytest.mark.parametrize("std", [0.3, 2.0])
def test_noise_of_all_levels_has_the_mean_and_std_that_are_said(std):
    teacher = Teacher(shape_of("five levels"), noise_std=std).train()
    got, clean = decoder_inputs(teacher, patch("five levels", batch=4))
    noises = [noisy - own for noisy, own in zip(got, clean, strict=True)]
    for noise in noises:
        deviation = std / noise.numel() ** 0.5
        assert noise.mean().abs() < 4 * deviation
        assert (noise.std() - std).abs() < 4 * deviation
        # Gaussian: a uniform law of this std ends at 1.73 of it
        assert noise.numel() < 2000 or noise.abs().max() > 2.5 * std
    assert not torch.equal(noises[0], decoder_inputs(teacher, patch("five levels", batch=4))[0][0])


def test_returned_features_are_without_noise():
    teacher = Teacher(shape_of("cube"))
    image = patch("cube")
    clean = teacher.eval()(image).features
    noisy_pass = teacher.train()(image)
    for own, expected, alone in zip(noisy_pass.features, clean, teacher.features(image), strict=True):
        assert torch.equal(own, expected)
        assert torch.equal(alone, expected)


@pytest.mark.parametrize(("training", "std"), [(False, 0.3), (True, 0.0)])
def test_two_passes_without_noise_are_equal(training, std):
    teacher = Teacher(shape_of("cube"), noise_std=std).train(training)
    image = patch("cube")
    got, clean = decoder_inputs(teacher, image)
    assert all(one is other for one, other in zip(got, clean, strict=True))
    assert torch.equal(teacher(image).image, teacher(image).image)


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match="noise_std must be at least 0, got -1"):
        Teacher(shape_of("cube"), noise_std=-1)


def test_features_are_rebuilt_from_the_next_coarser_ones_only():
    teacher = Teacher(shape_of("cube")).eval()
    features = [own.clone() for own in teacher(patch("cube")).features]
    before = teacher.reconstruction(features)
    features[0] += torch.randn_like(features[0])
    assert torch.equal(teacher.reconstruction(features)[0], before[0])
    features[2] += torch.randn_like(features[2])
    after = teacher.reconstruction(features)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_gradients_of_reconstruction_flow_into_both_sides():
    teacher = Teacher(shape_of("cube"))
    output = teacher(patch("cube"))
    for own in output.features:
        own.retain_grad()
    TeacherLoss([1.0], image_weight=0.0)(output, patch("cube")).backward()
    assert all(own.grad.abs().sum() > 0 for own in output.features)


@pytest.mark.parametrize("reconstruction", [True, False])
@pytest.mark.parametrize("name", ["thick slices", "plane"])
def test_every_weight_gets_a_finite_gradient(name, reconstruction):
    teacher = Teacher(shape_of(name), feature_reconstruction=reconstruction)
    for image in (patch(name), torch.ones_like(patch(name))):
        teacher.zero_grad()
        TeacherLoss([1.0])(teacher(image), image).backward()
        assert all(parameter.grad.isfinite().all() for parameter in teacher.parameters())


def ramp_steps(*, level_restoration):
    """Steps from voxel to voxel of a ramp made of patches, in units of its slope, by a teacher taught on ramps."""
    shape = shape_of("plane", strides=[(1, 1), (2, 2)], kernels=[(3, 3)] * 2, widths=(8, 8), convs_per_block=1)
    teacher = Teacher(shape, noise_std=0.0, level_restoration=level_restoration)
    optimiser = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    loss = TeacherLoss([1.0])
    x = torch.arange(16.0) / 16
    for _ in range(60):
        image = (4 * torch.rand(4, 1, 1, 1) + x).expand(4, 1, 4, 16)
        optimiser.zero_grad()
        loss(teacher(image), image).backward()
        optimiser.step()
    ramp = (torch.arange(64.0) / 16).expand(1, 1, 4, 64)
    joined = torch.cat([teacher.eval()(part).image for part in ramp.split(16, dim=3)], dim=3)
    return 16 * joined.detach().diff(dim=3)[0, 0, 2]


def test_patches_of_a_ramp_join_without_steps():
    assert (ramp_steps(level_restoration=True) - 1).abs().max() < 0.5
    at_borders = ramp_steps(level_restoration=False)[15::16]
    assert (at_borders - 1).abs().max() > 5


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 1.0), (torch.float16, 0.3)])
@pytest.mark.parametrize("name", ["cube", "plane"])
def test_mixed_precision(name, dtype, share):
    """Normalising a few voxels of an untaught network magnifies the rounding; nothing overflows."""
    teacher = Teacher(shape_of(name)).eval()
    image = 1000 + 5 * patch(name)
    expected = teacher(image)
    with torch.autocast("cpu", dtype=dtype):
        output = teacher(image)
    assert output.features[0].dtype == dtype
    assert output.image.dtype == torch.float32
    assert (output.image - expected.image).std() < share * expected.image.std()
    assert all(own.isfinite().all() for own in (*output.features, *output.rebuilt))


@pytest.mark.parametrize("training", [True, False])
def test_it_compiles_to_one_graph(training):
    teacher = Teacher(shape_of("cube"), noise_std=0.0).train(training)
    torch.compiler.reset()  # graphs of other tests of the same code count otherwise
    compiled = torch.compile(teacher, backend="eager", fullgraph=True)
    image = patch("cube")
    output = compiled(image)
    torch.testing.assert_close(output.image, teacher(image).image)
    output.image.sum().backward()
    assert teacher.encoder.blocks[0][0].weight.grad is not None


def test_copies_and_weights_give_the_same():
    teacher = Teacher(shape_of("cube")).eval()
    image = patch("cube")
    other = Teacher(shape_of("cube")).eval()
    other.load_state_dict(teacher.state_dict())
    for same in (copy.deepcopy(teacher), pickle.loads(pickle.dumps(teacher)), other):
        assert torch.equal(same(image).image, teacher(image).image)


def test_encoder_and_decoder_stand_alone():
    shape = shape_of("cube")
    image = patch("cube")
    assert TeacherDecoder(shape)(TeacherEncoder(shape)(image)).shape == image.shape

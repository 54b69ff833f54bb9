"""Losses against explicit sums, and what must not change them."""

import math

import pytest
import torch

from rehrseg_nnunet.guided.keeper import KeeperOutput
from rehrseg_nnunet.guided.losses import (
    KeeperLoss,
    TeacherLoss,
    discriminator_loss,
    feature_error,
    image_error,
    matching_error,
    score_error,
)
from rehrseg_nnunet.guided.teacher import TeacherOutput


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def maps(batch=2, dtype=torch.float64):
    return [torch.randn(batch, 4, 3, 5, dtype=dtype), torch.randn(batch, 8, 2, 2, dtype=dtype)]


def image(dtype=torch.float64):
    return torch.randn(2, 2, 3, 5, dtype=dtype)


def explicit_matching(features, targets):
    """Mean and standard deviation over the channels, voxel by voxel."""
    total = 0.0
    for own, other in zip(features, targets, strict=True):
        squares = []
        for sample in range(len(own)):
            for row in range(own.shape[2]):
                for column in range(own.shape[3]):
                    statistics = []
                    for values in (own[sample, :, row, column].tolist(), other[sample, :, row, column].tolist()):
                        mean = sum(values) / len(values)
                        variance = sum((value - mean) ** 2 for value in values) / len(values)
                        statistics.append((mean, math.sqrt(variance)))
                    (mean, std), (target_mean, target_std) = statistics
                    squares.append((mean - target_mean) ** 2 + (std - target_std) ** 2)
        total += sum(squares) / len(squares)
    return total


def test_matching_is_of_the_mean_and_std_over_channels():
    features, targets = maps(), maps()
    assert matching_error(features, targets).item() == pytest.approx(explicit_matching(features, targets))


def test_matching_does_not_see_the_order_of_channels():
    features, targets = maps(), maps()
    expected = matching_error(features, targets)
    mixed = [own[:, torch.randperm(own.shape[1])] for own in features]
    also = [own[:, torch.randperm(own.shape[1])] for own in targets]
    for one, other in ((mixed, targets), (features, also), (mixed, also)):
        torch.testing.assert_close(matching_error(one, other), expected)
    assert not torch.allclose(feature_error(mixed, targets), feature_error(features, targets))


def test_matching_of_equal_maps_is_0():
    features = maps()
    assert matching_error(features, features) == 0
    assert feature_error(features, features) == 0


def test_matching_weighs_the_same_for_every_batch_size():
    features, targets = maps(1), maps(1)
    twice = [[own.repeat(2, 1, 1, 1) for own in level] for level in (features, targets)]
    torch.testing.assert_close(matching_error(*twice), matching_error(features, targets))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_matching_has_a_finite_gradient_where_the_std_is_0(value):
    features = [torch.full((1, 4, 2, 2), value, requires_grad=True)]
    matching_error(features, [torch.randn(1, 4, 2, 2)]).backward()
    assert features[0].grad.isfinite().all()
    assert features[0].grad.abs().max() < 10


def test_gradients_of_matching():
    one, other = maps()[0].requires_grad_(), maps()[0]
    assert torch.autograd.gradcheck(lambda features: matching_error([features], [other]), (one,))


def test_features_are_compared_level_by_level():
    features, targets = maps(), maps()
    expected = sum(((own - other) ** 2).mean() for own, other in zip(features, targets, strict=True))
    torch.testing.assert_close(feature_error(features, targets), expected)


def test_the_image_is_measured_in_each_channel_s_range():
    output, target = image(), image()
    expected = ((output - target).abs() / torch.tensor([6.0, 0.5]).view(1, 2, 1, 1)).mean()
    torch.testing.assert_close(image_error(output, target, torch.tensor([6.0, 0.5])), expected)
    scale = torch.tensor([6.0, 0.5]).view(1, 2, 1, 1)
    unit = image_error(output, target, torch.ones(2))
    torch.testing.assert_close(image_error(output * scale, target * scale, torch.tensor([6.0, 0.5])), unit)


@pytest.mark.parametrize("bad", [[0.0], [-1.0], [[1.0]], 3.0, [float("nan")]])
def test_a_range_that_is_none_is_refused(bad):
    for loss in (TeacherLoss, KeeperLoss):
        with pytest.raises(ValueError, match="image_range must be a positive number for each privileged channel"):
            loss(bad)


def test_scores_are_least_squares():
    scores = torch.tensor([0.0, 0.5, 1.0, 3.0])
    assert score_error(scores, 1.0).item() == pytest.approx((1 + 0.25 + 0 + 4) / 4)
    assert score_error(scores, 0.0).item() == pytest.approx((0 + 0.25 + 1 + 9) / 4)
    true, false = torch.ones(4), torch.zeros(4)
    assert discriminator_loss(true, false) == 0
    assert discriminator_loss(false, true, adversarial_weight=0.5) == 1


def teacher_output():
    return TeacherOutput(image(), tuple(maps()), (torch.randn(2, 4, 3, 5).double(),))


def test_the_teacher_s_loss():
    output, target = teacher_output(), image()
    loss = TeacherLoss([6.0, 0.5], image_weight=100.0, feature_weight=3.0)
    parts = loss.parts(output, target)
    features = ((output.features[0] - output.rebuilt[0]) ** 2).mean()
    torch.testing.assert_close(parts["image"], 100 * image_error(output.image, target, torch.tensor([6.0, 0.5])))
    torch.testing.assert_close(parts["features"], 3 * features)
    torch.testing.assert_close(loss(output, target), parts["image"] + parts["features"])


def test_a_teacher_without_reconstruction_has_the_image_alone():
    output = teacher_output()._replace(rebuilt=())
    assert set(TeacherLoss([1.0, 1.0]).parts(output, image())) == {"image"}


WEIGHTS = {"distillation_weight": 2.0, "matching_weight": 3.0, "image_weight": 100.0, "adversarial_weight": 0.5}


def test_the_keeper_s_loss():
    output, features, target, scores = KeeperOutput(tuple(maps()), image()), maps(), image(), torch.randn(2, 1, 2, 2)
    loss = KeeperLoss([6.0, 0.5], **WEIGHTS)
    expected = {
        "distillation": 2 * feature_error(output.guides, features),
        "matching": 3 * matching_error(output.guides, features),
        "image": 100 * image_error(output.image, target, torch.tensor([6.0, 0.5])),
        "adversarial": 0.5 * ((scores - 1) ** 2).mean().double(),
    }
    parts = loss.parts(output, features, target, scores)
    torch.testing.assert_close(
        {name: part.double() for name, part in parts.items()}, {name: part.double() for name, part in expected.items()}
    )
    torch.testing.assert_close(loss(output, features, target, scores).double(), sum(expected.values()))


def test_the_paper_s_weights_are_the_default():
    loss = KeeperLoss([1.0])
    weights = (loss.distillation_weight, loss.matching_weight, loss.image_weight, loss.adversarial_weight)
    assert weights == (1.0, 1.0, 100.0, 0.5)
    assert (TeacherLoss([1.0]).image_weight, TeacherLoss([1.0]).feature_weight) == (100.0, 1.0)


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("distillation_weight", "distillation"),
        ("matching_weight", "matching"),
        ("image_weight", "image"),
        ("adversarial_weight", "adversarial"),
    ],
)
def test_parts_of_weight_0_are_left_out(weight, part):
    output = KeeperOutput(tuple(maps()), image())
    parts = KeeperLoss([1.0, 1.0], **WEIGHTS | {weight: 0.0}).parts(output, maps(), image(), torch.zeros(2, 1))
    assert set(parts) == {"distillation", "matching", "image", "adversarial"} - {part}


def test_without_a_discriminator_there_is_no_adversarial_part():
    output = KeeperOutput(tuple(maps()), image())
    assert "adversarial" not in KeeperLoss([1.0, 1.0]).parts(output, maps(), image())


def test_losses_are_of_full_precision():
    """Squares of 300 are beyond float16."""
    features, targets = ([300 * own.half() for own in maps()] for _ in range(2))
    for error in (feature_error, matching_error):
        assert error(features, targets).dtype == torch.float32
        exact = error([own.double() for own in features], [own.double() for own in targets])
        torch.testing.assert_close(error(features, targets).double(), exact, rtol=1e-5, atol=0)
    assert image_error(300 * image().half(), image().half(), torch.ones(2)).dtype == torch.float32
    assert score_error(torch.full((2,), 400.0).half(), 0.0) == 160_000


def test_all_of_the_output_is_in_the_graph():
    """DistributedDataParallel waits for the gradient of every weight."""
    output = KeeperOutput(tuple(own.requires_grad_() for own in maps()), image().requires_grad_())
    nothing = dict.fromkeys(WEIGHTS, 0.0)
    KeeperLoss([1.0, 1.0], **nothing)(output, maps(), image()).backward()
    assert all((tensor.grad == 0).all() for tensor in (*output.guides, output.image))

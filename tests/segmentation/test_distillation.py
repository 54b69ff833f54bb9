import math

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn import functional

from rehrseg_nnunet.segmentation.distillation import (
    Distillation,
    affinity_loss,
    centred,
    class_maps,
    ifvd_loss,
    mimic_loss,
    nearest_to,
    resize_to,
    spatial_loss,
)
from rehrseg_nnunet.segmentation.hr_network import TrainingOutputs
from rehrseg_nnunet.segmentation.targets import PatchTargets

IGNORE = 3
PLAIN = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": IGNORE}, None)


def maps(seed=0, size=(3, 4, 6), channels=(5, 7), dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, *size, generator=generator, dtype=dtype).requires_grad_() for c in channels]


def block_means(features, pool):
    """Average over blocks with plain slicing: {(z, y, x): (C,)} for one (C, D, H, W) map."""
    nodes = {}
    starts = [range(0, size, step) for size, step in zip(features.shape[1:], pool, strict=True)]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                block = features[:, z : z + pool[0], y : y + pool[1], x : x + pool[2]]
                nodes[z, y, x] = block.mean(dim=(1, 2, 3))
    return nodes


def explicit_affinity(student, teacher, pool):
    """Eq. 8-9 with the matrices written out."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        a, b = (torch.stack([*block_means(features, pool).values()]) for features in (s, t))
        a_cos = (a @ a.T) / (a.norm(dim=1)[:, None] * a.norm(dim=1)[None])
        b_cos = (b @ b.T) / (b.norm(dim=1)[:, None] * b.norm(dim=1)[None])
        losses.append(((a_cos - b_cos) ** 2).mean())
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("size", "pool"), [((3, 4, 6), (1, 2, 2)), ((3, 5, 7), (2, 2, 2)), ((2, 1, 3), (1, 2, 2)), ((4, 3, 3), (1, 1, 1))]
)
def test_affinity_equals_explicit_matrices(size, pool):
    student, teacher = maps(size=size)
    loss = affinity_loss(student, teacher, pool)
    expected = explicit_affinity(student, teacher, pool)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for ours, reference in zip(
        torch.autograd.grad(loss, [student, teacher]),
        torch.autograd.grad(expected, [student, teacher]),
        strict=True,
    ):
        torch.testing.assert_close(ours, reference, atol=1e-12, rtol=1e-9)


def test_affinity_in_float32_is_close_to_explicit_matrices():
    student, teacher = maps(size=(4, 16, 16), channels=(16, 32))
    expected = explicit_affinity(student, teacher, (1, 2, 2)).item()
    assert affinity_loss(student.float(), teacher.float()).item() == pytest.approx(expected, abs=1e-6)


def test_affinity_gradcheck():
    student, teacher = maps(size=(2, 3, 4), channels=(3, 2), batch=1)
    assert torch.autograd.gradcheck(affinity_loss, (student, teacher))


def test_affinity_is_a_mean_over_the_batch_and_symmetric():
    student, teacher = maps()
    each = torch.stack([affinity_loss(student[i : i + 1], teacher[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(affinity_loss(student, teacher), each.mean())
    torch.testing.assert_close(affinity_loss(student, teacher), affinity_loss(teacher, student))


def test_affinity_ignores_length_and_rotation_of_the_features():
    student, _ = maps(size=(2, 4, 4))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    rotated = torch.einsum("ij,bjdhw->bidhw", rotation, 7 * student)
    assert affinity_loss(student, rotated).item() == pytest.approx(0, abs=1e-12)


def test_affinity_of_known_graphs():
    """Two orthogonal nodes against two parallel ones: two of four pairs differ by 1."""
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 2, 1, 1, 2)
    teacher = torch.ones(1, 1, 1, 1, 2)
    assert affinity_loss(student, teacher, (1, 1, 1)).item() == pytest.approx(0.5)
    assert affinity_loss(student, teacher, (1, 2, 2)).item() == pytest.approx(0)


def test_affinity_sees_other_slices():
    """Slices that swap sign as a whole have the same graph inside, another one between slices."""
    student, _ = maps(size=(2, 4, 4))
    sign = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1, 1)
    assert affinity_loss(student, sign * student).item() > 0.1


def test_affinity_is_never_negative_and_keeps_its_gradient_at_zero():
    """Rounding makes the three-term difference negative for some inputs; their gradient must survive."""
    negative = 0
    for seed in range(40):
        student, _ = maps(seed, size=(4, 8, 8), dtype=torch.float32)
        student = student.detach()
        teacher = (student * (1 + 1e-6)).requires_grad_()
        loss = affinity_loss(student, teacher)
        assert loss.item() >= 0
        negative += loss.item() == 0
        # Near 0 the gradient is small, but a clamp would make it exactly 0.
        assert torch.autograd.grad(loss, teacher)[0].abs().max() > 0
    assert negative > 0


def test_affinity_of_zero_vectors_is_finite_and_gives_them_no_gradient():
    student, teacher = maps(size=(2, 4, 4))
    with torch.no_grad():
        student[:, :, 0, :2, :2] = 0
        teacher[:, :, 1] = 0
    loss = affinity_loss(student, teacher)
    gradient = torch.autograd.grad(loss, student)[0]
    assert math.isfinite(loss.item())
    assert gradient.isfinite().all()
    assert (gradient[:, :, 0, :2, :2] == 0).all()
    assert gradient[:, :, 0, 2:].abs().max() > 0
    assert affinity_loss(torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 3, 2, 4, 4)).item() == 0


def test_affinity_of_200_000_nodes_needs_no_matrix_of_pairs():
    """N x N floats would be 160 GB."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 4, 20, 100, 100, generator=generator, requires_grad=True)
    loss = affinity_loss(student, torch.randn(1, 3, 20, 100, 100, generator=generator), (1, 1, 1))
    loss.backward()
    # Squared cosines of independent random directions in C dimensions have mean 1/C.
    assert loss.item() == pytest.approx(1 / 4 + 1 / 3, rel=0.02)
    assert student.grad.isfinite().all()


def test_a_case_with_nothing_inside_counts_in_no_loss():
    """As if it were not in the batch; alone it is 0."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 2, 4, 4, generator=generator) for _ in range(2))
    inside = torch.tensor([True, False]).reshape(2, 1, 1, 1, 1).expand(2, 1, 2, 1, 1)
    for loss in (affinity_loss, spatial_loss, mimic_loss):
        torch.testing.assert_close(loss(student, teacher, inside=inside), loss(student[:1], teacher[:1]))
        assert loss(student[1:], teacher[1:], inside=inside[1:]).item() == 0


def test_affinity_keeps_full_precision_inside_autocast():
    student, teacher = maps(dtype=torch.float32, size=(4, 8, 8))
    expected = affinity_loss(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = affinity_loss(student, teacher)
        mixed = affinity_loss(student.bfloat16(), teacher)
    assert loss.dtype == mixed.dtype == torch.float32
    assert loss.item() == expected.item()
    assert mixed.item() == pytest.approx(expected.item(), rel=0.02)


def test_affinity_refuses_wrong_shapes():
    with pytest.raises(ValueError, match="teacher must have the student's batch and spatial size"):
        affinity_loss(torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 2, 2, 4, 3))
    with pytest.raises(ValueError, match=r"student must be of shape \(B, C, D, H, W\)"):
        affinity_loss(torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))
    with pytest.raises(ValueError, match="pool must be three integers"):
        affinity_loss(torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 2, 2, 4, 4), (0, 2, 2))


def test_spatial_equals_cosine_similarity():
    student, teacher = maps(channels=(4, 4))
    loss = spatial_loss(student, teacher)
    expected = 1 - functional.cosine_similarity(student, teacher, dim=1).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


def test_spatial_is_over_channels_not_space():
    """Two orthogonal channel vectors have distance 1, whatever their maps look like in space."""
    student = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 2, 3, 3)
    assert spatial_loss(student, student).item() == pytest.approx(0)
    assert spatial_loss(student, 5 * student).item() == pytest.approx(0)
    assert spatial_loss(student, -student).item() == pytest.approx(2)
    assert spatial_loss(student, student.flip(1)).item() == pytest.approx(1)


def test_spatial_gradcheck():
    student, teacher = maps(size=(1, 2, 3), channels=(3, 3))
    assert torch.autograd.gradcheck(spatial_loss, (student, teacher))


def test_spatial_zero_vectors_count_one_without_gradient():
    student, teacher = maps(channels=(4, 4))
    with torch.no_grad():
        student[:, :, 0] = 0
        teacher[:, :, 1] = 0
    loss = spatial_loss(student, teacher)
    gradient = torch.autograd.grad(loss, student)[0]
    rest = spatial_loss(student[:, :, 2:], teacher[:, :, 2:])
    assert loss.item() == pytest.approx((1 + 1 + rest.item()) / 3)
    assert (gradient[:, :, :2] == 0).all()
    assert gradient[:, :, 2:].abs().min() > 0


def test_spatial_refuses_other_channels():
    with pytest.raises(ValueError, match="student must have the teacher's 3 channels, got 2"):
        spatial_loss(torch.zeros(1, 2, 2, 4, 4), torch.zeros(1, 3, 2, 4, 4))


def test_spatial_in_half_precision_is_float32():
    student, teacher = maps(channels=(64, 64), dtype=torch.float32)
    loss = spatial_loss(100 * student.half(), 100 * teacher.half())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(spatial_loss(student, teacher).item(), abs=1e-3)


def test_mimic_is_the_mean_squared_difference():
    student, teacher = maps(channels=(4, 4))
    expected = sum((a - b) ** 2 for a, b in zip(student.flatten(), teacher.flatten(), strict=True)) / student.numel()
    assert mimic_loss(student, teacher).item() == pytest.approx(expected.item())
    assert mimic_loss(student, student.detach().clone()).item() == 0
    assert mimic_loss(student + 3, student).item() == pytest.approx(9)
    with pytest.raises(ValueError, match="student must have the teacher's 7 channels, got 5"):
        mimic_loss(*maps())


def test_mimic_gradcheck():
    assert torch.autograd.gradcheck(mimic_loss, tuple(maps(size=(1, 2, 3), channels=(3, 3))))


def test_mimic_in_half_precision_is_float32():
    """Squares of 300 do not fit float16."""
    loss = mimic_loss(torch.full((1, 2, 1, 2, 2), 300.0).half(), torch.zeros(1, 2, 1, 2, 2).half())
    assert loss.dtype == torch.float32
    assert loss.item() == 90000


def some_classes(seed=0, size=(3, 4, 6), overlapping=False):
    """Three classes, the third one absent from the second case; about a quarter of the locations without a class."""
    generator = torch.Generator().manual_seed(seed)
    if overlapping:
        classes = torch.rand(2, 3, *size, generator=generator) > 0.6
    else:
        labels = torch.randint(0, 4, (2, 1, *size), generator=generator)
        classes = labels == torch.arange(3).reshape(1, 3, 1, 1, 1)
    classes[1, 2] = False
    return classes


def explicit_ifvd(student, teacher, classes):
    """One class of one case after the other, one location after the other."""
    total, count = 0, 0
    for case in range(len(student)):
        for members in classes[case]:
            places = members.nonzero().tolist()
            similarities = []
            for features in (student[case], teacher[case]):
                vectors = [features[:, z, y, x] for z, y, x in places]
                mean = sum(vectors) / max(len(vectors), 1)
                similarities.append([v @ mean / (v.norm() * mean.norm()) for v in vectors])
            total = total + sum((s - t) ** 2 for s, t in zip(*similarities, strict=True))
            count += len(places)
    return total / count


@pytest.mark.parametrize("overlapping", [False, True])
def test_ifvd_equals_naive(overlapping):
    student, teacher = maps()
    classes = some_classes(overlapping=overlapping)
    loss = ifvd_loss(student, teacher, classes)
    expected = explicit_ifvd(student, teacher, classes)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))
    assert loss.item() > 0.01


def test_ifvd_gradcheck():
    student, teacher = maps(size=(1, 3, 4), channels=(3, 2))
    classes = some_classes(size=(1, 3, 4))
    assert torch.autograd.gradcheck(lambda s, t: ifvd_loss(s, t, classes), (student, teacher))


def test_ifvd_is_exactly_zero_for_the_same_features_and_ignores_their_length_and_rotation():
    for seed in range(10):
        student, _ = maps(seed, dtype=torch.float32)
        assert ifvd_loss(student, student.detach().clone(), some_classes(seed)).item() == 0
    student, _ = maps()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    rotated = torch.einsum("ij,bjdhw->bidhw", rotation, 7 * student)
    assert ifvd_loss(student, rotated, some_classes()).item() == pytest.approx(0, abs=1e-12)


def test_ifvd_does_not_compare_classes_with_each_other():
    """A class that is rotated as a whole varies inside as before; the affinity graph sees the difference."""
    student, _ = maps(channels=(2, 2))
    classes = some_classes()
    quarter_turn = torch.stack([-student[:, 1], student[:, 0]], dim=1)
    other = torch.where(classes[:, :1], quarter_turn, student)
    assert ifvd_loss(student, other, classes).item() == pytest.approx(0, abs=1e-12)
    assert affinity_loss(student, other, (1, 1, 1)).item() > 0.1


def test_ifvd_gives_no_gradient_to_locations_without_a_class_and_does_not_see_them():
    student, teacher = maps()
    classes = some_classes()
    without = ~classes.any(dim=1, keepdim=True)
    loss = ifvd_loss(student, teacher, classes)
    gradient = torch.autograd.grad(loss, student)[0]
    assert (gradient[without.expand_as(gradient)] == 0).all()
    assert gradient[~without.expand_as(gradient)].abs().max() > 0
    torch.testing.assert_close(ifvd_loss(torch.where(without, 100.0, student), teacher, classes), loss)


def test_ifvd_without_any_class_is_zero_in_the_graph():
    student, teacher = maps()
    loss = ifvd_loss(student, teacher, torch.zeros(2, 3, 3, 4, 6))
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, student)[0] == 0).all()


def test_ifvd_keeps_full_precision_inside_autocast():
    student, teacher = maps(dtype=torch.float32)
    expected = ifvd_loss(student, teacher, some_classes())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ifvd_loss(student, teacher, some_classes())
        assert ifvd_loss(student.bfloat16(), teacher, some_classes()).dtype == torch.float32
    assert loss.item() == expected.item()


def test_ifvd_of_200_000_locations_needs_no_matrix_of_pairs():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 4, 20, 100, 100, generator=generator, requires_grad=True)
    teacher = torch.randn(1, 3, 20, 100, 100, generator=generator)
    loss = ifvd_loss(student, teacher, torch.ones(1, 1, 20, 100, 100))
    loss.backward()
    # the prototype is some direction; squared cosines of random directions in C dimensions have mean 1/C
    assert loss.item() == pytest.approx(1 / 4 + 1 / 3, rel=0.02)
    assert student.grad.isfinite().all()


def test_ifvd_refuses_wrong_shapes():
    student, teacher = maps()
    with pytest.raises(ValueError, match="classes must have the student's batch and spatial size"):
        ifvd_loss(student, teacher, torch.zeros(2, 3, 3, 4, 5))


@pytest.mark.parametrize("size", [(3, 4, 6), (3, 2, 3), (1, 1, 1), (2, 3, 4), (6, 8, 12)])
def test_nearest_keeps_labels_at_half_pixel_positions(size):
    labels = torch.randint(0, 50, (2, 1, 3, 4, 6), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    expected = functional.interpolate(labels.double(), size=size, mode="nearest-exact")
    assert nearest_to(labels, size).dtype == torch.int16
    torch.testing.assert_close(nearest_to(labels, size).double(), expected)


def test_resize_keeps_a_ramp_and_the_field_of_view():
    """With half-pixel centres a linear function of the position in the field of view stays that function."""
    centres = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    ramp = centres.reshape(1, 1, 1, 1, 8).expand(1, 2, 4, 4, 8)
    resized = resize_to(ramp, (2, 4, 4))
    assert resized.shape == (1, 2, 2, 4, 4)
    torch.testing.assert_close(resized[0, 0, 0, 0], (torch.arange(4, dtype=torch.float64) + 0.5) / 4)
    finer = resize_to(ramp, (4, 4, 16))[0, 0, 0, 0]
    torch.testing.assert_close(finer[1:-1], ((torch.arange(16, dtype=torch.float64) + 0.5) / 16)[1:-1])


@pytest.mark.parametrize("size", [(3, 5, 7), (6, 4, 9), (3, 2, 2), (1, 1, 1), (5, 4, 6)])
def test_resize_is_trilinear(size):
    features = maps(size=(3, 4, 6))[0]
    expected = functional.interpolate(features, size=size, mode="trilinear", align_corners=False)
    torch.testing.assert_close(resize_to(features, size), expected)


def test_resize_to_the_same_size_is_the_identity():
    features = torch.zeros(1, 2, 3, 4, 5)
    assert resize_to(features, (3, 4, 5)) is features


class Teacher:
    """Fixed random features at half the in-plane size, which depend on both inputs and record the calls."""

    def __init__(self, channels=4):
        generator = torch.Generator().manual_seed(9)
        self.kernel = torch.randn(channels, 2, 1, 2, 2, generator=generator, requires_grad=True)
        self.calls = []

    def __call__(self, image, labels, inside):
        self.calls.append((image, labels, inside, torch.is_grad_enabled()))
        stacked = torch.cat([image, labels.float()], dim=1)
        return nn.functional.conv3d(stacked, self.kernel, stride=(1, 2, 2))


def training_batch():
    """Outputs of which a distillation uses both students, an LR target with ignored voxels, and the other targets."""
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(2, 6, 4, 4, 2, generator=generator, requires_grad=True)
    adapted = torch.randn(2, 4, 4, 4, 2, generator=generator, requires_grad=True)
    image = torch.randn(2, 1, 4, 8, 8, generator=generator)
    logits = torch.zeros(2, 3, 4, 8, 8)
    outputs = TrainingOutputs(lr=logits, hr=logits, student=student, adapted=adapted)
    inside = torch.ones(2, 1, 4, 1, 1, dtype=torch.bool)
    none = torch.empty(0)
    others = PatchTargets(hr=none, uncertainty=none, image=image, inside=inside, hr_uncertainty=none)
    return outputs, torch.randint(0, 4, (2, 1, 4, 8, 8), generator=generator), others


def test_the_papers_distillation_is_equations_9_and_10():
    outputs, target, others = training_batch()
    kind = "correlation+spatial"
    terms = Distillation(Teacher(), kind=kind, pool=(2, 1, 1), label_manager=PLAIN)(outputs, target, others)
    features = resize_to(Teacher()(others.image, target, others.inside).detach(), (4, 4, 2))
    assert list(terms) == ["affinity", "spatial"]
    torch.testing.assert_close(terms["affinity"], affinity_loss(outputs.student, features, (2, 1, 1)))
    torch.testing.assert_close(terms["spatial"], spatial_loss(outputs.adapted, features))


@pytest.mark.parametrize("method", ["correlation", "spatial", "mimic", "ifvd"])
def test_other_distillations_take_the_place_of_the_papers(method):
    outputs, target, others = training_batch()
    terms = Distillation(Teacher(), kind=method, pool=(1, 2, 2), label_manager=PLAIN)(outputs, target, others)
    features = resize_to(Teacher()(others.image, target, others.inside).detach(), (4, 4, 2))
    labels = target[:, :, :, 1::2, 2::4]  # of 8 x 8 voxels those nearest to the centres of 4 x 2
    name, expected = {
        "correlation": ("affinity", affinity_loss(outputs.student, features)),
        "spatial": ("spatial", spatial_loss(outputs.adapted, features)),
        "mimic": ("mimic", mimic_loss(outputs.adapted, features)),
        "ifvd": ("ifvd", ifvd_loss(outputs.student, features, torch.cat([labels == c for c in range(3)], dim=1))),
    }[method]
    assert terms.keys() == {name}
    torch.testing.assert_close(terms[name], expected)
    inputs = [outputs.student, outputs.adapted]  # one of the two has a zero gradient
    gradients = torch.autograd.grad(terms[name], inputs, allow_unused=True, materialize_grads=True)
    references = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(gradients, references)


def test_centred_features_have_no_mean_inside_and_constants_change_nothing():
    features, _ = maps(channels=(5, 5))
    inside = torch.tensor([True, False, True]).view(1, 1, 3, 1, 1).expand(2, -1, -1, -1, -1)
    found = centred(features, inside)
    kept = torch.stack([features[b, :, z] for b in range(2) for z in (0, 2)])  # naively
    torch.testing.assert_close(found, features - kept.mean((0, 2, 3)).view(1, 5, 1, 1, 1))
    torch.testing.assert_close(centred(features + torch.arange(5).view(5, 1, 1, 1), inside), found)


@pytest.mark.parametrize("name", ["affinity", "spatial"])
def test_a_constant_answers_eq_9_and_10_only_where_means_are_compared(name):
    """The teacher's features lie around a common vector; a student that says only this has learnt nothing."""
    outputs, target, others = training_batch()
    common = torch.tensor([3.0, 1.0, -2.0, 4.0]).view(1, 4, 1, 1, 1)
    teacher = lambda image, labels, inside: common + 0.5 * outputs.adapted.detach()  # noqa: E731
    constant = common.expand(2, -1, 4, 4, 2) + torch.linspace(0, 1e-3, 64).view(2, 1, 4, 4, 2)
    silent = outputs._replace(student=constant, adapted=constant)
    perfect = outputs._replace(student=outputs.adapted, adapted=outputs.adapted)

    def term(answer, centre):
        kind = {"affinity": "correlation", "spatial": "spatial"}[name]
        options = {"kind": kind, "pool": (1, 1, 1), "label_manager": PLAIN, "centre": centre}
        return Distillation(teacher, **options)(answer, target, others)[name].item()

    assert term(silent, centre=False) < 0.1
    assert term(silent, centre=True) > 0.3
    assert term(perfect, centre=True) < 1e-6


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("kind", ["correlation+spatial", "mimic", "ifvd"])
def test_slices_of_padding_teach_nothing(kind, centre):
    """A patch that ends in padding has the terms, and gradients, of the patch without it."""
    outputs, target, others = training_batch()
    distillation = Distillation(Teacher(), kind=kind, pool=(1, 2, 2), label_manager=PLAIN, centre=centre)
    padded = others._replace(
        inside=torch.tensor([False, True, True, False]).view(1, 1, 4, 1, 1).expand(2, -1, -1, 1, 1)
    )
    cut = slice(1, 3)
    shorter = outputs._replace(student=outputs.student[:, :, cut], adapted=outputs.adapted[:, :, cut])
    alone = others._replace(image=others.image[:, :, cut], inside=others.inside[:, :, cut])
    terms, expected = distillation(outputs, target, padded), distillation(shorter, target[:, :, cut], alone)
    inputs = [outputs.student, outputs.adapted]
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name])
        assert not torch.allclose(term, distillation(outputs, target, others)[name])
        gradients, references = (
            torch.autograd.grad(t, inputs, allow_unused=True, materialize_grads=True, retain_graph=True)
            for t in (term, expected[name])
        )
        torch.testing.assert_close(gradients, references)


def test_an_unknown_distillation_is_refused():
    with pytest.raises(ValueError, match=r"distillation must be one of .*'mimic', 'ifvd'\), got 'kd'"):
        Distillation(Teacher(), kind="kd", pool=(1, 2, 2), label_manager=PLAIN)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32])
def test_classes_of_labels_leave_ignored_voxels_out(dtype):
    target = torch.tensor([0, 1, 2, IGNORE]).reshape(1, 1, 1, 1, 4).to(dtype)
    maps = class_maps(target, 3, regions=False, has_ignore=True)
    assert maps.flatten(2)[0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]


def test_classes_of_regions_overlap_and_have_a_background():
    whole, core, ignored = [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]
    target = torch.tensor([whole, core, ignored]).reshape(1, 3, 1, 1, 4)
    maps = class_maps(target, 2, regions=True, has_ignore=True).flatten(2)[0].int().tolist()
    assert maps == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]
    maps = class_maps(target[:, :2].float(), 2, regions=True, has_ignore=False).flatten(2)[0].int().tolist()
    assert maps == [[1, 0, 0, 0], whole, core]


def test_teacher_is_called_without_gradient_on_image_and_full_resolution_target():
    outputs, target, others = training_batch()
    teacher = Teacher()
    sum(
        Distillation(teacher, kind="correlation+spatial", pool=(1, 2, 2), label_manager=PLAIN)(
            outputs, target, others
        ).values()
    ).backward()
    [(image, labels, inside, grad_enabled)] = teacher.calls
    assert image is others.image
    assert labels is target
    assert inside is others.inside
    assert not grad_enabled
    assert teacher.kernel.grad is None


def test_half_precision_students_give_finite_float32_terms():
    outputs, target, others = training_batch()
    half = outputs._replace(student=outputs.student.half(), adapted=outputs.adapted.half())
    distillation = Distillation(Teacher(), kind="correlation+spatial", pool=(1, 2, 2), label_manager=PLAIN)
    terms, references = distillation(half, target, others), distillation(outputs, target, others)
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert term.item() == pytest.approx(references[name].item(), rel=1e-2)
    gradients = torch.autograd.grad(65536 * sum(terms.values()), [half.student, half.adapted])
    assert all(gradient.isfinite().all() for gradient in gradients)

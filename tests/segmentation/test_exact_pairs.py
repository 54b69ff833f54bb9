"""Turned acquisitions in the loader: thick along an in-plane axis by Eq. 1, labels on acquired planes, nothing else."""

from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_files import class_locations
from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.cases.turned import TurnedCases
from rehrseg_nnunet.nnunet.label_loss import build_label_loss
from rehrseg_nnunet.segmentation.loader import ExactPairs, HRPatchLoader
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.segmentation.teacher import SelfSRTeacher
from rehrseg_nnunet.segmentation.transforms import build_training_transforms
from rehrseg_nnunet.segmentation.uncertainty_weighting import UncertaintyWeightedLoss
from rehrseg_nnunet.slices.slice_profile import slice_profile

LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)
UNLABELLED = 3
FACTOR = 4
DEPTH, HEIGHT, WIDTH = 5, 24, 20
FORMER_Z = FACTOR * (DEPTH - 1) + 1
PATCH = (6, 26, 26)  # all of every view


def acquired(seed=0):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, DEPTH, HEIGHT, WIDTH)).astype(np.float32)
    return image, rng.integers(0, 3, (1, DEPTH, HEIGHT, WIDTH)).astype(np.int8)


def cases(data, labels, **properties):
    properties = {"class_locations": class_locations(labels, LABELS), **properties}
    return SimpleNamespace(identifiers=["case"], load_case=lambda _: (data, labels, None, properties))


def pseudo_hr(seed=3):
    """U in [0.2, 1), so that its scale is not that of a turned case."""
    rng = np.random.default_rng(seed)
    data = 0.2 + 0.8 * rng.random((2, FACTOR * DEPTH, HEIGHT, WIDTH)).astype(np.float32)
    unit = IntensityUnit(zero=(1.0,), length=(2.0,)).as_property()
    return cases(data, rng.integers(0, 3, (1, *data.shape[1:])).astype(np.int8), **unit)


def turned(image, labels):
    return TurnedCases(cases(image, labels), factor=FACTOR, unlabelled=UNLABELLED)


def transforms(*, rotation=None):
    spatial = SpatialTransform(
        PATCH,
        0,
        False,
        p_rotation=float(rotation is not None),
        rotation=rotation or 0.0,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    return build_training_transforms(
        ComposeTransforms([spatial, RemoveLabelTransform(-1, 0)]),
        factor=FACTOR,
        highest_label=UNLABELLED,
        ignore_label=UNLABELLED,
        sparse_labels=True,
    )


def batch(image, labels, *, probability=1.0, patch=PATCH, size=12, seed=0, rotation=None, **options):
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    options = {"transforms": transforms(rotation=rotation), **options}
    pairs = ExactPairs(turned(image, labels), probability)
    loader = HRPatchLoader(pseudo_hr(), size, patch, patch, LABELS, factor=FACTOR, exact_pairs=pairs, **options)
    result = next(loader)
    first = len(result["target"]) - len(PatchTargets._fields)
    return result["data"], result["target"][0], PatchTargets(*result["target"][first:])


def whole(view):
    return view[tuple(slice(0, n) for n in view.shape)]


def thickened(lines, phase):
    """Eq. 1 with slice k centred at phase + r*k + (r - 1)/2, by sums over the pixels that exist."""
    weights = slice_profile(FACTOR).numpy()
    slices = (lines.shape[0] - phase) // FACTOR
    result = np.zeros((slices, *lines.shape[1:]))
    for k in range(slices):
        pixels = phase + FACTOR * k - (len(weights) - FACTOR) // 2 + np.arange(len(weights))
        exist = (pixels >= 0) & (pixels < lines.shape[0])
        result[k] = np.tensordot(weights[exist], lines[pixels[exist]], 1) / weights[exist].sum()
    return result


def expected_inputs(image, labels):
    """Thick images of both axes at every phase, without what a border changes."""
    for axis in ("x", "y"):
        view = whole(turned(image, labels).turned("case", axis=axis)[0])[0]
        for phase in range(FACTOR):
            yield axis, phase, thickened(view, phase)


def holds(patch, expected):
    """Whether a patch holds an image but for its outer slices; nnU-Net draws on which side an odd voxel is added."""
    free = [n - m for n, m in zip(patch.shape, expected.shape, strict=True)]
    for extra in product((0, 1), repeat=3):
        starts = [(n + e) // 2 for n, e in zip(free, extra, strict=True)]
        part = patch[tuple(slice(s, s + m) for s, m in zip(starts, expected.shape, strict=True))]
        if np.allclose(part[1:-1], expected[1:-1], atol=2e-3):  # a phase does not see the pixels before it
            return True
    return False


def test_the_input_is_made_thick_along_an_in_plane_axis_by_equation_1():
    image, labels = acquired()
    candidates = list(expected_inputs(image, labels))
    samples = batch(image, labels, size=40)[0][:, 0].numpy()
    held = [{(axis, phase) for axis, phase, expected in candidates if holds(patch, expected)} for patch in samples]
    assert all(len(found) == 1 for found in held)
    assert set().union(*held) == {(axis, phase) for axis, phase, _ in candidates}


def test_labels_are_those_of_the_acquired_planes_and_nothing_between():
    image, labels = acquired()
    _, lr, others = batch(image, labels)
    for hr in others.hr[:, 0]:
        known = (hr != UNLABELLED) & (hr != 0)
        planes = [int(known.any(tuple(d for d in range(3) if d != axis)).sum()) for axis in range(3)]
        assert min(planes) == DEPTH
        axis = planes.index(DEPTH)
        at = known.any(tuple(d for d in range(3) if d != axis)).nonzero()[:, 0]
        assert torch.equal(at.diff(), torch.full((DEPTH - 1,), FACTOR))
    assert all((sample == UNLABELLED).sum() > (FACTOR - 1.5) * (sample % UNLABELLED != 0).sum() for sample in lr)
    assert set(lr.unique().tolist()) == {0, 1, 2, UNLABELLED}


def test_nothing_is_uncertain_and_stage_1_teaches_nothing():
    _, _, others = batch(*acquired())
    assert (others.uncertainty == 0).all()
    assert not others.inside.any()


def test_the_scale_of_a_case_is_that_of_its_pseudo_hr_data():
    """Whatever is drawn first: half of the patches are turned here."""
    alone = batch(*acquired(), probability=0.0)[2]
    assert alone.uncertainty.max() > 0.9
    assert alone.inside.any()
    for seed in range(6):
        mixed = batch(*acquired(), probability=0.5, seed=seed)[2]
        pseudo = mixed.inside.flatten(1).any(1)
        if pseudo.any():
            assert mixed.uncertainty[pseudo].max() > 0.9


def test_patches_with_foreground_are_around_labels_of_acquired_planes():
    image, labels = acquired()
    labels[:] = 0
    labels[0, 2, 11, 7] = 2
    size = (2, 8, 8)
    np.random.seed(0)  # noqa: NPY002
    pairs = ExactPairs(turned(image, labels), 1.0)
    loader = HRPatchLoader(
        pseudo_hr(), 20, size, size, LABELS, factor=FACTOR, exact_pairs=pairs, oversample_foreground_percent=1.0
    )
    found = next(loader)["target"] == 2
    assert (found.flatten(1).sum(1) == 1).all()


@pytest.mark.parametrize("rotation", [0.2, 0.5])
def test_rotated_labels_stay_sparse(rotation):
    """A rotation keeps their share; interpolated, thin planes lose theirs to what is around them."""
    image, labels = acquired()
    _, _, still = batch(image, labels, seed=1)
    _, _, moved = batch(image, labels, seed=1, rotation=rotation)
    for before, after in zip(still.hr, moved.hr, strict=True):
        shares = [float(((hr == 1) | (hr == 2)).float().sum()) for hr in (before, after)]
        assert shares[1] == pytest.approx(shares[0], rel=0.25)


def test_losses_take_no_notice_of_what_has_no_label():
    _, lr, others = batch(*acquired(), size=2)
    loss = build_label_loss(LABELS, batch_dice=False, ddp=False, ignore_index=UNLABELLED)
    weighted = UncertaintyWeightedLoss(ignore_label=UNLABELLED, dice=loss.dc)
    for target, function in ((others.hr, loss), (lr, lambda o, t: weighted(o, t, torch.ones_like(t, dtype=o.dtype)))):
        logits = torch.randn(2, 3, *target.shape[2:], requires_grad=True)
        function(logits, target).backward()
        known = (target != UNLABELLED).expand_as(logits)
        assert (logits.grad[~known] == 0).all()
        assert (logits.grad[known] != 0).any()


def test_regions_of_a_dataset_without_ignore_label_may_have_an_ignore_channel():
    """Exact pairs bring one; the teacher sees what it was trained on."""
    regions = LabelManager({"background": 0, "both": (1, 2), "b": 2}, [1, 2])
    teacher = SelfSRTeacher(SimpleNamespace(), regions)
    target = torch.randint(0, 2, (1, 3, 2, 4, 4), generator=torch.Generator().manual_seed(0)).bool()
    channels = teacher._label_channels(target)
    assert channels.shape == (1, 2, 2, 4, 4)
    assert (channels[target[:, 2:].expand_as(channels)] == 0).all()
    assert torch.equal(teacher._label_channels(target[:, :2]), target[:, :2].float())

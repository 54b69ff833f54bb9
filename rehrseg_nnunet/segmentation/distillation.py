"""Knowledge distillation from the self-SR encoder to the segmentation encoder.

The paper's own, of structure (Eq. 8-10), and the two methods that its Table 6 compares with: MIMIC (Li et al., CVPR
2017) and IFVD, intra-class feature variation distillation (Wang et al., ECCV 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor
from torch.nn import functional

from rehrseg_nnunet.config.segmentation import DistillationKind
from rehrseg_nnunet.nnunet.precision import at_least_float32, without_autocast
from rehrseg_nnunet.segmentation.hr_network import TrainingOutputs
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.segmentation.uncertainty_weighting import regions_and_valid

# Below this length a feature vector has no usable direction: it counts as zero and gets no gradient, which would
# otherwise grow like 1 / length.
_MIN_LENGTH = 1e-6

# (image, LR target, inside) to features
Teacher = Callable[[Tensor, Tensor, Tensor], Tensor]
# the setting, and the terms of the loss that it means
DISTILLATION_TERMS: dict[DistillationKind, tuple[str, ...]] = {
    "correlation+spatial": ("affinity", "spatial"),
    "correlation": ("affinity",),
    "spatial": ("spatial",),
    "mimic": ("mimic",),
    "ifvd": ("ifvd",),
}


class Distillation:
    """What stage 1 teaches the segmentation encoder, as terms of the total loss (Eq. 11).

    Slices that are padding alone teach nothing.

    Args:
        teacher: maps the LR image in the cases' units (B, Ci, D, H, W), the full-resolution LR target and which slices
            are no padding to features (B, Ct, ...) of any spatial size; called without gradient.
        kind: the setting: L_corr and L_spatial, one of them, or another method's loss.
        pool: see `affinity_loss`.
        label_manager: nnU-Net's: which classes `ifvd` tells apart.
        centre: Eq. 9 and 10 compare features without their means over the batch, see `centred`.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        kind: DistillationKind,
        pool: Sequence[int],
        label_manager: LabelManager,
        centre: bool = False,
    ):
        if kind not in DISTILLATION_TERMS:
            raise ValueError(f"distillation must be one of {tuple(DISTILLATION_TERMS)}, got {kind!r}")
        self.teacher = teacher
        self.terms = DISTILLATION_TERMS[kind]
        self.pool = tuple(pool)
        self.centre = centre
        self.heads = label_manager.num_segmentation_heads
        self.regions = label_manager.has_regions

    def __call__(self, outputs: TrainingOutputs, lr_target: Tensor, targets: PatchTargets) -> dict[str, Tensor]:
        """Scalars by name: ``affinity`` and ``spatial``, or ``mimic``, or ``ifvd``.

        Args:
            outputs: of the network in mode "training".
            lr_target: the full-resolution LR target.
            targets: the rest of the batch's targets.
        """
        size = outputs.student.shape[2:]
        with torch.no_grad():
            features = resize_to(self.teacher(targets.image, lr_target, targets.inside), size)
        inside = nearest_to(targets.inside, (size[0], 1, 1))
        if self.terms == ("ifvd",):
            target = nearest_to(lr_target, size)
            has_ignore = target.shape[1] > self.heads
            classes = class_maps(target, self.heads, regions=self.regions, has_ignore=has_ignore)
            return {"ifvd": ifvd_loss(outputs.student, features, classes & inside)}
        return {name: self._term(name, outputs, features, inside) for name in self.terms}

    def _term(self, name: str, outputs: TrainingOutputs, features: Tensor, inside: Tensor) -> Tensor:
        if name == "mimic":
            return mimic_loss(outputs.adapted, features, inside=inside)
        student = outputs.student if name == "affinity" else outputs.adapted
        if self.centre:
            student, features = centred(student, inside), centred(features, inside)
        if name == "affinity":
            return affinity_loss(student, features, self.pool, inside=inside)
        return spatial_loss(student, features, inside=inside)


def centred(features: Tensor, inside: Tensor) -> Tensor:
    """Features without each channel's mean over the batch.

    The teacher's have a common direction that holds most of their length (0.6 of its square, on Hippocampus), so that
    a constant is nearly as good an answer to Eq. 9 and 10 as they are themselves.

    Args:
        features: (B, C, D, H, W), any floating dtype.
        inside: (B, 1, D, 1, 1) bool, slices that count.

    Returns:
        The same shape, in at least float32.
    """
    values, over = at_least_float32(features), (0, 2, 3, 4)
    counts = inside.to(values.dtype).expand(-1, 1, *values.shape[2:])
    mean = (values * counts).sum(over, keepdim=True) / counts.sum(over, keepdim=True).clamp_min(1)
    return values - mean


def affinity_loss(
    student: Tensor, teacher: Tensor, pool: Sequence[int] = (1, 2, 2), *, inside: Tensor | None = None
) -> Tensor:
    """Compare two feature maps by the cosine similarities of all their pairs of nodes (Eq. 8-9).

    With the unit node vectors as the columns of S and T, the sum over all pairs is
    ||S'S - T'T||^2 = ||SS'||^2 + ||TT'||^2 - 2 ||ST'||^2, so that nothing of size N x N is ever built. It is divided
    by N^2, not by N as Eq. 9 reads: the mean over pairs does not grow with the patch.

    *Convention*: a node is the mean over a block of ``pool`` voxels, blocks start at voxel 0 of each axis. Where a
    size is not divisible, the last block holds the remaining voxels alone; an axis shorter than its pool is one
    block. A vector of length zero has similarity 0 with everything and gets no gradient.

    Args:
        student: (B, C1, D, H, W), any floating dtype.
        teacher: (B, C2, D, H, W), the same B, D, H and W.
        pool: voxels per node along (D, H, W), the paper's granularity beta.
        inside: (B, 1, D, 1, 1) bool, slices whose nodes count; a node counts if any of its slices does. None: all.

    Returns:
        Scalar >= 0, the mean over the pairs of nodes and over the cases that have any; float32, or float64 for a
        float64 student.

    Raises:
        ValueError: if the shapes do not agree or ``pool`` is not three positive integers.
    """
    _check_features(student, teacher)
    if len(pool) != 3 or any(size < 1 for size in pool):
        raise ValueError(f"pool must be three integers of at least 1, got {tuple(pool)}")
    with without_autocast(student.device.type):
        student = at_least_float32(student)
        inside = _all_inside(student, inside).to(student.dtype)
        counts = (_pooled(inside.expand(-1, 1, *student.shape[2:]), pool) > 0).to(student.dtype)  # (B, 1, nodes)
        student_nodes = _unit_nodes(student * inside, pool)
        teacher_nodes = _unit_nodes(teacher.to(student.dtype) * inside, pool)
        number = counts.sum(dim=2, keepdim=True).clamp_min(1)
        loss = (
            _mean_squared_gram(student_nodes, student_nodes, number)
            + _mean_squared_gram(teacher_nodes, teacher_nodes, number)
            - 2 * _mean_squared_gram(student_nodes, teacher_nodes, number)
        )
        # Rounding may leave a difference just under 0. Only the value is lifted: a clamp would drop the gradient.
        lifted = loss - loss.detach().clamp_max(0)
        return lifted.sum() / counts.any(dim=2).sum().clamp_min(1)


def spatial_loss(student: Tensor, teacher: Tensor, *, inside: Tensor | None = None) -> Tensor:
    """Cosine distance over the channels at each location (Eq. 10).

    Args:
        student: (B, C, D, H, W), the student's features after the adaptor h.
        teacher: (B, C, D, H, W).
        inside: (B, 1, D, 1, 1) bool, slices that count. None: all.

    Returns:
        Scalar in [0, 2], the mean over locations and batch; float32, or float64 for a float64 student. A location
        where either vector is zero counts 1 and gives no gradient.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_features(student, teacher)
    _check_channels(student, teacher)
    student = at_least_float32(student)
    cosine = (_unit(student) * _unit(teacher.to(student.dtype))).sum(dim=1)
    return _mean_inside(1 - cosine, _all_inside(student, inside))


def mimic_loss(student: Tensor, teacher: Tensor, *, inside: Tensor | None = None) -> Tensor:
    """Compare two feature maps value by value, as MIMIC does: the mean of (h(F_seg) - F_sr)^2.

    Args:
        student: (B, C, D, H, W), the student's features after the adaptor h.
        teacher: (B, C, D, H, W).
        inside: (B, 1, D, 1, 1) bool, slices that count. None: all.

    Returns:
        Scalar >= 0, the mean over channels, locations and batch; float32, or float64 for a float64 student.

    Raises:
        ValueError: if the shapes differ.
    """
    _check_features(student, teacher)
    _check_channels(student, teacher)
    student = at_least_float32(student)
    squared = (student - teacher.to(student.dtype)).square().mean(dim=1)
    return _mean_inside(squared, _all_inside(student, inside))


def ifvd_loss(student: Tensor, teacher: Tensor, classes: Tensor) -> Tensor:
    """Compare how features vary inside each class (IFVD).

    With m_c(p) = 1 where location p belongs to class c, the class has the prototype

        mu_c = sum_p m_c(p) F(p) / sum_p m_c(p)

    in each case, a location the similarity M_c(p) = cos(F(p), mu_c) with it, and the loss is

        sum_{c,p} m_c(p) (M_c^sr(p) - M_c^seg(p))^2 / sum_{c,p} m_c(p).

    Where every location has one class this is IFVD's mean over locations; classes that overlap (regions) count a
    location once for each. Locations without a class (ignored ones) neither count nor enter a prototype.

    Args:
        student: (B, C1, D, H, W), any floating dtype.
        teacher: (B, C2, D, H, W).
        classes: (B, K, D, H, W), nonzero = the location belongs to the class.

    Returns:
        Scalar in [0, 4]; float32, or float64 for a float64 student. 0, still in the graph, when no location has a
        class. Exactly zero gradient at locations without one.

    Raises:
        ValueError: if the shapes do not agree.
    """
    _check_features(student, teacher)
    if classes.ndim != 5 or classes.shape[0] != student.shape[0] or classes.shape[2:] != student.shape[2:]:
        raise ValueError(
            f"classes must have the student's batch and spatial size {tuple(student.shape)}, got {tuple(classes.shape)}"
        )
    with without_autocast(student.device.type):
        student = at_least_float32(student).flatten(2)
        members = (classes != 0).flatten(2).to(student.dtype)
        difference = _class_similarity(student, members) - _class_similarity(
            teacher.to(student.dtype).flatten(2), members
        )
        return (members * difference.square()).sum() / members.sum().clamp_min(1)


def class_maps(target: Tensor, heads: int, *, regions: bool, has_ignore: bool) -> Tensor:
    """Where each class is, background included, and no ignored voxel.

    Args:
        target: nnU-Net's: (B, 1, ...) labels of any dtype, ignored voxels with a value that is no head; or
            (B, regions (+ 1), ...), 1 inside the region, with ``has_ignore`` the ignored voxels last.
        heads: K, segmentation heads.
        regions: the target holds regions; they may overlap, and what is in none of them is background.
        has_ignore: a region target ends with the ignore channel.

    Returns:
        Bool (B, K, ...) for labels, (B, K + 1, ...) for regions, background first.
    """
    if not regions:
        return target == torch.arange(heads, device=target.device).reshape(1, heads, *[1] * (target.ndim - 2))
    inside, valid = regions_and_valid(target.bool(), has_ignore=has_ignore)
    maps = torch.cat([~inside.any(dim=1, keepdim=True), inside], dim=1)
    return maps if valid is None else maps & valid


def nearest_to(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize labels to the grid of features.

    *Convention*: half-pixel centres as in `resize_to`; of two voxels at the same distance the one of higher index.

    Args:
        labels: (B, C, D, H, W), any dtype.
        size: the wanted (D', H', W').

    Returns:
        (B, C, D', H', W').
    """
    for axis, wanted in enumerate(size, start=2):
        centres = 2 * torch.arange(wanted, device=labels.device) + 1
        labels = labels.index_select(axis, centres * labels.shape[axis] // (2 * wanted))
    return labels


def resize_to(features: Tensor, size: Sequence[int]) -> Tensor:
    """Resize features to the grid of others.

    *Convention*: trilinear with half-pixel centres: both grids cover the same field of view, voxel j of n has its
    centre at (j + 1/2) / n of it, and the edge voxel is repeated outside.

    Args:
        features: (B, C, D, H, W).
        size: the wanted (D', H', W').

    Returns:
        (B, C, D', H', W') in at least float32; ``features`` itself when it has that size already.
    """
    if tuple(features.shape[2:]) == tuple(size):
        return features
    # Trilinear as bilinear in plane, then along z: older PyTorch versions lack the 3D kernel on MPS.
    depth, height, width = size
    planes = at_least_float32(features).flatten(1, 2)
    planes = functional.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    lines = planes.unflatten(1, features.shape[1:3]).flatten(3)
    lines = functional.interpolate(lines, size=(depth, height * width), mode="bilinear", align_corners=False)
    return lines.unflatten(3, (height, width))


def _check_features(student: Tensor, teacher: Tensor) -> None:
    if student.ndim != 5:
        raise ValueError(f"student must be of shape (B, C, D, H, W), got {tuple(student.shape)}")
    if teacher.ndim != 5 or teacher.shape[0] != student.shape[0] or teacher.shape[2:] != student.shape[2:]:
        raise ValueError(
            f"teacher must have the student's batch and spatial size {tuple(student.shape)}, got {tuple(teacher.shape)}"
        )


def _check_channels(student: Tensor, teacher: Tensor) -> None:
    if student.shape[1] != teacher.shape[1]:
        raise ValueError(f"student must have the teacher's {teacher.shape[1]} channels, got {student.shape[1]}")


def _class_similarity(features: Tensor, members: Tensor) -> Tensor:
    """Cosine of each location of (B, C, N) with each class's mean feature, (B, K, N), for members (B, K, N)."""
    counts = members.sum(dim=2).clamp_min(1)
    prototypes = features @ members.mT / counts[:, None]
    return _unit(prototypes).mT @ _unit(features)


def _unit_nodes(features: Tensor, pool: Sequence[int]) -> Tensor:
    """Pool (B, C, D, H, W) into unit node vectors, (B, C, nodes)."""
    return _unit(_pooled(features, pool))


def _pooled(features: Tensor, pool: Sequence[int]) -> Tensor:
    """Means (B, C, nodes) over the blocks of (B, C, D, H, W)."""
    kernel = [min(wanted, size) for wanted, size in zip(pool, features.shape[2:], strict=True)]
    # In plane first, then along z: older PyTorch versions have no 3D pooling on MPS.
    planes = functional.avg_pool2d(features.flatten(1, 2), kernel[1:], ceil_mode=True)
    planes = planes.unflatten(1, features.shape[1:3])
    nodes = functional.avg_pool2d(planes.flatten(3), (kernel[0], 1), ceil_mode=True)
    return nodes.flatten(2)


def _all_inside(features: Tensor, inside: Tensor | None) -> Tensor:
    """`inside`, or all slices (B, 1, D, 1, 1) of features (B, C, D, H, W)."""
    if inside is not None:
        return inside
    return torch.ones((features.shape[0], 1, features.shape[2], 1, 1), dtype=torch.bool, device=features.device)


def _mean_inside(values: Tensor, inside: Tensor) -> Tensor:
    """Mean of values (B, D, H, W) over the slices (B, 1, D, 1, 1) that count; 0, in the graph, if none does."""
    kept = torch.where(inside[:, 0], values, 0)
    number = inside.sum() * values[0, 0].numel()
    return kept.sum() / number.clamp_min(1)


def _unit(vectors: Tensor) -> Tensor:
    """Scale the vectors along axis 1 to length 1; vectors without direction become 0."""
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return torch.where(length > _MIN_LENGTH, vectors / length.clamp_min(_MIN_LENGTH), 0)


def _mean_squared_gram(first: Tensor, second: Tensor, number: Tensor) -> Tensor:
    """||first second'||^2 / N^2 for each graph of (B, C, nodes), N (B, 1, 1) being the nodes that count."""
    # Dividing before squaring keeps the numbers near 1, where float32 loses least in the difference above.
    return (first @ second.mT / number).square().sum(dim=(1, 2))

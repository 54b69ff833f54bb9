"""nnU-Net's training transforms taken apart by what they do, and images that keep their intensities among them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchgeneratorsv2.helpers.scalar_type import sample_scalar
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform

_IN_SPACE = (SpatialTransform, Convert3DTo2DTransform, Convert2DTo3DTransform)
_ON_LABELS = (MaskImageTransform, RemoveLabelTransform)


class TakeChannelsOut(BasicTransform):
    """Move image channels to `regression_target`.

    Spatial transforms and mirroring then move them with the image, and intensity transforms leave them alone.

    Args:
        channels: indices, negative ones from the end.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = tuple(channels)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Split `image` (C, ...) into `image`, the others in their order, and `regression_target`."""
        image = data_dict["image"]
        taken = [channel % len(image) for channel in self.channels]
        kept = [channel for channel in range(len(image)) if channel not in taken]
        return {**data_dict, "image": image[kept], "regression_target": image[taken]}


@dataclass(frozen=True)
class StockTransforms:
    """nnU-Net's training transforms by kind, each kind in its order.

    Mirroring, which nnU-Net does behind the intensities, commutes with them.

    Attributes:
        spatial: what moves voxels, with the conversions to 2D and back.
        mirrors: what flips.
        intensity: what changes image values alone.
        labels: masking, and everything behind it.
    """

    spatial: list[BasicTransform]
    mirrors: list[BasicTransform]
    intensity: list[BasicTransform]
    labels: list[BasicTransform]

    @classmethod
    def of(cls, stock: ComposeTransforms) -> StockTransforms:
        """Take them apart.

        Args:
            stock: `nnUNetTrainer.get_training_transforms(...)`; it is not changed.

        Raises:
            NotImplementedError: a transform that would drop a `regression_target`.
        """
        transforms = list(stock.transforms)
        for transform in transforms:
            _check_supported(transform)
        labels_at = next((i for i, t in enumerate(transforms) if isinstance(t, _ON_LABELS)), len(transforms))
        before = transforms[:labels_at]
        return cls(
            spatial=[t for t in before if isinstance(t, _IN_SPACE)],
            mirrors=[t for t in before if isinstance(t, MirrorTransform)],
            intensity=[t for t in before if not isinstance(t, (*_IN_SPACE, MirrorTransform))],
            labels=transforms[labels_at:],
        )

    @property
    def in_plane(self) -> bool:
        """Whether volumes are moved slice by slice (nnU-Net's dummy 2D)."""
        return any(isinstance(t, Convert3DTo2DTransform) for t in self.spatial)


def as_on_thin_slices(transform: BasicTransform, factor: int) -> BasicTransform:
    """An intensity transform of nnU-Net for thick slices that a network sees interpolated to thin ones.

    What reaches over voxels reaches over slices: blur is of so many thin slices, and resolution is lowered in plane
    alone, which thick slices are of already.

    Args:
        transform: of `StockTransforms.intensity`; it is not changed.
        factor: r.
    """
    if isinstance(transform, RandomTransform):
        outer = copy.copy(transform)
        outer.transform = as_on_thin_slices(transform.transform, factor)
        return outer
    if not isinstance(transform, (GaussianBlurTransform, SimulateLowResolutionTransform)):
        return transform
    inner: Any = copy.copy(transform)
    if isinstance(transform, GaussianBlurTransform):
        inner.blur_sigma = ThinSlices(transform.blur_sigma, factor)
    else:
        inner.ignore_axes = (0,)
    return inner


class ThinSlices:
    """A random width in voxels, in thin slices where it is along z of thick ones.

    Args:
        width: nnU-Net's range, number or function.
        factor: r.
    """

    def __init__(self, width: Any, factor: int):
        self.width = width
        self.factor = factor

    def __call__(self, *shape: Any, dim: int) -> float:
        """Draw one; `dim` 1 is z."""
        drawn = sample_scalar(self.width, *shape, dim=dim)
        return float(drawn) / (self.factor if dim == 1 else 1)


def _check_supported(transform: BasicTransform) -> None:
    inner = transform.transform if isinstance(transform, RandomTransform) else transform
    if not isinstance(inner, (ImageOnlyTransform, MirrorTransform, *_IN_SPACE, *_ON_LABELS)):
        raise NotImplementedError(
            f"training transforms must be those of nnUNetTrainer, got {type(inner).__name__}, which is not known to "
            "keep images and their targets together"
        )

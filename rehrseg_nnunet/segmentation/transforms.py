"""Training transforms for pseudo-HR patches: nnU-Net's own list, with the degradation to thick slices put into it.

Convention:
    Tensors are (C, z, y, x). What the loader hands over has HR slices along z, HALO_LR_SLICES * r more of them than the
    patch on either side, so that every LR slice of the patch sees the whole slice profile. z is aligned: LR slice k of
    the crop is HR slices r*k .. r*k + r - 1. Labels are nnU-Net's: -1 where there is no data, the ignore label is an
    ordinary value until regions and losses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTransform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from rehrseg_nnunet.nnunet.augmentation import StockTransforms, TakeChannelsOut, as_on_thin_slices
from rehrseg_nnunet.segmentation.targets import PatchTargets
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels
from rehrseg_nnunet.slices.slice_upsampling import centre_slices, repeat_last_slice, scan_slices

HALO_LR_SLICES = 2  # half_support(r) = ceil(1.5 r) HR slices, in whole LR slices
Region = int | Sequence[int]


class TakeUncertaintyOut(TakeChannelsOut):
    """Move the loader's last image channel, U + 1, to `regression_target`, as U and the mask of what is not padding."""

    def __init__(self) -> None:
        super().__init__([-1])

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Split `image` (C + 1, z, y, x) into `image` (C, ...) and `regression_target` (2, ...)."""
        data_dict = super().apply(data_dict, **params)
        marked = data_dict["regression_target"]
        inside = (marked > 0.5).to(marked.dtype)
        return {**data_dict, "regression_target": torch.cat((marked - inside, inside))}


class DegradeTransform(BasicTransform):
    """Thicken the slices of image and U, and drop the halo (Eq. 1).

    The image goes through the slice profile, renormalised by the equally blurred inside mask: exactly what `degrade` of
    the whole volume gives, whatever the crop. U is the plain mean over the r slices of an LR slice, unless it is wanted
    at HR; then only the halo is dropped. LR voxels with less than half of their profile inside the volume are padding:
    image 0, U 0.

    A second segmentation channel says that the image is the true acquisition, every slice repeated r times; its slices
    are averaged, which returns them unchanged where they were not moved along z.

    Args:
        factor: r.
        hr_uncertainty: keep U at HR.
    """

    def __init__(self, factor: int, *, hr_uncertainty: bool = False):
        super().__init__()
        self.factor = factor
        self.hr_uncertainty = hr_uncertainty

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Replace `image` (C, ...) by the LR one, and `regression_target` (U, inside) by U (1, ...) alone."""
        image, segmentation = data_dict["image"], data_dict["segmentation"]
        uncertainty, inside = data_dict["regression_target"].split(1)
        share = self._degrade(inside)
        if is_true_acquisition(segmentation):
            lr = self._mean(image) / self._mean(inside)
        else:
            lr = self._degrade(image) / share
        padding = share <= 0.5
        uncertainty = strip_halo(uncertainty, HALO_LR_SLICES * self.factor)
        uncertainty = uncertainty.masked_fill(padding.repeat_interleave(self.factor, dim=1), 0)
        return {
            **data_dict,
            "image": lr.masked_fill(padding, 0),
            "regression_target": uncertainty if self.hr_uncertainty else at_centres(uncertainty, self.factor),
            "segmentation": strip_halo(segmentation, HALO_LR_SLICES * self.factor),
        }

    def _degrade(self, volume: torch.Tensor) -> torch.Tensor:
        return strip_halo(degrade(volume, self.factor, axis=1), HALO_LR_SLICES)

    def _mean(self, volume: torch.Tensor) -> torch.Tensor:
        return slice_mean(strip_halo(volume, HALO_LR_SLICES * self.factor), self.factor)


class KeepAcquiredSlices(BasicTransform):
    """A spatial transform that moves true acquisitions in plane alone.

    Their slices come repeated r times. Turned out of plane, images and LR labels would be those of a staircase, which
    no scanner gives.

    Args:
        transform: for pseudo-HR cases, what makes patches of `spatial.patch_size`.
        spatial: nnU-Net's transform of HR slices.
    """

    def __init__(self, transform: BasicTransform, spatial: SpatialTransform):
        super().__init__()
        self.transform = transform
        self.slices, *in_plane = spatial.patch_size
        flat = copy.copy(spatial)
        flat.patch_size = tuple(in_plane)
        self.in_plane = ComposeTransforms([Convert3DTo2DTransform(), flat, Convert2DTo3DTransform()])

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Transform a sample."""
        if not is_true_acquisition(data_dict["segmentation"]):
            return self.transform(**data_dict)
        # the loader's margin for rotation is whole LR slices, as many on either side
        margin = (data_dict["image"].shape[1] - self.slices) // 2
        tensors = {key: strip_halo(value, margin) for key, value in data_dict.items() if torch.is_tensor(value)}
        return self.in_plane(**data_dict | tensors)


class KeepSparseLabels(BasicTransform):
    """A spatial transform that takes the nearest label where labels lie on planes.

    Labels on planes one voxel thick would be outvoted by what is around them, or get the label between two others.

    Args:
        transform: nnU-Net's; interpolates labels.
        unlabelled: value of the voxels without label.
    """

    def __init__(self, transform: SpatialTransform, *, unlabelled: int):
        super().__init__()
        self.transform = transform
        self.nearest = copy.copy(transform)
        self.nearest.mode_seg = "nearest"
        self.unlabelled = unlabelled

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Transform a sample."""
        sparse = is_sparse(data_dict["segmentation"], self.unlabelled)
        return (self.nearest if sparse else self.transform)(**data_dict)


class SetTargetsAside(BasicTransform):
    """Put what must not be changed any more under keys that no transform knows.

    It comes behind everything that moves voxels and before everything that changes intensities. U is 0 on true
    acquisitions: their LR labels are right.

    Args:
        factor: r.
        hr_uncertainty: U is at HR and wanted there too.
        sparse_label: value of voxels without label; where most have it, no slice teaches what stage 1 knows, which
            looks at labels too. None: all do.
    """

    def __init__(self, factor: int, *, hr_uncertainty: bool = False, sparse_label: int | None = None):
        super().__init__()
        self.factor = factor
        self.hr_uncertainty = hr_uncertainty
        self.sparse_label = sparse_label

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Make the fields of `PatchTargets` that are not labels, without batch, of image, U and segmentation."""
        others = {key: value for key, value in data_dict.items() if key != "regression_target"}
        image, segmentation = data_dict["image"], data_dict["segmentation"]
        uncertainty = data_dict["regression_target"].float().clamp(0, 1)
        lr = at_centres(uncertainty, self.factor) if self.hr_uncertainty else uncertainty
        has_data = (segmentation[:1] >= 0).amax((2, 3), keepdim=True)  # the loader pads labels with -1
        if self.sparse_label is not None and is_sparse(segmentation, self.sparse_label):
            has_data = torch.zeros_like(has_data)
        return {
            **others,
            "uncertainty": torch.zeros_like(lr) if is_true_acquisition(segmentation) else lr,
            "unaugmented_image": image.clone(),
            "inside": has_data.unflatten(1, (-1, self.factor)).any(2),
            "hr_uncertainty": uncertainty if self.hr_uncertainty else uncertainty.new_empty((1, 0, 0, 0)),
        }


class KeepPaddingEmpty(BasicTransform):
    """Transforms of intensities that leave padding 0, by which thin input tells it from the scan.

    Args:
        transforms: of the LR image.
    """

    def __init__(self, transforms: Sequence[BasicTransform]):
        super().__init__()
        self.transforms = ComposeTransforms(list(transforms))

    def __call__(self, **data_dict: Any) -> dict[str, Any]:
        """Transform a sample."""
        padding = ~scan_slices(data_dict["image"][None])[0]
        data_dict = self.transforms(**data_dict)
        return {**data_dict, "image": data_dict["image"].masked_fill(padding[:, None, None], 0)}


class LRLabelTransform(BasicTransform):
    """Derive the LR labels from the HR labels as they are now, so that both agree after every augmentation.

    Ties of the centre rule go to either side, drawn anew for every sample: on average labels stay where the image is.

    Args:
        factor: r.
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Draw the side of ties."""
        return {"upper_ties": bool(torch.rand(()) < 0.5)}

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Set `segmentation` to the LR labels (1, ...) and `hr_segmentation` to the HR labels (1, ...)."""
        segmentation = data_dict["segmentation"]
        lr = degrade_labels(segmentation[-1:], self.factor, axis=1, upper_ties=params["upper_ties"])
        return {**data_dict, "segmentation": lr, "hr_segmentation": segmentation[:1].contiguous()}


class ThinScales(NamedTuple):
    """Scales of HR labels, for deep supervision of a network of thin slices.

    Attributes:
        scales: nnU-Net's, full resolution first.
        slices: what the network sees, r*D and repetitions of the last slice (`thin_input.padded_slices`).
    """

    scales: list[list[float]]
    slices: int

    def coarser(self, labels: torch.Tensor) -> list[torch.Tensor]:
        """All but the finest of HR labels (1 or regions, r*D, H, W)."""
        downsample = DownsampleSegForDSTransform(self.scales[1:])
        return downsample(segmentation=repeat_last_slice(labels, self.slices))["segmentation"]


class PackHRTargets(BasicTransform):
    """Finish both label maps as nnU-Net does and put all targets into the list that its loader batches.

    Args:
        regions: foreground regions in the order of the heads, or None.
        ignore_label: becomes the last channel with regions, stays a value without.
        deep_supervision_scales: scales of the LR labels; None gives exactly one LR map.
        thin: scales of the HR labels; None gives exactly one HR map.
        hr_dtype: dtype of the HR label map without regions (with regions both are bool, as in nnU-Net).
    """

    def __init__(
        self,
        *,
        regions: Sequence[Region] | None = None,
        ignore_label: int | None = None,
        deep_supervision_scales: list[list[float]] | None = None,
        thin: ThinScales | None = None,
        hr_dtype: torch.dtype = torch.int16,
    ):
        super().__init__()
        labels: list[BasicTransform] = [RemoveLabelTransform(-1, 0)]
        if regions is not None:
            channels: list[Any] = [*regions] if ignore_label is None else [*regions, ignore_label]
            labels.append(ConvertSegmentationToRegionsTransform(regions=channels, channel_in_seg=0))
        scales = [] if deep_supervision_scales is None else [DownsampleSegForDSTransform(deep_supervision_scales)]
        self.finish_hr = ComposeTransforms(labels)
        self.thin = thin
        self.finish_lr = ComposeTransforms([*labels, *scales])
        self.hr_dtype = None if regions is not None else hr_dtype

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Return `image` and `segmentation` = [LR scale 0, .., LR scale N, coarser HR scales, *PatchTargets]."""
        # RemoveLabelTransform writes in place
        lr = self.finish_lr(segmentation=data_dict["segmentation"].clone())["segmentation"]
        hr = self.finish_hr(segmentation=data_dict["hr_segmentation"].clone())["segmentation"]
        if self.hr_dtype is not None:
            hr = hr.to(self.hr_dtype)
        coarser = [] if self.thin is None else self.thin.coarser(hr)
        targets = PatchTargets(
            hr=hr,
            uncertainty=data_dict["uncertainty"],
            image=data_dict["unaugmented_image"],
            inside=data_dict["inside"],
            hr_uncertainty=data_dict["hr_uncertainty"],
        )
        lr_scales = lr if isinstance(lr, list) else [lr]
        return {"image": data_dict["image"].contiguous(), "segmentation": [*lr_scales, *coarser, *targets]}


def is_sparse(segmentation: torch.Tensor, unlabelled: int) -> bool:
    """Whether a sample's labels lie on planes, up to every other one: a quarter of its voxels have none."""
    inside = segmentation >= 0
    return bool((segmentation == unlabelled).sum() > 0.25 * inside.sum())


def is_true_acquisition(segmentation: torch.Tensor) -> bool:
    """Whether a sample's LR input is the true acquisition: its labels come as a second segmentation channel."""
    return segmentation.shape[0] > 1


def slice_mean(volume: torch.Tensor, factor: int) -> torch.Tensor:
    """Mean over the r slices of every LR slice: (C, r*D, H, W) to (C, D, H, W)."""
    return volume.unflatten(1, (-1, factor)).mean(2)


def at_centres(uncertainty: torch.Tensor, factor: int) -> torch.Tensor:
    """U of LR slices, as their labels are taken: at their centres. (1, r*D, H, W) to (1, D, H, W)."""
    return centre_slices(uncertainty[None], factor)[0]


def strip_halo(volume: torch.Tensor, slices: int) -> torch.Tensor:
    """Drop as many slices at either end of z."""
    return volume[:, slices : volume.shape[1] - slices]


def build_training_transforms(
    stock: ComposeTransforms,
    *,
    factor: int,
    highest_label: int,
    regions: Sequence[Region] | None = None,
    ignore_label: int | None = None,
    deep_supervision_scales: list[list[float]] | None = None,
    thin: ThinScales | None = None,
    sparse_labels: bool = False,
    hr_uncertainty: bool = False,
    sees_thin_slices: bool = False,
    keeps_padding: bool = False,
) -> ComposeTransforms:
    """Put degradation, LR labels and packing into nnU-Net's training transforms.

    Order: take U out; where augmentation is in plane (dummy 2D) or absent: degrade, which commutes with it exactly,
    then the spatial transform; otherwise the spatial transform on HR slices, then degrade; mirror LR image, U and HR
    labels (nnU-Net does it behind the intensities; the two commute); set U and the image for the teacher aside;
    intensity on the LR image; LR labels; everything from masking on with the LR labels; pack.

    Args:
        stock: `nnUNetTrainer.get_training_transforms(...)` for the LR final patch size, with `regions=None` and
            `deep_supervision_scales=None`; it is not changed.
        factor: r.
        highest_label: largest label that occurs, the ignore label included; up to 127 HR labels are int8.
        regions: foreground regions, or None.
        ignore_label: ignore label, or None.
        deep_supervision_scales: nnU-Net's scales of the LR labels, or None.
        thin: scales of the HR labels, or None.
        sparse_labels: some samples have labels on planes of single voxels only, `ignore_label` elsewhere.
        hr_uncertainty: give U at HR too.
        sees_thin_slices: the network is one of thin slices, so intensities change as nnU-Net changes these.
        keeps_padding: the network tells padding from the scan, so it stays 0.

    Raises:
        NotImplementedError: a transform in the list that does not keep image, U and HR labels together.
    """
    parts = StockTransforms.of(stock)
    degradation = DegradeTransform(factor, hr_uncertainty=hr_uncertainty)
    sparse_label = ignore_label if sparse_labels else None
    if parts.in_plane:
        spatial = [degradation, *(_keep_sparse(t, sparse_label) for t in parts.spatial)]
    else:  # without the conversions to 2D and back
        on_hr = [_on_hr_grid(cast("SpatialTransform", t), factor) for t in parts.spatial]
        spatial = [*(KeepAcquiredSlices(_keep_sparse(t, sparse_label), t) for t in on_hr), degradation]
    intensity = [as_on_thin_slices(t, factor) if sees_thin_slices else t for t in parts.intensity]
    pack = PackHRTargets(
        regions=regions,
        ignore_label=ignore_label,
        deep_supervision_scales=deep_supervision_scales,
        thin=thin,
        hr_dtype=torch.int8 if highest_label <= torch.iinfo(torch.int8).max else torch.int16,
    )
    return ComposeTransforms(
        [
            TakeUncertaintyOut(),
            *spatial,
            *parts.mirrors,
            SetTargetsAside(factor, hr_uncertainty=hr_uncertainty, sparse_label=sparse_label),
            *([KeepPaddingEmpty(intensity)] if keeps_padding else intensity),
            LRLabelTransform(factor),
            *parts.labels,
            pack,
        ]
    )


def _keep_sparse(transform: BasicTransform, unlabelled: int | None) -> BasicTransform:
    if unlabelled is None or not isinstance(transform, SpatialTransform):
        return transform
    return KeepSparseLabels(transform, unlabelled=unlabelled)


def _on_hr_grid(transform: SpatialTransform, factor: int) -> SpatialTransform:
    """The same spatial transform for patches of HR slices with their halo."""
    slices, *in_plane = transform.patch_size
    on_hr = copy.copy(transform)
    on_hr.patch_size = (factor * (slices + 2 * HALO_LR_SLICES), *in_plane)
    return on_hr

"""nnU-Net data loader that draws self-SR windows from interpolated cases (paper section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.intensity_unit import IntensityUnit
from rehrseg_nnunet.config.self_sr import SelfSRConfig
from rehrseg_nnunet.restoration.loader import RestorationLoader
from rehrseg_nnunet.restoration.pairs import RestorationPair, random_interval
from rehrseg_nnunet.self_sr.pairs import WINDOW, make_pair, resize_in_plane, sample_window
from rehrseg_nnunet.self_sr.voxel_size import simulated_grids

# Standard deviations of a normal distribution in the case's unit, which is the range of 99 % of it: nnU-Net's intensity
# transforms are made for deviations of 1.
DEVIATIONS = 5.15
AXES = {"z": 0, "y": 1, "x": 2}
TONE = (MultiplicativeBrightnessTransform, ContrastTransform, GammaTransform)


def intensity_transforms(stock: ComposeTransforms) -> tuple[ComposeTransforms, ComposeTransforms]:
    """nnU-Net's intensity augmentation, split by what it means for a pair.

    Args:
        stock: nnU-Net's training transforms.

    Returns:
        (tone, noise): brightness, contrast and gamma map input and target alike, or else the network would have to
        undo them; noise goes on the input only. Blur and lower resolution are left out: they would ask for
        in-plane super-resolution, which thick-slice data need not.
    """
    random = [t for t in stock.transforms if isinstance(t, RandomTransform)]
    return (
        ComposeTransforms([t for t in random if isinstance(t.transform, TONE)]),
        ComposeTransforms([t for t in random if isinstance(t.transform, GaussianNoiseTransform)]),
    )


class SelfSRLoader(RestorationLoader):
    """Batches of windows: `data` (B, image + label channels, 4, A, B) and `target` [image, labels, mask].

    Images are in the cases' intensity units. Targets: image (B, C, r, A, B) float32; labels as `to_targets` makes them;
    mask (B, 1, r, A, B), 1 counts.

    Args:
        data: interpolated cases.
        config: stage-1 settings.
        factor: r.
        label_manager: nnU-Net's.
        spacing_mm: (c, a_y, a_x) of the thick-slice cases.
        axes: axes of the volume that play the slice axis: "y" or "x"; "z" only where it is known between the slices.
        oversample_foreground_percent: as in nnU-Net, share of each batch that contains foreground.
        augment: flips, transposes and zoom in plane, the intensity transforms, and windows without labels.
        tone: transform of input and target together.
        noise: transform of the input.
        batch_size: windows.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        *,
        config: SelfSRConfig,
        factor: int,
        label_manager: LabelManager,
        spacing_mm: Sequence[float],
        axes: Sequence[str],
        oversample_foreground_percent: float,
        augment: bool,
        tone: BasicTransform | None = None,
        noise: BasicTransform | None = None,
    ):
        size = (WINDOW * factor, *config.patch_size)
        super().__init__(
            data,
            batch_size,
            size,
            factor=factor,
            label_manager=label_manager,
            oversample_foreground_percent=oversample_foreground_percent,
        )
        self.config, self.augment, self.spacing_mm = config, augment, spacing_mm
        self.axes = [AXES[axis] for axis in axes]
        self.tone, self.noise = tone, noise

    def draw_pair(self, key: str, rng: np.random.Generator, *, force_foreground: bool) -> RestorationPair:
        """A window, augmented in plane and in its intensities if that is wanted."""
        pair = self._cut_pair(key, rng, force_foreground=force_foreground)
        if not self.augment:
            return pair
        pair = self._augment_intensities(_augment_in_plane(pair, rng))
        return _without_labels(pair, self.masked) if rng.random() < self.config.label_dropout else pair

    def _cut_pair(self, key: str, rng: np.random.Generator, *, force_foreground: bool) -> RestorationPair:
        image, labels, _, properties = self._data.load_case(key)
        axis = int(rng.choice(self.axes))
        voxel = self.foreground_voxel(properties["class_locations"], rng) if force_foreground else None
        grid, z_grid = simulated_grids(image.shape[1:], axis, self.factor, self.spacing_mm)
        centre = None if voxel is None else grid.position(voxel[axis])
        spec = sample_window(grid.voxels, self.factor, rng, centre=centre)
        in_plane = [a for a in range(3) if a != axis]
        size = self._crop_size(rng, z_scale=z_grid.scale if in_plane[0] == 0 else 1.0)
        boxes = {axis: grid.needed(*spec.stored_block)}
        for a, edge in zip(in_plane, size, strict=True):
            boxes[a] = random_interval(image.shape[1 + a], edge, rng, None if voxel is None else voxel[a])
        unit = IntensityUnit.of_properties(properties)
        crop, label_crop = self._crop(image, labels, [boxes[a] for a in range(3)], order=(axis, *in_plane))
        crop, label_crop = grid.resample(unit.apply(crop), label_crop, *spec.stored_block)
        inside = _inside(image.shape[1:], boxes, in_plane, size, self.config.patch_size)
        pair = make_pair(crop, label_crop, spec)
        outside_slices = pair.mask[0] == 0
        hr_labels = torch.where(outside_slices, torch.full_like(pair.hr_labels, self.masked), pair.hr_labels)
        return pair._replace(hr_labels=hr_labels, mask=pair.mask * inside)

    def _crop(
        self, image: Any, labels: Any, boxes: Sequence[tuple[int, int]], *, order: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image (C, S, A, B) and labels (S, A, B) of a box (z, y, x), its axes in `order`, zoomed to the patch."""
        bbox = [list(edges) for edges in boxes]
        crop = torch.from_numpy(crop_and_pad_nd(image, bbox, pad_mode="edge")).float()
        label_crop = torch.from_numpy(crop_and_pad_nd(labels, bbox, self.masked, cast_cropped_to=np.int16))[0]
        return resize_in_plane(
            crop.permute(0, *(1 + a for a in order)), label_crop.permute(order), self.config.patch_size
        )

    def _crop_size(self, rng: np.random.Generator, *, z_scale: float) -> tuple[int, int]:
        """Stored voxels that fill the patch; the first axis is z wherever an in-plane axis plays the slice axis."""
        zoom = 1.0
        if self.augment and rng.random() < self.config.scaling_probability:
            zoom = rng.uniform(*self.config.scaling)
        height, width = self.config.patch_size
        return max(1, round(height / (zoom * z_scale))), max(1, round(width / zoom))

    def _augment_intensities(self, pair: RestorationPair) -> RestorationPair:
        if self.tone is None and self.noise is None:
            return pair
        lr_image, hr_image = DEVIATIONS * pair.lr_image, DEVIATIONS * pair.hr_image
        if self.tone is not None:
            both = self.tone(image=torch.cat([lr_image, hr_image], dim=1))["image"]
            lr_image, hr_image = both[:, :WINDOW], both[:, WINDOW:]
        if self.noise is not None:
            lr_image = self.noise(image=lr_image)["image"]
        return pair._replace(lr_image=lr_image / DEVIATIONS, hr_image=hr_image / DEVIATIONS)


def _without_labels(pair: RestorationPair, masked: int) -> RestorationPair:
    """The pair of an image that nobody annotated: no label channel is 1, and no label counts."""
    unknown = {key: torch.full_like(getattr(pair, key), masked) for key in ("lr_labels", "hr_labels")}
    return pair._replace(**unknown)


def _inside(
    shape: Sequence[int],
    boxes: Mapping[int, tuple[int, int]],
    in_plane: Sequence[int],
    size: tuple[int, int],
    patch_size: tuple[int, int],
) -> torch.Tensor:
    """Mask (A, B): 1 where the zoomed patch lies inside the volume."""
    marks = []
    for a, edge in zip(in_plane, size, strict=True):
        positions = torch.arange(edge) + boxes[a][0]
        marks.append(((positions >= 0) & (positions < shape[a])).float())
    mask = marks[0][:, None] * marks[1][None]
    return torch.nn.functional.interpolate(mask[None, None], size=patch_size, mode="nearest-exact")[0, 0]


def _augment_in_plane(pair: RestorationPair, rng: np.random.Generator) -> RestorationPair:
    """Flips along both in-plane axes, and their exchange where the patch is square: orientation must not be learnt."""
    flips = [axis for axis in (-2, -1) if rng.random() < 0.5]
    swap = pair.mask.shape[-1] == pair.mask.shape[-2] and rng.random() < 0.5
    parts = [part.flip(flips) for part in pair]
    return RestorationPair(*(part.transpose(-1, -2).contiguous() if swap else part for part in parts))

"""nnU-Net data loader that draws SMORE's training pairs from the in-plane slices of thick-slice cases."""

from __future__ import annotations

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.config.smore import SMOREConfig
from rehrseg_nnunet.restoration.loader import RestorationLoader
from rehrseg_nnunet.restoration.pairs import RestorationPair
from rehrseg_nnunet.smore.pairs import make_slice_pair, sample_slice


class SMORELoader(RestorationLoader):
    """Batches of slices: `data` (B, image + label channels, L, W) and `target` [image, labels, mask].

    Targets: image (B, C, r*L, W) float32; labels as `to_targets` makes them; mask (B, 1, r*L, W), 1 counts.

    Args:
        data: preprocessed thick-slice cases.
        batch_size: slices.
        config: SMORE's settings.
        factor: r.
        label_manager: nnU-Net's.
        oversample_foreground_percent: as in nnU-Net, share of each batch that contains foreground.
        augment: flips and quarter turns.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        *,
        config: SMOREConfig,
        factor: int,
        label_manager: LabelManager,
        oversample_foreground_percent: float,
        augment: bool,
    ):
        self.size = (max(1, config.patch_size[0] // factor), config.patch_size[1])
        patch = (1, factor * self.size[0], self.size[1])
        super().__init__(
            data,
            batch_size,
            patch,
            factor=factor,
            label_manager=label_manager,
            oversample_foreground_percent=oversample_foreground_percent,
        )
        self.augment = augment

    def draw_pair(self, key: str, rng: np.random.Generator, *, force_foreground: bool) -> RestorationPair:
        """A slice, made thick along one of its axes."""
        image, labels, _, properties = self._data.load_case(key)
        voxel = self.foreground_voxel(properties["class_locations"], rng) if force_foreground else None
        z = int(rng.integers(image.shape[1])) if voxel is None else voxel[0]
        spec = sample_slice(
            image.shape[2:],
            self.factor,
            self.size,
            rng,
            pixel=None if voxel is None else voxel[1:],
            augment=self.augment,
        )
        return make_slice_pair(
            torch.from_numpy(np.asarray(image[:, z], dtype=np.float32)),
            torch.from_numpy(np.asarray(labels[0, z], dtype=np.int16)),
            spec,
            self.factor,
            outside=self.masked,
        )

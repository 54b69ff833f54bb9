"""nnU-Net data loader that draws SMORE's training pairs from the in-plane slices of thick-slice cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits

from rehrseg_nnunet.config import SMOREConfig
from rehrseg_nnunet.data.label_channels import head_labels, masked_value, to_channels, to_targets
from rehrseg_nnunet.data.self_sr_loader import foreground_voxel
from rehrseg_nnunet.data.smore_pairs import SlicePair, make_slice_pair, sample_slice


class SMORELoader(nnUNetDataLoader):
    """Batches of slices: `data` (B, image + label channels, L, W) and `target` [image, labels, mask].

    Targets: image (B, C, r*L, W) float32; labels as `to_targets` makes them; mask (B, 1, r*L, W), 1 counts.

    Args:
        data: preprocessed thick-slice cases.
        batch_size: slices.
        config: SMORE's settings.
        factor: r.
        label_manager: nnU-Net's.
        label_profile: mode of `degrade_labels`.
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
        label_profile: str,
        oversample_foreground_percent: float,
        augment: bool,
    ):
        self.size = (max(1, config.patch_size[0] // factor), config.patch_size[1])
        patch = (1, factor * self.size[0], self.size[1])
        super().__init__(data, batch_size, patch, patch, label_manager, oversample_foreground_percent)
        self.factor, self.label_profile, self.augment = factor, label_profile, augment
        self.groups = head_labels(label_manager)
        self.masked = masked_value(label_manager)
        self.regions = label_manager.has_regions

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch."""
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            samples = [self._sample(key, force_foreground=self.get_do_oversample(i)) for i, key in enumerate(keys)]
        data, *targets = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return {"data": data, "target": targets, "keys": keys}

    def _sample(self, key: str, *, force_foreground: bool) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (nnU-Net's workers seed the global state)
        pair = self._draw_pair(key, rng, force_foreground=force_foreground)
        data = torch.cat([pair.lr_image, to_channels(pair.lr_labels, self.groups)])
        labels = to_targets(pair.hr_labels, self.groups, self.masked, regions=self.regions)
        return data, pair.hr_image, labels, pair.mask

    def _draw_pair(self, key: str, rng: np.random.Generator, *, force_foreground: bool) -> SlicePair:
        image, labels, _, properties = self._data.load_case(key)
        voxel = None
        if force_foreground:
            voxel = foreground_voxel(properties["class_locations"], rng, annotated_key=self.annotated_classes_key)
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
            label_profile=self.label_profile,
            outside=self.masked,
        )

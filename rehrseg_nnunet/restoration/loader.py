"""nnU-Net's data loader for pairs: what the loaders of all restoring networks have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from threadpoolctl import threadpool_limits

from rehrseg_nnunet.nnunet.label_channels import head_labels, masked_value, to_channels, to_targets
from rehrseg_nnunet.restoration.pairs import RestorationPair


class RestorationLoader(nnUNetDataLoader):
    """Batches of pairs: `data` (B, image + label channels, ...) and `target` [image, labels, mask].

    Targets: image float32; labels as `to_targets` makes them; mask, 1 counts.

    Args:
        data: cases.
        batch_size: pairs.
        patch_size: voxels of a target, as nnU-Net counts them.
        factor: r.
        label_manager: nnU-Net's.
        oversample_foreground_percent: as in nnU-Net, share of each batch that contains foreground.
    """

    def __init__(
        self,
        data: nnUNetBaseDataset,
        batch_size: int,
        patch_size: list[int] | tuple[int, ...],
        *,
        factor: int,
        label_manager: LabelManager,
        oversample_foreground_percent: float,
    ):
        super().__init__(data, batch_size, patch_size, patch_size, label_manager, oversample_foreground_percent)
        self.factor = factor
        self.groups = head_labels(label_manager)
        self.masked = masked_value(label_manager)
        self.regions = label_manager.has_regions

    def draw_pair(self, key: str, rng: np.random.Generator, *, force_foreground: bool) -> RestorationPair:
        """One augmented pair of a case."""
        raise NotImplementedError

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch."""
        keys = self.get_indices()
        with torch.no_grad(), threadpool_limits(limits=1, user_api=None):
            samples = [self._sample(key, force_foreground=self.get_do_oversample(i)) for i, key in enumerate(keys)]
        data, *targets = (torch.stack(parts) for parts in zip(*samples, strict=True))
        return {"data": data, "target": targets, "keys": keys}

    def _sample(self, key: str, *, force_foreground: bool) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (nnU-Net's workers seed the global state)
        pair = self.draw_pair(key, rng, force_foreground=force_foreground)
        data = torch.cat([pair.lr_image, to_channels(pair.lr_labels, self.groups)])
        labels = to_targets(pair.hr_labels, self.groups, self.masked, regions=self.regions)
        return data, pair.hr_image, labels, pair.mask

    def foreground_voxel(self, locations: Mapping[Any, Any], rng: np.random.Generator) -> list[int] | None:
        """A random voxel (z, y, x) of a random class, None where a case has none.

        Args:
            locations: nnU-Net's class locations of a case, rows (channel, z, y, x); its key of all annotated voxels is
                taken only where no class occurs.
            rng: random numbers.
        """
        classes = [c for c in locations if len(locations[c]) and c != self.annotated_classes_key]
        classes = classes or [c for c in locations if len(locations[c])]
        if not classes:
            return None
        chosen = locations[classes[rng.integers(len(classes))]]
        return [int(v) for v in chosen[rng.integers(len(chosen))][1:]]

"""Patches from pseudo-HR cases, cut at every phase of the thick slices.

Convention:
    The volume at phase p (0 <= p < r) is the HR volume without its first p slices, cut at its end to whole groups of r:
    the thick slices that an acquisition shifted by p/r of a slice would have (Eq. 1). Patch positions are drawn on that
    LR grid by nnU-Net's own rules, so they are multiples of r in its HR slices and everything outside is padding as in
    nnU-Net: image 0, label -1. Crops carry HALO_LR_SLICES more LR slices on either side for the slice profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from rehrseg_nnunet.cases.case_dataset import Cases
from rehrseg_nnunet.cases.turned import TurnedCases
from rehrseg_nnunet.segmentation.case_scale import CaseScale
from rehrseg_nnunet.segmentation.certain_cases import CertainImage
from rehrseg_nnunet.segmentation.targets import FIELDS, PatchTargets
from rehrseg_nnunet.segmentation.transforms import HALO_LR_SLICES

PatchSize = list[int] | tuple[int, ...]
STOCK_SCALE_RANGE = (0.85, 1.25)  # what nnUNetTrainer computes its own initial patch size with


class SliceWindow:
    """A lazy view of HR slices `start .. start + slices` of a (C, z, y, x) array, read when it is indexed.

    Args:
        array: numpy or blosc2 array.
        start: first slice.
        slices: number of slices.
        repeat: slices of `array` are LR slices, to be shown this many times each.
    """

    def __init__(self, array: Any, *, start: int, slices: int, repeat: int = 1):
        self.array = array
        self.start = start
        self.repeat = repeat
        self.shape = (array.shape[0], slices, *array.shape[2:])
        self.dtype = array.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        channels, z, y, x = index
        first, stop = z.start + self.start, z.stop + self.start
        if self.repeat == 1:
            return np.asarray(self.array[channels, first:stop, y, x])
        lr_first = first // self.repeat
        lr = np.asarray(self.array[channels, lr_first : -(-stop // self.repeat), y, x])
        offset = first - lr_first * self.repeat
        return lr.repeat(self.repeat, axis=1)[:, offset : offset + stop - first]


class MarkedImage:
    """A lazy (C + 1, z, y, x) view: image channels and U + 1, so that nnU-Net's zero padding is told from U = 0.

    Args:
        case: (C + 1, z, y, x) pseudo-HR data, U last.
        image: (C, z, y, x) to show in place of the case's image channels.
    """

    def __init__(self, case: SliceWindow, image: SliceWindow | None = None):
        self.case = case
        self.image = image
        self.shape = case.shape
        self.dtype = case.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        crop = self.case[index]
        if not crop.flags.owndata:  # a view of a numpy array; blosc2 returns new memory, large enough not to copy
            crop = crop.copy()
        crop[-1] += 1
        if self.image is not None:
            crop[:-1] = self.image[index]
        return crop


class FirstChannel:
    """A lazy (z, y, x) view of a (1, z, y, x) one, as nnU-Net's loader expects a second label map."""

    def __init__(self, labels: SliceWindow):
        self.labels = labels
        self.shape = labels.shape[1:]
        self.dtype = labels.dtype

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        return self.labels[(slice(0, 1), *index)][0]


class ExactPairs(NamedTuple):
    """Cases that are shown in place of pseudo-HR ones now and then.

    Attributes:
        cases: turned acquisitions, image (C, n*r, H, W) without U.
        probability: share of the patches.
    """

    cases: TurnedCases
    probability: float


class PhasedCases:
    """A dataset of pseudo-HR cases, each loaded at a random phase.

    Args:
        dataset: pseudo-HR cases: data (C + 1, r*D, H, W) with U last, labels (1, r*D, H, W).
        factor: r.
        lr_dataset: the same cases as acquired, (C, D, H, W) and (1, D, H, W), or None.
        true_lr_probability: share of the cases that show the true acquisition and its labels, at phase 0; the others
            are at phases drawn uniformly.
        exact_pairs: turned acquisitions of the same identifiers and how often they are shown, at such phases too, or
            None; `true_lr_probability` is then the share of the others.
        normalise_uncertainty: see `CaseScale.of_case`.

    Attributes:
        scales: of the cases that were loaded, by identifier.
    """

    def __init__(
        self,
        dataset: Cases,
        *,
        factor: int,
        lr_dataset: Cases | None = None,
        true_lr_probability: float = 0.0,
        exact_pairs: ExactPairs | None = None,
        normalise_uncertainty: bool = True,
    ):
        if true_lr_probability > 0 and lr_dataset is None:
            raise ValueError(f"lr_dataset must be given for true_lr_probability > 0, got {true_lr_probability}")
        self.dataset = dataset
        self.identifiers = dataset.identifiers
        self.factor = factor
        self.lr_dataset = lr_dataset
        self.true_lr_probability = true_lr_probability
        self.exact_pairs = exact_pairs
        self.normalise_uncertainty = normalise_uncertainty
        self.scales: dict[str, CaseScale] = {}

    def load_case(self, identifier: str) -> tuple[MarkedImage, SliceWindow, FirstChannel | None, dict[str, Any]]:
        """Draw whether to show the true acquisition, turned or as it is, else a phase, then load."""
        if self.exact_pairs is not None and np.random.uniform() < self.exact_pairs.probability:  # noqa: NPY002
            return self._exact_pair(identifier, self.exact_pairs.cases)
        case = self.dataset.load_case(identifier)
        phases = self.factor if case[0].shape[1] > self.factor else 1  # a single thick slice fits at phase 0 only
        # nnU-Net seeds numpy's global generator anew in every worker; an own generator would repeat itself in them
        use_true_lr = bool(np.random.uniform() < self.true_lr_probability)  # noqa: NPY002
        phase = 0 if use_true_lr else int(np.random.randint(phases))  # noqa: NPY002
        return self.at_phase(identifier, case, phase=phase, use_true_lr=use_true_lr)

    def _exact_pair(self, identifier: str, cases: TurnedCases) -> tuple[MarkedImage, SliceWindow, None, dict[str, Any]]:
        """A turned acquisition at a random phase; its U is 0."""
        if identifier not in self.scales:
            data, _, _, properties = self.dataset.load_case(identifier)  # U of the turned one says nothing of the case
            self._remember_scale(identifier, data, properties)
        image, labels, _, properties = cases.load_case(identifier)
        phase = int(np.random.randint(self.factor if image.shape[1] > self.factor else 1))  # noqa: NPY002
        case = (CertainImage(image), labels, None, properties)
        data, labels, _, properties = self.at_phase(identifier, case, phase=phase, use_true_lr=False)
        return data, labels, None, properties

    def _remember_scale(self, identifier: str, data: Any, properties: Mapping[str, Any]) -> None:
        if identifier not in self.scales:
            self.scales[identifier] = CaseScale.of_case(
                data, properties, factor=self.factor, normalise_uncertainty=self.normalise_uncertainty
            )

    def at_phase(
        self, identifier: str, case: tuple[Any, Any, Any, dict[str, Any]], *, phase: int, use_true_lr: bool
    ) -> tuple[MarkedImage, SliceWindow, FirstChannel | None, dict[str, Any]]:
        """Views of a loaded case at one phase, in the order of nnU-Net's `load_case`.

        Returns:
            Data (C + 1, n*r, H, W), HR labels (1, n*r, H, W), true LR labels repeated along z (n*r, H, W) or None, and
            properties whose class locations are LR voxels of this phase.

        Raises:
            ValueError: the case does not have a whole number of thick slices, or its LR case another shape.
        """
        data, labels, _, properties = case
        if data.shape[1] % self.factor:
            raise ValueError(f"slices of case {identifier} must be a multiple of {self.factor}, got {data.shape[1]}")
        self._remember_scale(identifier, data, properties)
        slices = (data.shape[1] - phase) // self.factor * self.factor
        hr_data = SliceWindow(data, start=phase, slices=slices)
        hr_labels = SliceWindow(labels, start=phase, slices=slices)
        locations = lr_class_locations(properties["class_locations"], self.factor, phase, slices // self.factor)
        properties = {**properties, "class_locations": locations}
        if not use_true_lr:
            return MarkedImage(hr_data), hr_labels, None, properties
        # the constructor asks for the dataset where true acquisitions are drawn
        lr_data, lr_labels, _, _ = self.lr_dataset.load_case(identifier)  # pyright: ignore[reportOptionalMemberAccess]
        expected = (data.shape[1] // self.factor, *data.shape[2:])
        if lr_data.shape[1:] != expected:
            raise ValueError(f"LR case {identifier} must have shape {expected}, got {tuple(lr_data.shape[1:])}")
        lr_image = SliceWindow(lr_data, start=0, slices=slices, repeat=self.factor)
        lr_map = SliceWindow(lr_labels, start=0, slices=slices, repeat=self.factor)
        return MarkedImage(hr_data, lr_image), hr_labels, FirstChannel(lr_map), properties


def lr_class_locations(locations: Mapping[Any, Any], factor: int, phase: int, lr_slices: int) -> dict[Any, Any]:
    """nnU-Net's class locations (N, 4) = (channel, z, y, x) in HR voxels as LR voxels of one phase.

    HR slices that belong to no whole LR slice of the phase count for the nearest one.
    """
    converted = {}
    for key, voxels in locations.items():
        if len(voxels):
            voxels = np.array(voxels)
            voxels[:, 1] = np.clip((voxels[:, 1] - phase) // factor, 0, lr_slices - 1)
        converted[key] = voxels
    return converted


class HRPatchLoader(nnUNetDataLoader):
    """nnU-Net's loader for pseudo-HR cases: draws positions on the LR grid of a random phase and crops HR slices.

    Without transforms a batch is the raw crop with halo; with `build_training_transforms` it is `data` (B, C, p_z, p_y,
    p_x) float32, `target` = [LR labels per deep supervision scale .., *PatchTargets] and `keys`.

    Args:
        data: pseudo-HR cases.
        batch_size: patches per batch.
        patch_size: LR initial patch size, see `initial_lr_patch_size`.
        final_patch_size: LR final patch size.
        label_manager: nnU-Net's.
        factor: r.
        lr_dataset: the cases as acquired, for `true_lr_probability`.
        true_lr_probability: share of the patches whose input is the true acquisition with its true label, at phase 0.
        exact_pairs: see `PhasedCases`.
        normalise_uncertainty: see `CaseScale.of_case`.
        **options: nnUNetDataLoader's further options (oversampling, transforms, ...).

    Raises:
        ValueError: patch sizes that are not 3D, or whose difference along z is odd, which would cut slices in two.
    """

    def __init__(
        self,
        data: Cases,
        batch_size: int,
        patch_size: PatchSize,
        final_patch_size: PatchSize,
        label_manager: LabelManager,
        *,
        factor: int,
        lr_dataset: Cases | None = None,
        true_lr_probability: float = 0.0,
        exact_pairs: ExactPairs | None = None,
        normalise_uncertainty: bool = True,
        **options: Any,
    ):
        if len(patch_size) != 3:
            raise ValueError(f"patch_size must have 3 entries, got {tuple(patch_size)}")
        if (patch_size[0] - final_patch_size[0]) % 2:
            raise ValueError(
                f"patch_size must exceed final_patch_size by an even number of slices, got {tuple(patch_size)} and "
                f"{tuple(final_patch_size)}"
            )
        cases = PhasedCases(
            data,
            factor=factor,
            lr_dataset=lr_dataset,
            true_lr_probability=true_lr_probability,
            exact_pairs=exact_pairs,
            normalise_uncertainty=normalise_uncertainty,
        )
        super().__init__(
            cases,  # pyright: ignore[reportArgumentType] # its base class is declared, `Cases` is enough
            batch_size,
            patch_size,
            final_patch_size,
            label_manager,
            **options,
        )
        self.factor = factor
        self.scales = cases.scales

    def generate_train_batch(self) -> dict[str, Any]:
        """nnU-Net's batch, its targets in the scales of their cases."""
        batch = super().generate_train_batch()
        if self.transforms is not None:
            first = len(batch["target"]) - len(FIELDS)
            samples = zip(batch["keys"], zip(*batch["target"][first:], strict=True), strict=True)
            scaled = [self.scales[key].apply(PatchTargets(*targets)) for key, targets in samples]
            batch["target"][first:] = [torch.stack(field) for field in zip(*scaled, strict=True)]
        return batch

    def get_bbox(
        self, data_shape: Sequence[int], force_fg: bool, class_locations: Mapping[Any, Any] | None, **options: Any
    ) -> tuple[list[int], list[int]]:
        """Draw a box on the LR grid, return it in HR slices and with its halo.

        Args:
            data_shape: (n*r, H, W) of the case at its phase.
            force_fg: whether the patch must hold foreground.
            class_locations: LR voxels by class, from `PhasedCases`.
            **options: nnUNetDataLoader.get_bbox's further options.
        """
        lr_shape = (data_shape[0] // self.factor, *data_shape[1:])
        stock: Any = super().get_bbox  # declared for an array and a dict
        lower, upper = stock(lr_shape, force_fg, class_locations, **options)
        first = (lower[0] - HALO_LR_SLICES) * self.factor
        stop = (upper[0] + HALO_LR_SLICES) * self.factor
        return [first, *lower[1:]], [stop, *upper[1:]]


def initial_lr_patch_size(
    final_patch_size: Sequence[int],
    factor: int,
    *,
    rotation: tuple[float, float],
    dummy_2d: bool,
    stock_initial_patch_size: Sequence[int] | np.ndarray,
) -> tuple[int, int, int]:
    """LR initial patch size for spatial augmentation on the HR grid: nnU-Net's rule for the HR patch, in LR slices.

    nnU-Net rotates voxels, so the room that a patch of thin slices needs is another than that of the same patch of
    thick ones (mostly far fewer slices). In plane (dummy 2D) nothing changes and nnU-Net's own size is returned.

    Args:
        final_patch_size: LR final patch size.
        factor: r.
        rotation: nnU-Net's range of angles, radians.
        dummy_2d: nnU-Net's do_dummy_2d_data_aug.
        stock_initial_patch_size: nnU-Net's initial patch size.
    """
    if dummy_2d:
        depth, height, width = (int(s) for s in stock_initial_patch_size)
        return depth, height, width
    slices, *in_plane = final_patch_size
    hr_size = get_patch_size((slices * factor, *in_plane), rotation, rotation, rotation, STOCK_SCALE_RANGE)
    lr_slices = -(-int(hr_size[0]) // factor)
    lr_slices += (lr_slices - slices) % 2
    return lr_slices, int(hr_size[1]), int(hr_size[2])

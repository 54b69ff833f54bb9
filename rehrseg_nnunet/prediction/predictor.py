"""HR segmentation of LR cases: nnU-Net's predictor with another network output and another output grid.

Convention:
    The sliding window runs over the LR case. A window's HR logits (K, r*D, H, W) travel through it as (K*r, D, H, W),
    channel k*r + p holding phase p of class k, behind the K channels of the LR logits, and are unfolded at the end: HR
    slice r*d + p is phase p of LR slice d. The result is the mean of the HR head's logits and of the interpolated LR
    logits, or one of the two (`hr_from`). LR logits alone, which are all that a network without an HR head has, are
    taken at several phases (`slice_phases`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.config.segmentation import HRSource
from rehrseg_nnunet.nnunet.compatibility import require_compatible, warn_if_incompatible
from rehrseg_nnunet.nnunet.raw_files import list_cases
from rehrseg_nnunet.nnunet.whole_files import WholeFilesPlansManager, staging
from rehrseg_nnunet.prediction.configuration import HRConfigurationManager
from rehrseg_nnunet.prediction.image_checks import raise_failures
from rehrseg_nnunet.prediction.inputs import Images, endings_of
from rehrseg_nnunet.prediction.output_grid import HRGrid, OutputGrid
from rehrseg_nnunet.prediction.slice_phases import Mirrors, PhaseMean, mirrored_phases
from rehrseg_nnunet.segmentation.hr_head import has_hr_head, hr_factor, output_mode
from rehrseg_nnunet.slices.slice_profile import at_phase, interpolate_logits
from rehrseg_nnunet.slices.slice_upsampling import interleave_slices

logger = logging.getLogger(__name__)

warn_if_incompatible()


def fold_phases(logits: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, K, r*D, H, W) to (B, K*r, D, H, W)."""
    return logits.unflatten(2, (-1, factor)).movedim(3, 2).flatten(1, 2)


class _ManyHeads:
    """A label manager with another number of heads: nnU-Net's sliding window asks it for the output channels."""

    def __init__(self, label_manager: Any, heads: int) -> None:
        self._label_manager = label_manager
        self.num_segmentation_heads = heads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._label_manager, name)


class HRPredictor(nnUNetPredictor):
    """`nnUNetPredictor` whose prediction methods all return or write HR results.

    They come from the heads of a network that REHRSegTrainer trained, and from the interpolated logits of any other.

    Args:
        *args: of nnUNetPredictor.
        grid: where segmentations and probabilities are written; logits are always on the HR grid.
        hr_from: where the logits of a network with an HR head come from: "head", the interpolated "lr" logits, or
            the "mean" of both. None: what the model's settings say.
        **kwargs: of nnUNetPredictor.

    Raises:
        IncompatibleError: the installed nnU-Net lacks something that is relied on.
    """

    # None until initialisation, which brings all of them
    network: nn.Module
    plans_manager: PlansManager
    configuration_manager: HRConfigurationManager
    label_manager: LabelManager | _ManyHeads
    dataset_json: dict[str, Any]
    factor: int
    hr_from: HRSource

    def __init__(
        self, *args: Any, grid: OutputGrid | None = None, hr_from: HRSource | None = None, **kwargs: Any
    ) -> None:
        require_compatible()
        super().__init__(*args, **kwargs)
        self.wanted_hr_from: HRSource | None = hr_from
        self.grid: OutputGrid = HRGrid() if grid is None else grid
        self._mirrors: list[Mirrors] = [()]  # of the phase that is predicted
        self._stage: Callable[[str], str] | None = None  # while files are predicted
        # what passes on the cases that workers have preprocessed
        self.preprocessed: Callable[[Iterator[dict]], Iterator[dict]] = raise_failures

    def initialize_from_trained_model_folder(self, model_training_output_dir: str, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor.

        Raises:
            NotImplementedError: a 2d or cascaded configuration.
            ValueError: the planned slices are not thick, the HR head is of another factor than the plans, or there is
                none and `hr_from` asks for it.
        """
        super().initialize_from_trained_model_folder(model_training_output_dir, *args, **kwargs)
        self._switch_to_hr()

    def manual_initialization(self, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor; takes the plans' own configuration.

        Raises:
            NotImplementedError: a 2d or cascaded configuration.
            ValueError: the planned slices are not thick, the HR head is of another factor than the plans, or there is
                none and `hr_from` asks for it.
        """
        super().manual_initialization(*args, **kwargs)
        self._switch_to_hr()

    def _switch_to_hr(self) -> None:
        config = load_config(self.configuration_manager.configuration, purpose="prediction")
        factor = config.factor
        self.hr_from = self.wanted_hr_from or config.segmentation.hr_from
        if not has_hr_head(self.network):
            if self.wanted_hr_from not in (None, "lr"):
                raise ValueError(
                    f"--hr_from {self.wanted_hr_from} needs a network with an HR head, which {self.trainer_name} has "
                    "not; leave it out"
                )
            self.hr_from = "lr"
            logger.info(
                "%s has no HR head: its logits are interpolated to %d times as many slices (cubic B-spline)",
                self.trainer_name,
                factor,
            )
        elif hr_factor(self.network) != factor:
            raise ValueError(f"network must have the plans' factor {factor}, got {hr_factor(self.network)}")
        self.factor = factor
        self.plans_manager = WholeFilesPlansManager(self.plans_manager.plans)
        self.configuration_manager = HRConfigurationManager(
            self.configuration_manager, factor=factor, grid=self.grid, has_regions=self.label_manager.has_regions
        )

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """HR logits of a preprocessed LR case, their mean over mirroring, and over phases without an HR head.

        Args:
            input_image: (C, D, H, W).

        Returns:
            (K, r*D, H, W) float16, on the CPU.
        """
        slices = input_image.shape[1]
        axes = self.allowed_mirroring_axes if self.use_mirroring else None
        # the HR head, which was trained on every phase, gains nothing from them
        phases = self.factor if self.hr_from == "lr" else 1
        mean = PhaseMean(slices, self.factor)
        for phase, mirrors in mirrored_phases(axes, slices=slices, factor=phases).items():
            self._mirrors = mirrors
            mean.add(self._hr_logits(at_phase(input_image, phase, self.factor, 1)), phase, weight=len(mirrors))
        return mean.mean().half()

    def _hr_logits(self, image: torch.Tensor) -> torch.Tensor:
        """HR logits (K, r*D, H, W), on the CPU, of an image (C, D, H, W), the mean over `_mirrors`."""
        with self._all_channels():
            logits = torch.as_tensor(super().predict_sliding_window_return_logits(image))
        try:
            return self._to_hr(logits).cpu()
        except torch.cuda.OutOfMemoryError:
            logger.info("no room for HR logits on %s: the CPU interpolates them", logits.device)
        # HR logits, in float32, are 2*r times as large as nnU-Net's own, so they may not fit where those did. Callers
        # take them to the CPU anyway. Not in the handler, which would keep the tensors of the failed attempt.
        torch.cuda.empty_cache()
        return self._to_hr(logits.cpu())

    def _to_hr(self, logits: torch.Tensor) -> torch.Tensor:
        """HR logits (K, r*D, H, W), float32, from what the sliding window gives, on its device."""
        if self.hr_from == "head":
            return interleave_slices(logits[None], self.factor)[0].float()
        heads = self.label_manager.num_segmentation_heads
        hr_logits = interpolate_logits(logits[:heads].float(), self.factor, 1)
        if self.hr_from == "mean":  # in place: HR logits are large
            hr_logits.add_(interleave_slices(logits[None, heads:], self.factor)[0]).div_(2)
        return hr_logits

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        mirrored = ([axis + 2 for axis in mirrors] for mirrors in self._mirrors)
        total = sum(self._predict_window(x.flip(axes), axes) for axes in mirrored)
        return total / len(self._mirrors)  # pyright: ignore[reportReturnType] # no float: there is always one

    def _predict_window(self, x: torch.Tensor, mirrored: list[int]) -> torch.Tensor:
        """LR logits, folded HR logits, or both, of a mirrored window (B, C, D, H, W), mirrored back."""
        if self.hr_from == "lr":
            return self.network(x).flip(mirrored)
        lr, hr = (logits.flip(mirrored) for logits in self.network(x))
        folded = fold_phases(hr, self.factor)
        return folded if self.hr_from == "head" else torch.cat([lr, folded], dim=1)

    @contextmanager
    def _all_channels(self) -> Iterator[None]:
        """The network gives all that `_predict_window` takes, and nnU-Net expects as many channels."""
        if self.hr_from == "lr":
            yield
            return
        label_manager = self.label_manager
        per_head = self.factor if self.hr_from == "head" else 1 + self.factor
        self.label_manager = _ManyHeads(label_manager, label_manager.num_segmentation_heads * per_head)
        try:
            with output_mode(self.network, "hr"):
                yield
        finally:
            self.label_manager = label_manager

    # nnU-Net reads its arguments by the names in these methods' signatures, which wraps passes on

    @wraps(nnUNetPredictor.predict_from_files)
    def predict_from_files(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        with self._staged_output():
            return super().predict_from_files(*args, **kwargs)

    @wraps(nnUNetPredictor.predict_from_files_sequential)
    def predict_from_files_sequential(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        with self._staged_output():
            return super().predict_from_files_sequential(*args, **kwargs)

    @contextmanager
    def _staged_output(self) -> Iterator[None]:
        with staging(remedy="free space there or choose another folder, and go on with --continue_prediction") as stage:
            self._stage = stage
            try:
                yield
            finally:
                self._stage = None

    @property
    def images(self) -> Images:
        """What files the model takes, and those it can also read and write."""
        return Images(
            channels=len(self.configuration_manager.normalization_schemes),
            ending=self.dataset_json["file_ending"],
            endings=endings_of(self.plans_manager.image_reader_writer_class),
        )

    def write_on(self, grid: OutputGrid) -> None:
        """Choose another grid for what is predicted from now on."""
        self.grid = self.configuration_manager.grid = grid

    def write_as(self, ending: str) -> None:
        """Give segmentations another of the endings that the model's reader can write."""
        self.dataset_json = {**self.dataset_json, "file_ending": ending}

    def image_files(self, folder: Path) -> list[list[str]]:
        """Files of every case of a folder: exactly the channels that the network was trained with.

        Raises:
            FileNotFoundError: the folder does not exist or has no such files.
            ValueError: files without channel, or with other channels; see `list_cases`.
        """
        channels = len(self.configuration_manager.normalization_schemes)
        return list(list_cases(folder, self.dataset_json["file_ending"], channels=channels).values())

    def _manage_input_and_output_lists(
        self, list_of_lists_or_source_folder: str | list[list[str]], *args: Any, **kwargs: Any
    ) -> tuple[list, list | None, list]:
        source = list_of_lists_or_source_folder
        files = self.image_files(Path(source)) if isinstance(source, str) else source
        inputs, outputs, previous = super()._manage_input_and_output_lists(files, *args, **kwargs)
        missing = self.grid.missing([files[0] for files in inputs])
        if missing:
            raise FileNotFoundError(f"--grid must have a file for every input, got none for {', '.join(missing)}")
        if outputs is not None and self._stage is not None:
            outputs = [self._stage(output) for output in outputs]
        return inputs, outputs, previous

    def _internal_get_data_iterator_from_lists_of_filenames(self, *args: Any, **kwargs: Any) -> Iterator[dict]:
        configuration_manager = self.configuration_manager
        self.configuration_manager = configuration_manager.for_workers()
        try:
            cases = super()._internal_get_data_iterator_from_lists_of_filenames(*args, **kwargs)
        finally:
            self.configuration_manager = configuration_manager
        return self.preprocessed(cases)

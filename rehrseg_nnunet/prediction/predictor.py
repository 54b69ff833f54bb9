"""Segmentation on other grids than the network's: nnU-Net's predictor with other outputs and output grids.

Convention:
    The sliding window runs over the LR case. A window's HR logits (K, r*D, H, W) travel through it as (K*r, D, H, W),
    channel k*r + p holding phase p of class k, behind the K channels of the LR logits, and are unfolded at the end: HR
    slice r*d + p is phase p of LR slice d. The result is the mean of the HR head's logits and of the interpolated LR
    logits, or one of the two (`hr_from`). LR logits alone, which are all that a network without an HR head has, are
    taken at several phases (`slice_phases`). Those of a network that sees thin slices (`thin_input`) take the place of
    an HR head's. A model whose planned slices are not thick has r = 1: its logits are nnU-Net's own.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.config.rehrseg import BLOCK, ResolvedConfig, load_config
from rehrseg_nnunet.config.segmentation import HRSource
from rehrseg_nnunet.nnunet.compatibility import require_compatible, warn_if_incompatible
from rehrseg_nnunet.nnunet.label_channels import ManyHeads
from rehrseg_nnunet.nnunet.raw_files import list_cases
from rehrseg_nnunet.nnunet.whole_files import WholeFilesPlansManager, staging
from rehrseg_nnunet.prediction.case_lists import (
    CaseLists,
    case_endings,
    check_companions,
    check_previous_stage,
    previous_segmentation,
    unfinished,
)
from rehrseg_nnunet.prediction.configuration import HRConfigurationManager
from rehrseg_nnunet.prediction.export import Writer, export_on_grids, exporting_with, short_bars
from rehrseg_nnunet.prediction.image_checks import raise_failures
from rehrseg_nnunet.prediction.inputs import Images, case_name, endings_of
from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid, OutputGrid
from rehrseg_nnunet.prediction.slice_phases import Mirrors, PhaseMean, mirrored_phases
from rehrseg_nnunet.segmentation.hr_network import gives_hr_logits, hr_factor, output_mode
from rehrseg_nnunet.slices.slice_profile import at_phase, interpolate_logits
from rehrseg_nnunet.slices.slice_upsampling import interleave_slices

logger = logging.getLogger(__name__)

warn_if_incompatible()


def fold_phases(logits: torch.Tensor, factor: int) -> torch.Tensor:
    """(B, K, r*D, H, W) to (B, K*r, D, H, W)."""
    return logits.unflatten(2, (-1, factor)).movedim(3, 2).flatten(1, 2)


class HRPredictor(nnUNetPredictor):
    """`nnUNetPredictor` whose prediction methods all return or write results on the grids that are asked for.

    With thick slices these come from the heads of a network that REHRSegTrainer trained, and from the interpolated
    logits of any other. Any other model's logits are nnU-Net's.

    Args:
        *args: of nnUNetPredictor.
        grid: where segmentations and probabilities are written, one or several for files; arrays are returned on the
            first. None: the HR grid of a model with thick slices, the input's own grid of any other.
        hr_from: where the logits of a network with an HR head come from: "head", the interpolated "lr" logits, or
            the "mean" of both. None: what the model's settings say.
        writers: what else is written for every case on every grid, see `export.Writer`.
        **kwargs: of nnUNetPredictor.

    Raises:
        IncompatibleError: the installed nnU-Net lacks something that is relied on.
    """

    # None until initialisation, which brings all of them
    network: nn.Module
    plans_manager: PlansManager
    configuration_manager: HRConfigurationManager
    label_manager: LabelManager | ManyHeads
    dataset_json: dict[str, Any]
    factor: int
    hr_from: HRSource

    def __init__(
        self,
        *args: Any,
        grid: OutputGrid | Sequence[OutputGrid] | None = None,
        hr_from: HRSource | None = None,
        writers: Sequence[Writer] = (),
        **kwargs: Any,
    ) -> None:
        require_compatible()
        with redirect_stdout(io.StringIO()):  # nnU-Net speaks of CUDA on every other device
            super().__init__(*args, **kwargs)
        self.network_seconds = 0.0  # of the last case
        self.wanted_hr_from: HRSource | None = hr_from
        self.grids: tuple[OutputGrid, ...] = (grid,) if isinstance(grid, OutputGrid) else tuple(grid or ())
        self.writers = tuple(writers)
        self._mirrors: list[Mirrors] = [()]  # of the phase that is predicted
        self._stage: Callable[[str], str] | None = None  # while files are predicted
        # what passes on the cases that workers have preprocessed
        self.preprocessed: Callable[[Iterator[dict]], Iterator[dict]] = raise_failures

    def initialize_from_trained_model_folder(self, model_training_output_dir: str, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor.

        Raises:
            ValueError: the HR grid is asked for where the planned slices are not thick, the HR head is of another
                factor than the plans, or there is none and `hr_from` asks for it.
        """
        super().initialize_from_trained_model_folder(model_training_output_dir, *args, **kwargs)
        self._switch_to_hr()

    def manual_initialization(self, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor; takes the plans' own configuration.

        Raises:
            ValueError: the HR grid is asked for where the planned slices are not thick, the HR head is of another
                factor than the plans, or there is none and `hr_from` asks for it.
        """
        super().manual_initialization(*args, **kwargs)
        self._switch_to_hr()

    def _switch_to_hr(self) -> None:
        config = self._planned()
        factor = 1 if config is None else config.factor
        self.hr_from = self.wanted_hr_from or ("lr" if config is None else config.segmentation.hr_source)
        if not self.grids:
            self.grids = (HRGrid() if factor > 1 else NativeGrid(),)
        self._check_grids(factor)
        if not gives_hr_logits(self.network):
            if self.wanted_hr_from not in (None, "lr"):
                raise ValueError(
                    f"--hr_from {self.wanted_hr_from} needs a network with an HR head, which {self.trainer_name} has "
                    "not; leave it out"
                )
            self.hr_from = "lr"
            if factor > 1:
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
            self.configuration_manager,
            factor=factor,
            grids=self.grids,
            writers=self.writers,
            has_regions=self.label_manager.has_regions,
        )

    def _planned(self) -> ResolvedConfig | None:
        """The settings of thick slices, None for a model that has none and nothing that needs them."""
        configuration = self.configuration_manager.configuration
        try:
            return load_config(configuration, purpose="prediction")
        except (NotImplementedError, ValueError):
            is_cascade = configuration.get("previous_stage") is not None
            if gives_hr_logits(self.network) or (BLOCK in configuration and not is_cascade):
                raise
            return None

    def _check_grids(self, factor: int) -> None:
        if factor == 1 and any(isinstance(grid, HRGrid) for grid in self.grids):
            spacing = " x ".join(f"{size:.4g}" for size in self.configuration_manager.spacing)
            raise ValueError(
                f"--grid hr makes thin slices of a model's thick ones (3d, no cascade), but this model's voxels are "
                f"{spacing} mm; choose --grid native, voxel sizes in mm such as 0.5,0.5,0.5, or a file or folder"
            )

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """See nnUNetPredictor; notes how long it took."""
        started = perf_counter()
        try:
            return super().predict_logits_from_preprocessed_data(data)
        finally:
            self.network_seconds = perf_counter() - started

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """HR logits of a preprocessed LR case, their mean over mirroring, and over phases without an HR head.

        Args:
            input_image: (C, D, H, W).

        Returns:
            (K, r*D, H, W) float16, on the CPU.
        """
        if self.factor == 1:
            return torch.as_tensor(super().predict_sliding_window_return_logits(input_image)).cpu()
        slices = input_image.shape[1]
        axes = self.allowed_mirroring_axes if self.use_mirroring else None
        # an HR head, trained on every phase, gains nothing from them; what a network of thin slices sees would
        # be interpolated twice
        phases = self.factor if self.hr_from == "lr" else 1
        passes = []
        for phase, mirrors in mirrored_phases(axes, slices=slices, factor=phases).items():
            self._mirrors = mirrors
            with self._all_channels():
                logits = super().predict_sliding_window_return_logits(at_phase(input_image, phase, self.factor, 1))
            passes.append((phase, len(mirrors), torch.as_tensor(logits)))
        heads = self.label_manager.num_segmentation_heads
        means = (self._mean_hr_map(passes, number, slices) for number in range(heads))
        result = torch.empty((heads, self.factor * slices, *input_image.shape[2:]), dtype=torch.half)
        for number, mean in enumerate(means):  # class by class: HR logits in float32 are large
            result[number] = mean
        return result

    def _mean_hr_map(self, passes: Sequence[tuple[int, int, torch.Tensor]], number: int, slices: int) -> torch.Tensor:
        """HR logits (r*D, H, W) of one class, on the CPU, from phases, weights and what the sliding window gave."""
        mean = PhaseMean(slices, self.factor)
        for phase, weight, logits in passes:
            mean.add(self._to_hr_on_device(self._channels_of(number, logits)).cpu(), phase, weight=weight)
        return mean.mean()[0]

    def _channels_of(self, number: int, logits: torch.Tensor) -> torch.Tensor:
        """Channels of one class: its LR logits, its folded HR logits or both, as the sliding window gave them."""
        heads, factor = self.label_manager.num_segmentation_heads, self.factor
        first = 0 if len(logits) == heads * factor else heads  # of the folded HR logits
        return torch.cat([logits[number : number + 1][:first], logits[first + number * factor :][:factor]])

    def _to_hr_on_device(self, logits: torch.Tensor) -> torch.Tensor:
        try:
            return self._to_hr(logits)
        except torch.cuda.OutOfMemoryError:
            logger.info("no room for HR logits on %s: the CPU interpolates them", logits.device)
        # not in the handler, which would keep the tensors of the failed attempt
        torch.cuda.empty_cache()
        return self._to_hr(logits.cpu())

    def _to_hr(self, logits: torch.Tensor) -> torch.Tensor:
        """HR logits (K, r*D, H, W), float32, from what the sliding window gives of K classes, on its device."""
        if self.hr_from == "head":
            return interleave_slices(logits[None], self.factor)[0].float()
        heads = len(logits) // (1 + self.factor) if self.hr_from == "mean" else len(logits)
        hr_logits = interpolate_logits(logits[:heads].float(), self.factor, 1)
        if self.hr_from == "mean":  # in place: HR logits are large
            hr_logits.add_(interleave_slices(logits[None, heads:], self.factor)[0]).div_(2)
        return hr_logits

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        if self.factor == 1:
            return super()._internal_maybe_mirror_and_predict(x)
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
        self.label_manager = ManyHeads(label_manager, label_manager.num_segmentation_heads * per_head)
        try:
            with output_mode(self.network, "hr"):
                yield
        finally:
            self.label_manager = label_manager

    # nnU-Net reads its arguments by the names in these methods' signatures, which wraps passes on

    @wraps(nnUNetPredictor.predict_from_files)
    def predict_from_files(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        with self._staged_output(), self._exporting(), short_bars():
            return super().predict_from_files(*args, **kwargs)

    @wraps(nnUNetPredictor.predict_from_files_sequential)
    def predict_from_files_sequential(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        # nnU-Net counts the cases of each call
        quiet = nullcontext() if self.verbose else redirect_stdout(io.StringIO())
        with self._staged_output(), self._exporting(), short_bars(), quiet:
            return super().predict_from_files_sequential(*args, **kwargs)

    def _exporting(self) -> AbstractContextManager[None]:
        """Results are exported on every grid."""
        return exporting_with(export_on_grids)

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
        self.grids = self.configuration_manager.grids = (grid,)
        self._check_grids(self.factor)

    def write_as(self, ending: str) -> None:
        """Give segmentations another of the endings that the model's reader can write."""
        self.dataset_json = {**self.dataset_json, "file_ending": ending}

    def image_files(self, folder: Path) -> list[list[str]]:
        """Files of every case of a folder: exactly the channels that the network was trained with.

        Raises:
            FileNotFoundError: the folder does not exist or has no such files.
            ValueError: files without channel, or with other channels; see `list_cases`.
        """
        return list(list_cases(folder, self.images.ending, channels=self.images.channels).values())

    def _previous(self, folder: str | None, name: str) -> str | None:
        """The segmentation of a case by the previous stage."""
        return None if folder is None else str(previous_segmentation(Path(folder, name), self.images))

    def check_cases(self, names: Sequence[str], previous_stage: str | None) -> None:
        """Refuse cases without a file that is needed beside their images.

        Args:
            names: of the cases.
            previous_stage: folder with the previous stage's segmentations.

        Raises:
            FileNotFoundError: no file to take a grid from, or no segmentation of the previous stage.
            ValueError: a cascade without that folder, or another model with it.
        """
        check_previous_stage(self.configuration_manager.previous_stage_name, previous_stage)
        check_companions(names, [self._previous(previous_stage, name) for name in names], self.grids)

    def _manage_input_and_output_lists(
        self,
        list_of_lists_or_source_folder: str | list[list[str]],
        output_folder_or_list_of_truncated_output_files: str | list[str] | None,
        folder_with_segs_from_prev_stage: str | None = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> tuple[list, list | None, list]:
        source = list_of_lists_or_source_folder
        files = self.image_files(Path(source)) if isinstance(source, str) else source
        check_previous_stage(self.configuration_manager.previous_stage_name, folder_with_segs_from_prev_stage)
        one_grid = len(self.grids) == 1
        lists: CaseLists = super()._manage_input_and_output_lists(
            files,
            output_folder_or_list_of_truncated_output_files,
            folder_with_segs_from_prev_stage,  # pyright: ignore[reportArgumentType] # declared str, None by default
            overwrite or not one_grid,
            part_id,
            num_parts,
            save_probabilities,
        )
        if not (overwrite or one_grid):
            endings = case_endings(self.images.ending, save_probabilities=save_probabilities)
            lists = unfinished(lists, self.grids, endings)
        inputs, outputs, previous = lists
        names = [case_name(Path(image[0])) for image in inputs]
        if outputs is not None:  # nnU-Net takes names from files that are named as it wants them
            names = [Path(output).name for output in outputs]
            previous = [self._previous(folder_with_segs_from_prev_stage, name) for name in names]
        self.configuration_manager.case_names = {tuple(image): name for image, name in zip(inputs, names, strict=True)}
        check_companions(names, previous, self.grids)
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

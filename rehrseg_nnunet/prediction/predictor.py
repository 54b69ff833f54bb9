"""Segmentation on other grids than the network's: nnU-Net's predictor with other outputs and output grids.

Convention:
    The sliding window runs over the LR case. A window's HR logits (K, r*D, H, W) travel through it as (K*r, D, H, W),
    channel k*r + p holding phase p of class k, behind the K channels of the LR logits, and are unfolded at the end: HR
    slice r*d + p is phase p of LR slice d. The result is the mean of the HR head's logits and of the interpolated LR
    logits. Without an HR head it is the latter alone, at several phases (`slice_phases`). A model whose planned slices
    are not thick has r = 1: its logits are nnU-Net's own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.config.rehrseg import BLOCK, load_config
from rehrseg_nnunet.nnunet.compatibility import require_compatible, warn_if_incompatible
from rehrseg_nnunet.nnunet.raw_files import list_cases
from rehrseg_nnunet.nnunet.whole_files import WholeFilesPlansManager, staging
from rehrseg_nnunet.prediction.configuration import HRConfigurationManager
from rehrseg_nnunet.prediction.export import Writer, several_grids, stems
from rehrseg_nnunet.prediction.image_checks import raise_failures
from rehrseg_nnunet.prediction.output_grid import HRGrid, NativeGrid, OutputGrid
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


def _kept(lists: tuple[list, list | None, list], keep: list[bool]) -> tuple[list, list | None, list]:
    inputs, outputs, previous = (values and list(compress(values, keep)) for values in lists)
    return inputs or [], outputs, previous or []


class HRPredictor(nnUNetPredictor):
    """`nnUNetPredictor` whose prediction methods all return or write results on the grids that are asked for.

    With thick slices these come from both heads of a network that REHRSegTrainer trained, and from the interpolated
    logits of any other. Any other model's logits are nnU-Net's.

    Args:
        *args: of nnUNetPredictor.
        grid: where segmentations and probabilities are written, one or several for files; arrays are returned on the
            first. None: the HR grid of a model with thick slices, the input's own grid of any other.
        writers: what else is written for every case on every grid, see `export.Writer`.
        hr_head: use the HR head of a network that has one.
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

    def __init__(
        self,
        *args: Any,
        grid: OutputGrid | Sequence[OutputGrid] | None = None,
        hr_head: bool = True,
        writers: Sequence[Writer] = (),
        **kwargs: Any,
    ) -> None:
        require_compatible()
        super().__init__(*args, **kwargs)
        self.hr_head = hr_head
        self.grids: tuple[OutputGrid, ...] = (grid,) if isinstance(grid, OutputGrid) else tuple(grid or ())
        self.writers = tuple(writers)
        self._mirrors: list[Mirrors] = [()]  # of the phase that is predicted
        self._stage: Callable[[str], str] | None = None  # while files are predicted

    def initialize_from_trained_model_folder(self, model_training_output_dir: str, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor.

        Raises:
            ValueError: the HR grid is asked for where the planned slices are not thick, or the HR head is of another
                factor than the plans.
        """
        super().initialize_from_trained_model_folder(model_training_output_dir, *args, **kwargs)
        self._switch_to_hr()

    def manual_initialization(self, *args: Any, **kwargs: Any) -> None:
        """See nnUNetPredictor; takes the plans' own configuration.

        Raises:
            ValueError: the HR grid is asked for where the planned slices are not thick, or the HR head is of another
                factor than the plans.
        """
        super().manual_initialization(*args, **kwargs)
        self._switch_to_hr()

    def _switch_to_hr(self) -> None:
        factor = self._planned_factor()
        if not self.grids:
            self.grids = (HRGrid() if factor > 1 else NativeGrid(),)
        if factor == 1:
            self._check_grids()
        elif not has_hr_head(self.network):
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

    def _planned_factor(self) -> int:
        """r, 1 for a model that nothing needs thick slices for and that has none."""
        configuration = self.configuration_manager.configuration
        try:
            return load_config(configuration, purpose="prediction").factor
        except (NotImplementedError, ValueError):
            if BLOCK in configuration or has_hr_head(self.network):
                raise
            return 1

    def _check_grids(self) -> None:
        if any(isinstance(grid, HRGrid) for grid in self.grids):
            spacing = " x ".join(f"{size:.4g}" for size in self.configuration_manager.spacing)
            raise ValueError(
                f"--grid hr needs a 3d model with thick slices, which are made r thin ones, but the model's voxels are "
                f"{spacing} mm; choose --grid native, voxel sizes in mm such as 0.5,0.5,0.5, or a file or folder"
            )

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
        # the HR head, which was trained on every phase, gains nothing from them; a previous stage's labels have one
        one_phase = self.uses_hr_head or self.configuration_manager.previous_stage_name is not None
        passes = []
        for phase, mirrors in mirrored_phases(axes, slices=slices, factor=1 if one_phase else self.factor).items():
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
        heads = len(logits) // (1 + self.factor) if self.uses_hr_head else len(logits)
        hr_logits = interpolate_logits(logits[:heads].float(), self.factor, 1)
        if self.uses_hr_head:  # in place: HR logits are large
            hr_logits.add_(interleave_slices(logits[None, heads:], self.factor)[0]).div_(2)
        return hr_logits

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        if self.factor == 1:
            return super()._internal_maybe_mirror_and_predict(x)
        mirrored = ([axis + 2 for axis in mirrors] for mirrors in self._mirrors)
        total = sum(self._predict_window(x.flip(axes), axes) for axes in mirrored)
        return total / len(self._mirrors)  # pyright: ignore[reportReturnType] # no float: there is always one

    def _predict_window(self, x: torch.Tensor, mirrored: list[int]) -> torch.Tensor:
        """LR logits, with an HR head also folded HR logits, of a mirrored window (B, C, D, H, W), mirrored back."""
        if not self.uses_hr_head:
            return self.network(x).flip(mirrored)
        lr, hr = (logits.flip(mirrored) for logits in self.network(x))
        return torch.cat([lr, fold_phases(hr, self.factor)], dim=1)

    @property
    def uses_hr_head(self) -> bool:
        """Whether the network has an HR head that shall be used."""
        return self.hr_head and has_hr_head(self.network)

    @contextmanager
    def _all_channels(self) -> Iterator[None]:
        """The network gives all that `_predict_window` takes, and nnU-Net expects as many channels."""
        if not self.uses_hr_head:
            yield
            return
        label_manager = self.label_manager
        self.label_manager = _ManyHeads(label_manager, label_manager.num_segmentation_heads * (1 + self.factor))
        try:
            with output_mode(self.network, "hr"):
                yield
        finally:
            self.label_manager = label_manager

    # nnU-Net reads its arguments by the names in these methods' signatures, which wraps passes on

    @wraps(nnUNetPredictor.predict_from_files)
    def predict_from_files(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        with self._staged_output(), several_grids():
            return super().predict_from_files(*args, **kwargs)

    @wraps(nnUNetPredictor.predict_from_files_sequential)
    def predict_from_files_sequential(self, *args: Any, **kwargs: Any) -> list | None:
        """See nnUNetPredictor; a case's files appear when all of them are whole."""
        with self._staged_output(), several_grids():
            return super().predict_from_files_sequential(*args, **kwargs)

    @contextmanager
    def _staged_output(self) -> Iterator[None]:
        with staging(remedy="free space there or choose another folder, and go on with --continue_prediction") as stage:
            self._stage = stage
            try:
                yield
            finally:
                self._stage = None

    def image_files(self, folder: Path) -> list[list[str]]:
        """Files of every case of a folder: exactly the channels that the network was trained with.

        Raises:
            FileNotFoundError: the folder does not exist or has no such files.
            ValueError: files without channel, or with other channels; see `list_cases`.
        """
        channels = len(self.configuration_manager.normalization_schemes)
        return list(list_cases(folder, self.dataset_json["file_ending"], channels=channels).values())

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
        self._check_previous_stage(folder_with_segs_from_prev_stage)
        one_grid = len(self.grids) == 1
        lists = super()._manage_input_and_output_lists(
            files,
            output_folder_or_list_of_truncated_output_files,
            folder_with_segs_from_prev_stage,  # pyright: ignore[reportArgumentType] # declared str, None by default
            overwrite or not one_grid,
            part_id,
            num_parts,
            save_probabilities,
        )
        if lists[1] is not None and not (overwrite or one_grid):
            lists = _kept(lists, [not self._is_finished(output, save_probabilities) for output in lists[1]])
        self._check_companions(*lists)
        inputs, outputs, previous = lists
        if outputs is not None and self._stage is not None:
            outputs = [self._stage(output) for output in outputs]
        return inputs, outputs, previous

    def _is_finished(self, output: str, save_probabilities: bool) -> bool:
        """Whether a case has its files on all grids."""
        endings = [self.dataset_json["file_ending"], *([".npz"] if save_probabilities else ())]
        return all(Path(stem + ending).is_file() for stem in stems(output, self.grids) for ending in endings)

    def _check_previous_stage(self, folder: str | None) -> None:
        name = self.configuration_manager.previous_stage_name
        if name is None and folder is not None:
            raise ValueError(
                "-prev_stage_predictions is for cascades, and the model has no previous stage; leave it out"
            )
        if name is not None and folder is None:
            raise ValueError(
                f"the model is a cascade: it needs the segmentations of its previous stage, {name}; predict the same "
                f"images with -c {name} --grid native and give that folder as -prev_stage_predictions"
            )

    def _check_companions(self, inputs: list, outputs: list | None, previous: list) -> None:
        """Refuse images without a grid or, in a cascade, without the previous stage's segmentation."""
        images = [files[0] for files in inputs]
        missing = [image for grid in self.grids for image in grid.missing(images)]
        if missing:
            raise FileNotFoundError(f"--grid must have a file for every input, got none for {', '.join(missing)}")
        missing = [file for file in previous if file is not None and not Path(file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"-prev_stage_predictions must have a segmentation for every input, but there is no {missing[0]} "
                f"({len(missing)} of {len(images)} are missing)"
            )

    def _internal_get_data_iterator_from_lists_of_filenames(self, *args: Any, **kwargs: Any) -> Iterator[dict]:
        configuration_manager = self.configuration_manager
        self.configuration_manager = configuration_manager.for_workers()
        try:
            cases = super()._internal_get_data_iterator_from_lists_of_filenames(*args, **kwargs)
        finally:
            self.configuration_manager = configuration_manager
        return raise_failures(cases)

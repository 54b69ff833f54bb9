"""nnU-Net's configuration and preprocessor as prediction on other grids needs them: cases in, files on grids out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy, deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from rehrseg_nnunet.nnunet.resampling import set_order_along_z
from rehrseg_nnunet.nnunet.whole_files import UnusableImageError
from rehrseg_nnunet.prediction.class_maps import Logits
from rehrseg_nnunet.prediction.image_checks import check_image, check_output_size, failed_case, naming
from rehrseg_nnunet.prediction.inputs import case_name
from rehrseg_nnunet.prediction.output_grid import HRGrid, OutputGrid, Resampling
from rehrseg_nnunet.slices.grids import check_same_points, grid_from_properties

GRIDS = "output_grids"  # key of a case's properties: those of the file on each grid


class HRConfigurationManager(ConfigurationManager):
    """A configuration for exporting HR predictions, and for preprocessing the LR cases they come from.

    `spacing` is that of the HR grid and resampling of probabilities along z is linear. The patch size stays the LR
    network's. The preprocessor works with the LR configuration and returns the properties of the output grids, so that
    nnU-Net's own functions, which know one configuration, need no change. Instances travel to worker processes.

    Args:
        lr: the plans' configuration; it is copied, not changed.
        factor: r, 1 for a model without thick slices.
        grids: where predictions are written; functions of nnU-Net that return arrays take the first.
        writers: what else is written for every case on every grid, see `export.Writer`.
        has_regions: region-based training (sigmoid, not softmax); only other grids than `HRGrid` need it.

    Attributes:
        return_failures: the preprocessor returns an image that cannot be predicted as a `failed_case` instead of
            raising.
        already_placed: logits come on the output grid.
        case_names: by a case's files, where those do not give them.
    """

    def __init__(
        self,
        lr: ConfigurationManager,
        *,
        factor: int,
        grids: Sequence[OutputGrid] = (HRGrid(),),
        writers: Sequence[Callable[..., None]] = (),
        has_regions: bool = False,
    ) -> None:
        configuration = deepcopy(lr.configuration)
        if factor > 1:
            slices, *in_plane = configuration["spacing"]
            configuration["spacing"] = [slices / factor, *in_plane]
        set_order_along_z(configuration, 1, kinds=("probabilities",))
        super().__init__(configuration)
        self.lr = lr
        self.factor = factor
        self.grids = tuple(grids)
        self.writers = tuple(writers)
        self.has_regions = has_regions
        self.return_failures = False
        self.already_placed = False
        self.case_names: Mapping[tuple[str, ...], str] = {}

    def case_of(self, image_files: Sequence[str]) -> str:
        """Name of the case that some files hold."""
        return self.case_names.get(tuple(image_files)) or case_name(Path(image_files[0]))

    def for_workers(self) -> HRConfigurationManager:
        """A copy with `return_failures`."""
        reporting = copy(self)
        reporting.return_failures = True
        return reporting

    def placed(self) -> HRConfigurationManager:
        """A copy with `already_placed`."""
        configuration = copy(self)
        configuration.already_placed = True
        return configuration

    def output_properties(
        self, properties: dict[str, Any], plans_manager: PlansManager, *, case: str | None, source: str, heads: int
    ) -> dict[str, Any]:
        """Properties of the files to be written, from those of the preprocessed LR case.

        Args:
            properties: of the case.
            plans_manager: nnU-Net's.
            case: its name, if it has one.
            source: its files, for messages.
            heads: logits for every voxel.

        Returns:
            Those of the file on the first grid, and those on each grid as a list under `GRIDS`.

        Raises:
            UnusableImageError: the scan on a grid can never fit into memory.
        """
        options = {"factor": self.factor, "case": case}
        on_grids = [grid.properties(properties, plans_manager, **options) for grid in self.grids]
        for grid, own in zip(self.grids, on_grids, strict=True):
            shape, part = own["shape_before_cropping"], own["shape_after_cropping_and_before_resampling"]
            check_output_size(grid.name, shape, part, heads=heads, source=source)
        return {**on_grids[0], GRIDS: on_grids}

    def place(
        self, grid: OutputGrid, logits: Logits, properties: dict[str, Any], plans_manager: PlansManager
    ) -> Logits:
        """Logits (K, r*D_p, H_p, W_p) on one of the grids, (K, *shape), from its file's properties."""
        spacing = [float(properties["spacing"][axis]) for axis in plans_manager.transpose_forward]
        current = [*spacing[: 3 - len(self.spacing)], *self.spacing]  # 2d: the slices are the file's
        shape = properties["shape_after_cropping_and_before_resampling"]
        return grid.resample(self._stock_resampling, self.has_regions, logits, shape, current, spacing)

    @property
    def resampling_fn_probabilities(self) -> Resampling:
        """nnU-Net's function inside the first grid's."""
        if self.already_placed:
            return _unchanged
        return partial(self.grids[0].resample, self._stock_resampling, self.has_regions)

    @property
    def _stock_resampling(self) -> Resampling:
        # declared for lists, tuples and arrays; nnU-Net's functions take any sequences
        return super().resampling_fn_probabilities  # pyright: ignore[reportReturnType]

    @property
    def preprocessor_class(self) -> type:
        """The LR configuration's preprocessor, returning the output grids' properties."""
        return _hr_preprocessor_class(self.lr.preprocessor_class)


def _unchanged(logits: Logits, *_: Any) -> Logits:
    return logits


@cache
def _hr_preprocessor_class(base: type) -> type:
    class HRPreprocessor(base):
        """Preprocess an LR case, describe the grids its prediction goes to, name the file that cannot be used."""

        source = "the image"
        hr_outputs = 0  # logits for every planned voxel
        thick = True  # whether the planned slices are

        def run_case(self, image_files, seg_file, plans_manager, configuration_manager, dataset_json):
            self.source = ", ".join(image_files)
            hr = configuration_manager
            self.hr_outputs, self.thick = _hr_outputs(hr, plans_manager, dataset_json), hr.factor > 1
            try:
                with naming(self.source):
                    if seg_file is not None:
                        _check_previous_stage(seg_file, image_files[0], plans_manager)
                    data, seg, properties = super().run_case(image_files, seg_file, plans_manager, hr.lr, dataset_json)
                    return data, seg, self._placed(properties, plans_manager, hr, hr.case_of(image_files))
            except UnusableImageError as error:
                if not hr.return_failures:
                    raise
                return failed_case(error)

        def run_case_npy(self, data, seg, properties, plans_manager, configuration_manager, dataset_json):
            is_hr = isinstance(configuration_manager, HRConfigurationManager)  # not so when run_case calls
            lr = configuration_manager
            if is_hr:
                lr = configuration_manager.lr
                self.hr_outputs = _hr_outputs(configuration_manager, plans_manager, dataset_json)
            thick = configuration_manager.factor > 1 if is_hr else self.thick
            check_image(
                data, properties["spacing"], self.source, plans_manager, lr, hr_outputs=self.hr_outputs, thick=thick
            )
            data, seg, prepared = super().run_case_npy(data, seg, dict(properties), plans_manager, lr, dataset_json)
            if is_hr:
                prepared = self._placed(prepared, plans_manager, configuration_manager, None)
            return data, seg, prepared

        def _placed(self, properties, plans_manager, hr, case):
            heads = self.hr_outputs // hr.factor
            return hr.output_properties(properties, plans_manager, case=case, source=self.source, heads=heads)

    return HRPreprocessor


def _check_previous_stage(seg_file: str, image_file: str, plans_manager: PlansManager) -> None:
    """A cascade's network sees the previous stage's labels voxel by voxel beside the scan; nnU-Net compares nothing."""
    reader = plans_manager.image_reader_writer_class()
    (labels, own), (image, properties) = reader.read_seg(seg_file), reader.read_images([image_file])
    check_same_points(
        grid_from_properties(own, labels.shape[1:]),
        grid_from_properties(properties, image.shape[1:]),
        file=seg_file,
        reference_file=image_file,
        remedy="predict the scan with the previous stage's configuration and --grid native",
    )


def _hr_outputs(hr: HRConfigurationManager, plans_manager: PlansManager, dataset_json: Mapping[str, Any]) -> int:
    return plans_manager.get_label_manager(dict(dataset_json)).num_segmentation_heads * hr.factor

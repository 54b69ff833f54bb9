"""Predict from Python: load a model once, then segment images in memory or files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
from nibabel.spatialimages import SpatialImage
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from rehrseg_nnunet.config.segmentation import HRSource
from rehrseg_nnunet.nnunet.raw_files import with_ending
from rehrseg_nnunet.nnunet.safe_files import make_folder
from rehrseg_nnunet.nnunet.trainer_path import ensure_trainer_path
from rehrseg_nnunet.prediction.argument_names import python_names
from rehrseg_nnunet.prediction.configuration import GRIDS
from rehrseg_nnunet.prediction.export import PlacedCase, show_writers
from rehrseg_nnunet.prediction.image_kinds import ArrayImage, from_case, like, to_case, to_nifti, to_volume
from rehrseg_nnunet.prediction.model_folder import FINAL, Wanted, open_model, parse_folds, trained_model
from rehrseg_nnunet.prediction.output_grid import OutputGrid
from rehrseg_nnunet.prediction.outputs import ending_of
from rehrseg_nnunet.prediction.parse_grids import grid_of
from rehrseg_nnunet.prediction.predictor import HRPredictor
from rehrseg_nnunet.prediction.replaced import check_replaced, replacing
from rehrseg_nnunet.surfaces.margins import logit_pieces
from rehrseg_nnunet.surfaces.mesh import Surface, surface_of
from rehrseg_nnunet.surfaces.structures import structures_of

PathLike: TypeAlias = str | os.PathLike[str]
Paths: TypeAlias = PathLike | list[PathLike]
Sizes: TypeAlias = tuple[float, float, float]
Grid: TypeAlias = str | os.PathLike[str] | Sizes | None
No: TypeAlias = Literal[False]
ImageT = TypeVar("ImageT", SpatialImage, sitk.Image, ArrayImage)
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, eq=False)
class Prediction(Generic[ResultT]):
    """A segmentation and what else was asked for.

    Attributes:
        segmentation: what `predict` returns alone.
        probabilities: (K, ...) float32, of the background and all labels, or of all regions; its further axes are
            those of the segmentation's array: (x, y, z), or (z, y, x) as SimpleITK's `GetArrayFromImage` has them.
            None if they were not asked for.
        surfaces: of each label or region that is there, by its name: `vertices` (N, 3) in RAS in mm, and `faces`.
            None if they were not asked for.
    """

    segmentation: ResultT
    probabilities: np.ndarray | None = None
    surfaces: dict[str, Surface] | None = None


class Model:
    """A trained model in memory; made by `load_model`.

    It works in this process alone and holds no files open. In a `with` statement, or by `close`, it gives its memory
    back.

    Attributes:
        predictor: nnU-Net's kind of predictor, for what this module does not offer.
        is_open: not closed yet.
    """

    def __init__(self, predictor: HRPredictor) -> None:
        self.predictor = predictor
        self.is_open = True
        self.default_grid = predictor.grids[0]

    @property
    def labels(self) -> dict[str, Any]:
        """Names of the labels with their values, of regions with the values that make them up."""
        return dict(self.predictor.dataset_json["labels"])

    @property
    def channels(self) -> int:
        """Number of images that make up a case."""
        return self.predictor.images.channels

    def close(self) -> None:
        """Release the network, on a GPU also what PyTorch keeps for the next prediction."""
        predictor, self.is_open = self.predictor, False
        predictor.network, predictor.list_of_parameters = torch.nn.Identity(), []
        self.release()

    def release(self) -> None:
        """Release what a prediction leaves on a GPU; the network stays."""
        compute_gaussian.cache_clear()
        if self.predictor.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_model(
    path: PathLike,
    *,
    folds: int | str | Sequence[int | str] | None = None,
    device: str | None = None,
    checkpoint: str = FINAL,
    hr_from: HRSource | None = None,
    mirroring: bool = True,
    wanted: Wanted | None = None,
) -> Model:
    """Load a trained model of REHRSegTrainer, nnUNetTrainer or another trainer, once for many predictions.

    Args:
        path: folder of the model (`TRAINER__PLANS__CONFIGURATION`), or a zip file of nnUNetv2_export_model_to_zip. A
            checkpoint can run code: load only those of people that you trust.
        folds: whose networks are averaged, numbers or "all"; None for all that are there.
        device: cuda, cpu or mps; None for a GPU if there is one.
        checkpoint: file name in the folder of each fold.
        hr_from: where thin slices come from: "head", the HR head; "lr", what the network says on thick slices,
            interpolated; "mean", both; None for the model's own setting.
        mirroring: average over mirrored inputs, which takes up to eight times as long.
        wanted: which model, if the path holds several.

    Raises:
        FileNotFoundError: no model there, or a fold that was not trained.
        ValueError: several models, a damaged file, no such device or hr_from.
        NotImplementedError: a cascade.

    Example:
        >>> with load_model("model.zip") as model:  # doctest: +SKIP
        ...     for file in Path("scans").glob("*.nii.gz"):
        ...         predict(model, file, output=Path("out", file.name))
    """
    if hr_from not in (None, *get_args(HRSource)):
        raise ValueError(f"hr_from must be one of {', '.join(get_args(HRSource))}, or None, got {hr_from}")
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be the path of a model's folder or zip file, got {path!r}")
    ensure_trainer_path()
    with python_names():
        chosen, wanted = _folds(folds), wanted or Wanted()
        predictor = HRPredictor(
            device=_device(device),
            perform_everything_on_device=True,
            use_mirroring=mirroring,
            allow_tqdm=False,
            hr_from=hr_from,
        )
        with open_model(Path(path), wanted, checkpoint=checkpoint) as folder:
            model = trained_model(folder, folds=chosen, checkpoint=checkpoint, source=str(path), wanted=wanted)
            model.load_into(predictor)
    if predictor.configuration_manager.previous_stage_name is not None:
        raise NotImplementedError(
            f"path must be a model without previous stage, got the cascade {path}; use `rehrseg predict`"
        )
    return Model(predictor)


def _folds(folds: int | str | Sequence[int | str] | None) -> list[int | str] | None:
    if folds is None:
        return None
    chosen = parse_folds([folds] if isinstance(folds, (int, str)) else folds)
    if not chosen:
        raise ValueError("folds must name at least one, or be None for all that are there, got an empty list")
    return chosen


def _device(name: str | None) -> torch.device:
    available = torch.cuda.is_available()
    if name is None:
        return torch.device("cuda" if available else "cpu")
    if name.startswith("cuda") and not available:
        raise ValueError(f"device must be available, got {name} without a CUDA GPU; use cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be cuda, cpu or mps, got {name}") from error


@overload
def predict(
    model: Model, image: Paths, *, output: PathLike, grid: Grid = ..., probabilities: No = ..., surfaces: No = ...
) -> Path: ...
@overload
def predict(
    model: Model, image: Paths, *, output: None = ..., grid: Grid = ..., probabilities: No = ..., surfaces: No = ...
) -> nibabel.Nifti1Image: ...
@overload
def predict(
    model: Model, image: Paths, *, output: None = ..., grid: Grid = ..., probabilities: bool = ..., surfaces: bool = ...
) -> Prediction[nibabel.Nifti1Image]: ...
@overload
def predict(
    model: Model,
    image: ImageT | list[ImageT],
    *,
    output: None = ...,
    grid: Grid = ...,
    probabilities: No = ...,
    surfaces: No = ...,
) -> ImageT: ...
@overload
def predict(
    model: Model,
    image: ImageT | list[ImageT],
    *,
    output: None = ...,
    grid: Grid = ...,
    probabilities: bool = ...,
    surfaces: bool = ...,
) -> Prediction[ImageT]: ...
def predict(
    model: Model,
    image: Any,
    *,
    output: PathLike | None = None,
    grid: Grid = None,
    probabilities: bool = False,
    surfaces: bool = False,
) -> Any:
    """Segment one scan.

    Args:
        model: from `load_model`.
        image: a path; a nibabel image; a SimpleITK image; or (array, affine) with array axes (x, y, z) and a (4, 4)
            affine from indices to RAS in mm, as nibabel has them. A list holds the channels of one case.
        output: for paths: where to write the segmentation.
        grid: "hr", r slices for every one of the scan; "native", the scan's own; voxel sizes in mm, (0.5, 0.5, 0.5),
            along the file's axes; or the path of a file with another grid. None: hr for a model with thick slices,
            native for any other.
        probabilities: return them as well.
        surfaces: return the surface of every label as well, through the logits.

    Returns:
        The segmentation, with its geometry: of the same kind as the image, for a nibabel image a Nifti1Image. For a
        path it is a Nifti1Image, or the path of `output`. With probabilities or surfaces, a `Prediction`.

    Raises:
        UnusableImageError: an image that cannot be predicted; it is a ValueError.
        ValueError: not as many images as the model has channels, options that do not go together, or an output that
            is an input.
        RuntimeError: the model is closed.
        TypeError: an argument of another kind, or image and model in each other's place.
        UnwrittenFileError: the output could not be written; it is an OSError.

    Example:
        >>> import nibabel
        >>> thick = nibabel.load("scan.nii.gz")  # doctest: +SKIP
        >>> thin = predict(model, thick)  # doctest: +SKIP
        >>> thin.shape  # doctest: +SKIP
        (35, 51, 32)
    """
    _check_model(model)
    images = image if isinstance(image, list) else [image]
    if len(images) != model.channels:
        raise ValueError(f"image must be a list of the model's {model.channels} channels, got {len(images)}")
    are_paths = all(isinstance(each, (str, os.PathLike)) for each in images)
    if output is not None and (not are_paths or probabilities or surfaces):
        raise ValueError(
            "output needs an image that is a path, without probabilities and surfaces; save what is returned"
        )
    with python_names():
        wanted = _Wanted(grid_of(grid) or model.default_grid, probabilities, surfaces)
        if are_paths:
            return _predict_files(model, [Path(each) for each in images], output, wanted)
        return _predict_images(model, images, wanted)


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model must be what load_model returns, got {type(model).__name__}: predict(model, image)")
    if not model.is_open:
        raise RuntimeError("the model was closed, by close() or the end of its with statement; load it again")


def _predict_images(model: Model, images: list[Any], wanted: _Wanted) -> Any:
    names = ["image"] if len(images) == 1 else [f"image[{index}]" for index in range(len(images))]
    volumes = [to_volume(each, name) for each, name in zip(images, names, strict=True)]
    case = to_case(volumes, model.predictor.plans_manager.image_reader_writer_class, names)
    return _as_kind(_predict_case(model, *case, source=", ".join(names), wanted=wanted), images[0])


@dataclass(frozen=True)
class _Wanted:
    """What `predict` was asked for."""

    grid: OutputGrid
    probabilities: bool
    surfaces: bool


@dataclass(frozen=True)
class _Result:
    """In the array order of a model's reader.

    Attributes:
        labels: (D, H, W).
        probabilities: (K, D, H, W), or None.
        surfaces: by the labels' names, or None.
        properties: of the file to be written.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None
    surfaces: dict[str, Surface] | None
    properties: dict[str, Any]


def _predict_files(model: Model, files: list[Path], output: PathLike | None, wanted: _Wanted) -> Any:
    reader = model.predictor.plans_manager.image_reader_writer_class()
    images = model.predictor.images
    target = None if output is None else with_ending(Path(output), ending_of(output, images))
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"image must be an existing file, got {file}")
    if target is not None:
        if target.resolve() in {file.resolve() for file in files}:
            raise ValueError(f"output must not be {output}, which is an input; choose another name or folder")
        check_replaced(target, type(reader), model.predictor.dataset_json, option="output")
        make_folder(target.parent, purpose="the segmentation is written there; choose another output")
    case = reader.read_images([str(file) for file in files])
    result = _predict_case(model, *case, source=", ".join(map(str, files)), wanted=wanted)
    if target is None:
        return _as_kind(result, None)
    with replacing(target, ending_of(target, images), model.predictor.dataset_json):
        reader.write_seg(result.labels, str(target), result.properties)
    return target


def _predict_case(
    model: Model, data: np.ndarray, properties: dict[str, Any], *, source: str, wanted: _Wanted
) -> _Result:
    """Preprocess, predict and resample a case, with nnU-Net's own functions, in this process."""
    predictor = model.predictor
    predictor.write_on(wanted.grid)
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    preprocessor.source = source
    data, _, properties = preprocessor.run_case_npy(
        data, None, properties, plans, configuration, predictor.dataset_json
    )
    try:
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        return _on_grid(predictor, logits, properties[GRIDS][0], wanted)
    finally:
        model.release()


def _on_grid(predictor: HRPredictor, logits: torch.Tensor, properties: dict[str, Any], wanted: _Wanted) -> _Result:
    """What is made of logits on the output grid, as `export.export_on_grids` makes it for files."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    placed = configuration.place(predictor.grids[0], logits, properties, plans)
    surfaces: dict[str, Surface] = {}

    def collect(case: PlacedCase) -> None:
        for structure, piece in logit_pieces(case.logits, structures_of(case.dataset_json)):
            if piece is not None:
                surfaces[structure.name] = surface_of(piece, case.affine, smooth=True)

    writers = [collect] if wanted.surfaces else []
    show_writers(writers, placed, properties, plans, predictor.dataset_json, "")
    found: Any = convert_predicted_logits_to_segmentation_with_correct_shape(
        placed,
        plans,
        configuration.placed(),
        plans.get_label_manager(predictor.dataset_json),
        properties,
        return_probabilities=wanted.probabilities,
    )
    labels, maps = found if wanted.probabilities else (found, None)
    return _Result(labels, maps, surfaces if wanted.surfaces else None, properties)


def _as_kind(result: _Result, image: Any) -> Any:
    """A result as the same kind as an image, as nibabel's for None."""
    labels = from_case(result.labels, result.properties)
    segmentation = to_nifti(labels) if image is None else like(labels, image)
    if result.probabilities is None and result.surfaces is None:
        return segmentation
    return Prediction(segmentation, _maps(result, isinstance(image, sitk.Image)), result.surfaces)


def _maps(result: _Result, for_simple_itk: bool) -> np.ndarray | None:
    if result.probabilities is None:
        return None
    maps = [from_case(values, result.properties).values for values in result.probabilities]
    stacked = np.stack(maps).astype(np.float32, copy=False)
    return stacked.transpose(0, 3, 2, 1) if for_simple_itk else stacked

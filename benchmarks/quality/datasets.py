"""The datasets that are compared: thick slices, these interpolated, and the true thin slices, planned alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from benchmarks.quality.benchmark import CONFIGURATION, FILE_ENDING, Benchmark, labelled_files
from benchmarks.quality.commands import Execute
from benchmarks.quality.plans import keep_plans, write_hr_plans, write_plans
from rehrseg_nnunet.guided.paired_channels import KEY as PRIVILEGED_KEY
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.raw_files import image_files, list_cases
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import whole_files
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import interpolate
from rehrseg_nnunet.slices.slice_upsampling import centre_slices

SUBFOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
FILES = whole_files(SimpleITKIO)  # reads and writes them
PLANNING_THREADS = "2"  # nnU-Net's planner takes its number of loading processes for one of threads
IGNORE = "ignore"  # nnU-Net's name of the label


def prepare(benchmark: Benchmark, datasets: set[str], plans: set[str], execute: Execute, *, settings: str = "") -> None:
    """Make what is missing: raw data, nnU-Net's plans and preprocessed data, and plans with the preset.

    Args:
        benchmark: what to compare.
        datasets: names of `benchmark.OFFSETS` beside "thick", which is made always.
        plans: keys of `PLANS` that are needed.
        execute: runs a command and raises if it fails.
        settings: name of this package's settings, see `Run`.
    """
    source = benchmark.folder("raw", benchmark.source.name)
    if not source.is_dir():
        with whole(source) as partial:
            copy_cases(benchmark.source, partial, cases=benchmark.cases, test_cases=benchmark.test_cases)
    thick = benchmark.folder("raw", benchmark.dataset("thick"))
    if not thick.is_dir():
        options = ["--factor", str(benchmark.factor), "--axis", benchmark.axis]
        execute(["rehrseg", "simulate", "-d", source.name, "-o", thick.name[7:10], *options])
    for data in sorted(datasets):
        target = benchmark.folder("raw", benchmark.dataset(data))
        if not target.is_dir():
            with whole(target) as partial:
                write_thin_dataset(data, thick, partial, factor=benchmark.factor, axis=benchmark.array_axis)
    for data in sorted({"thick", *datasets}):
        _preprocess(benchmark, data, execute)
    if settings:
        keep_plans(benchmark)
    for key in sorted({"", *plans}):
        write_plans(benchmark, key, settings=settings)
    for data in sorted(datasets):
        write_hr_plans(benchmark, data, settings=settings)


def _preprocess(benchmark: Benchmark, data: str, execute: Execute) -> None:
    folder = benchmark.folder("preprocessed", benchmark.dataset(data))
    finished = folder / "preprocessing_finished"
    if not finished.is_file():
        number = str(int(folder.name[7:10]))
        threads = {"nnUNet_n_proc_DA": PLANNING_THREADS}
        execute(["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "2", "-np", "2"], threads)
        finished.touch()


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder to write to, which gets the name of the target when all is written."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(target)


def copy_cases(source: Path, target: Path, *, cases: int, test_cases: int) -> None:
    """Copy the first labelled cases of a raw dataset, in order of their names, and the next ones as its test set."""
    dataset = read_dataset_json(source / "dataset.json")
    ending = dataset["file_ending"]
    images = list_cases(source / "imagesTr", ending, channels=len(dataset["channel_names"]))
    labels = labelled_files(source)
    parts = {"Tr": labels[:cases], "Ts": labels[cases : cases + test_cases]}
    for part, files in parts.items():
        for subfolder in ("images", "labels") if files else ():
            (target / f"{subfolder}{part}").mkdir(parents=True)
        for label in files:
            shutil.copy(label, target / f"labels{part}")
            for image in images.get(label.name.removesuffix(ending), ()):
                shutil.copy(image, target / f"images{part}")
    write_atomically(target / "dataset.json", json.dumps({**dataset, "numTraining": cases}))


def copy_true_hr(thick: Path, target: Path) -> None:
    """The true thin slices that `rehrseg simulate` keeps, as a dataset of their own."""
    for subfolder in SUBFOLDERS:
        if (thick / subfolder).is_dir():
            shutil.copytree(thick / f"{subfolder}HR", target / subfolder)
    shutil.copy(thick / "dataset.json", target)


def write_thin_dataset(data: str, thick: Path, target: Path, *, factor: int, axis: int) -> None:
    """A dataset of thin slices that is made of the thick ones, or of the truth that they were made of.

    Args:
        data: "true_hr": the truth. Others have images by cubic B-spline and labels of three kinds: "interpolated" by
            signed distances, "interpolated_true_labels" the truth, "interpolated_sparse" those of the acquired slices,
            all others ignored. "pairs" has those of the first kind, and the true images as privileged channels.
        thick: raw dataset that `rehrseg simulate` made.
        target: folder to write to.
        factor: r.
        axis: array axis of the slices.
    """
    if data == "true_hr":
        copy_true_hr(thick, target)
        return
    interpolate_dataset(thick, target, factor=factor, axis=axis)
    if data == "interpolated_true_labels":
        for subfolder in filter(lambda name: (thick / name).is_dir(), ("labelsTr", "labelsTs")):
            shutil.copytree(thick / f"{subfolder}HR", target / subfolder, dirs_exist_ok=True)
    if data == "pairs":
        _add_true_images(thick, target)
    if data == "interpolated_sparse":
        _ignore_between_slices(thick, target, factor=factor, axis=axis)


def interpolate_dataset(thick: Path, target: Path, *, factor: int, axis: int) -> None:
    """Thick slices interpolated to thin ones: images by cubic B-spline, labels by signed distances."""
    for subfolder in SUBFOLDERS:
        labels = subfolder.startswith("labels")
        for file, values, properties in read_folder(thick / subfolder, labels=labels):
            grid, output = scale_slice_geometry(properties, axis, 1 / factor), str(target / subfolder / file.name)
            if labels:
                spacing_mm = properties["spacing"]
                fine = interpolate_labels(values.astype(np.int16), factor, axis, spacing_mm=spacing_mm)
                FILES().write_seg(fine, output, grid)
            else:
                FILES().write_image(interpolate(torch.from_numpy(values), factor, axis).numpy(), output, grid)
    shutil.copy(thick / "dataset.json", target)


def _add_true_images(thick: Path, target: Path) -> None:
    """The true thin slices of the training cases as further channels, which nothing but a keeper's training may see."""
    shutil.rmtree(target / "imagesTs", ignore_errors=True)
    shutil.rmtree(target / "labelsTs", ignore_errors=True)
    dataset = read_dataset_json(target / "dataset.json", required=("channel_names",))
    names = dataset["channel_names"]
    own = len(names)
    for case, files in list_cases(thick / "imagesTrHR", FILE_ENDING, channels=own).items():
        for channel, file in enumerate(files):
            shutil.copy(file, target / "imagesTr" / f"{case}_{own + channel:04d}{FILE_ENDING}")
    true = {str(own + channel): f"{names[str(channel)]}, true thin slices" for channel in range(own)}
    both = {**dataset, "channel_names": {**names, **true}, PRIVILEGED_KEY: list(true)}
    write_atomically(target / "dataset.json", json.dumps(both))


def _ignore_between_slices(thick: Path, target: Path, *, factor: int, axis: int) -> None:
    """Replace the training labels: an acquired slice's at its centre, nnU-Net's ignore label everywhere else.

    For even r the centre lies between two thin slices, and both have the label.
    """
    dataset = read_dataset_json(target / "dataset.json", required=("labels",))
    ignore = 1 + max(np.max(value) for value in dataset["labels"].values())
    at_centre = np.isin(np.arange(factor), ((factor - 1) // 2, factor // 2))
    for file, values, properties in read_folder(thick / "labelsTr", labels=True):
        labelled = np.tile(at_centre, values.shape[axis])
        labelled = np.expand_dims(labelled, [other for other in range(3) if other != axis])
        fine = np.where(labelled, np.repeat(values, factor, axis=axis), ignore).astype(np.int16)
        FILES().write_seg(
            fine, str(target / "labelsTr" / file.name), scale_slice_geometry(properties, axis, 1 / factor)
        )
    labels = {**dataset["labels"], IGNORE: int(ignore)}
    write_atomically(target / "dataset.json", json.dumps({**dataset, "labels": labels}))


def decide_at_centres(source: Path, target: Path, *, factor: int, axis: int, label_manager: LabelManager) -> None:
    """HR predictions on the thick slices: what their probabilities say at the slices' centres.

    As `centre_slices` does for this package's networks of thin slices. Labels alone would have to choose one of two
    central slices, and lose to a method that may take their mean.

    Args:
        source: predictions with probabilities (npz).
        target: folder that is there.
        factor: r.
        axis: of the slices in the files' arrays.
        label_manager: of the predictions.

    Raises:
        FileNotFoundError: a prediction has no probabilities.
    """
    for file, _, properties in read_folder(source, labels=True):
        thin = torch.from_numpy(read_probabilities(file.with_name(f"{file.name[:-7]}.npz"))).float()
        thick = centre_slices(thin.movedim(axis + 1, 1)[None], factor)[0].movedim(1, axis + 1)
        labels = np.asarray(label_manager.convert_probabilities_to_segmentation(thick))
        FILES().write_seg(
            labels.astype(np.int16), str(target / file.name), scale_slice_geometry(properties, axis, factor)
        )


def read_probabilities(file: Path) -> np.ndarray:
    """(K, ...) probabilities that nnU-Net saved.

    Raises:
        FileNotFoundError: there are none.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: predict with probabilities")
    return np.load(file)["probabilities"]


def read_folder(folder: Path, *, labels: bool) -> Iterator[tuple[Path, np.ndarray, dict[str, Any]]]:
    """Every NIfTI file of a folder by name, with its values (D, H, W) and geometry; nothing without such a folder."""
    for file in image_files(folder, FILE_ENDING) if folder.is_dir() else ():
        values, properties = FILES().read_seg(str(file)) if labels else FILES().read_images([str(file)])
        yield file, values[0], properties

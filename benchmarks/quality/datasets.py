"""The datasets that are compared: thick slices, these interpolated, and the true thin slices, planned alike."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from benchmarks.quality.rows import PLANS
from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.config.presets import apply_preset, load_preset, scale_width
from rehrseg_nnunet.config.rehrseg import BLOCK, parse_block
from rehrseg_nnunet.nnunet.dataset_json import PREPROCESS_FIRST, read_dataset_json, read_json
from rehrseg_nnunet.nnunet.raw_files import image_files, list_cases, require_images
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import whole_files
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slices.slice_profile import degrade_labels, interpolate

CONFIGURATION = "3d_fullres"
OFFSETS = {"thick": 500, "interpolated": 600, "true_hr": 700}
SUBFOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
DATASET_NAME = re.compile(r"Dataset(\d{3})_.+", re.ASCII)
FILE_ENDING = ".nii.gz"
FILES = whole_files(SimpleITKIO)  # reads and writes them
MIN_CASES = 5  # nnU-Net makes five folds


class Execute(Protocol):
    """Run a command, with more environment variables if need be; raise if it fails."""

    def __call__(self, command: list[str], environment: dict[str, str] | None = None, /) -> None:
        """See the class."""


@dataclass(frozen=True)
class Benchmark:
    """What is compared on what; one work folder holds one of these.

    Attributes:
        work: folder for everything.
        source: isotropic nnU-Net raw dataset folder; the files are NIfTI.
        cases: number of its cases that are trained and validated on, the first in order of their names.
        test_cases: number of cases after these that no training sees.
        factor: r.
        axis: file axis that gets thick slices.
        preset: name of the preset.
        baseline_epochs: length of the baseline; one work folder has one baseline, which stage 2 finds by its name.
        precision: of the networks' layers in training and the validation and export after it, "float32" (on a GPU
            nnU-Net's own) or "bfloat16"; the test set is predicted as nnU-Net does.
    """

    work: Path
    source: Path
    cases: int
    test_cases: int
    factor: int
    axis: str
    preset: str
    baseline_epochs: int
    precision: str

    @property
    def array_axis(self) -> int:
        """Array axis of the thick slices in the files."""
        return AXES[self.axis]

    def dataset(self, data: str) -> str:
        """Name of the dataset "thick", "interpolated" or "true_hr"."""
        suffix = "" if data == "thick" else f"_{data}"
        stem = self.source.name.split("_", 1)[1]
        return f"Dataset{_number(self.source.name) + OFFSETS[data]:03d}_{stem}_r{self.factor}{self.axis}{suffix}"

    def folder(self, kind: str, dataset: str) -> Path:
        """Folder of a dataset in nnUNet_raw or nnUNet_preprocessed."""
        return self.work / f"nnUNet_{kind}" / dataset

    def plans_name(self, plans: str = "") -> str:
        """Name of the plans of a key of `PLANS`."""
        return f"rehrseg{self.preset.upper()}" + (f"_{plans}" if plans else "")

    def check(self) -> None:
        """Check the source.

        Raises:
            ValueError: its number leaves no room for the datasets that are made of it, or it has too few cases or
                slices.
        """
        available = len(labelled_files(self.source))
        number, highest = _number(self.source.name), 999 - max(OFFSETS.values())
        if not 1 <= number <= highest:
            raise ValueError(f"--source must be named Dataset001_NAME to Dataset{highest}_NAME, got {self.source.name}")
        ending = read_dataset_json(self.source / "dataset.json", required=("file_ending",))["file_ending"]
        if ending != FILE_ENDING:
            raise ValueError(f"--source must have files that end in {FILE_ENDING}, got {ending}")
        if self.cases < MIN_CASES or self.test_cases < 0:
            wanted = f"{self.cases} and {self.test_cases}"
            raise ValueError(f"--cases must be at least {MIN_CASES} and --test-cases at least 0, got {wanted}")
        if available < self.cases + self.test_cases:
            wanted = f"{self.cases} + {self.test_cases}"
            raise ValueError(f"--cases and --test-cases must be at most {available} together, got {wanted}")
        fewest = min(map(self._slices, labelled_files(self.source)[: self.cases + self.test_cases]))
        if not 2 <= self.factor <= fewest:
            raise ValueError(f"--factor must be from 2 to the fewest slices of a case, {fewest}, got {self.factor}")

    def _slices(self, file: Path) -> int:
        """Slices of a file along the axis that gets thick ones."""
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(file))
        reader.ReadImageInformation()
        return reader.GetSize()[2 - self.array_axis]

    def remember(self, *, write: bool = True) -> None:
        """Write down what the work folder is of, or, without `write`, only compare.

        Raises:
            ValueError: it is of something else, or, without `write`, of nothing.
        """
        mine = {key: str(value) for key, value in asdict(self).items() if key != "work"} | {"source": self.source.name}
        file = self.work / "benchmark.json"
        if not file.is_file():
            if not write:
                raise ValueError(f"--work {self.work} holds no benchmark, so there is nothing to report")
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(mine, indent=2))
        theirs = json.loads(file.read_text())
        for name in sorted(mine.keys() | theirs.keys()):
            found, wanted = theirs.get(name), mine.get(name)
            if found != wanted:
                raise ValueError(f"--work {self.work} was made with {name} {found}, got {wanted}; take another")


def prepare(benchmark: Benchmark, datasets: set[str], plans: set[str], execute: Execute) -> None:
    """Make what is missing: raw data, nnU-Net's plans and preprocessed data, and plans with the preset.

    Args:
        benchmark: what to compare.
        datasets: "interpolated", "true_hr" or both; thick slices always.
        plans: keys of `PLANS` that are needed.
        execute: runs a command and raises if it fails.
    """
    source = benchmark.folder("raw", benchmark.source.name)
    if not source.is_dir():
        with whole(source) as partial:
            copy_cases(benchmark.source, partial, cases=benchmark.cases, test_cases=benchmark.test_cases)
    thick = benchmark.folder("raw", benchmark.dataset("thick"))
    if not thick.is_dir():
        options = ["--factor", str(benchmark.factor), "--axis", benchmark.axis]
        execute(["rehrseg", "simulate", "-d", source.name, "-o", thick.name[7:10], *options])
    for data in ("interpolated", "true_hr"):
        target = benchmark.folder("raw", benchmark.dataset(data))
        if data in datasets and not target.is_dir():
            with whole(target) as partial:
                if data == "true_hr":
                    copy_true_hr(thick, partial)
                else:
                    interpolate_dataset(thick, partial, factor=benchmark.factor, axis=benchmark.array_axis)
    for data in sorted({"thick", *datasets}):
        _preprocess(benchmark, data, execute)
    for key in sorted({"", *plans}):
        _write_plans(benchmark, key)
    for data in sorted(datasets):
        _write_hr_plans(benchmark, data)


def _number(dataset: str) -> int:
    """Number of a dataset by its name, 0 if the name is not nnU-Net's."""
    match = DATASET_NAME.fullmatch(dataset)
    return int(match[1]) if match else 0


def _preprocess(benchmark: Benchmark, data: str, execute: Execute) -> None:
    folder = benchmark.folder("preprocessed", benchmark.dataset(data))
    finished = folder / "preprocessing_finished"
    if not finished.is_file():
        number = str(int(folder.name[7:10]))
        execute(["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "2", "-np", "2"])
        finished.touch()


def _write_plans(benchmark: Benchmark, key: str) -> None:
    """The preset's plans, with what `PLANS` changes."""
    folder = benchmark.folder("preprocessed", benchmark.dataset("thick"))
    name = benchmark.plans_name(key)
    stock = read_json(folder / "nnUNetPlans.json", remedy=PREPROCESS_FIRST)
    plans = apply_preset(stock, load_preset(benchmark.preset), plans_name=name)
    for configuration in plans["configurations"].values():
        if BLOCK in configuration:
            block = parse_block(merged(configuration[BLOCK], PLANS[key]))
            configuration[BLOCK] = block.model_dump(mode="json")  # every key: another version may have other defaults
    _write_once(folder / f"{name}.json", plans)


def _write_hr_plans(benchmark: Benchmark, data: str) -> None:
    """nnU-Net's plans for thin slices, with the width and batch size of the thick slices' plans."""
    folder = benchmark.folder("preprocessed", benchmark.dataset(data))
    thick = benchmark.folder("preprocessed", benchmark.dataset("thick")) / f"{benchmark.plans_name()}.json"
    plans = read_json(folder / "nnUNetPlans.json", remedy=PREPROCESS_FIRST)
    plans["plans_name"] = benchmark.plans_name()
    configuration = plans["configurations"][CONFIGURATION]
    configuration["batch_size"] = json.loads(thick.read_text())["configurations"][CONFIGURATION]["batch_size"]
    scale_width(configuration["architecture"]["arch_kwargs"], load_preset(benchmark.preset).network_width)
    _write_once(folder / f"{benchmark.plans_name()}.json", plans)


def _write_once(file: Path, plans: dict[str, Any]) -> None:
    """Write plans; runs that are there were made with what is there.

    Raises:
        ValueError: the file is there and says something else.
    """
    if not file.is_file():
        write_atomically(file, json.dumps(plans, indent=2))
    elif json.loads(file.read_text()) != plans:
        raise ValueError(f"{file} must be what this version makes of its preset; take another --work folder")


def merged(block: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dictionary with some values replaced, at every depth."""
    result = dict(block)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A folder to write to, which gets the name of the target when all is written."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(target)


def labelled_files(source: Path) -> list[Path]:
    """Label files of a raw dataset, in order of their names.

    Raises:
        ValueError: its dataset.json cannot be used.
        FileNotFoundError: it is no nnU-Net dataset, or without labels.
    """
    dataset = read_dataset_json(source / "dataset.json", required=("file_ending",))
    return require_images(source / "labelsTr", dataset["file_ending"])


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


def decimate_folder(source: Path, target: Path, *, factor: int, axis: int) -> None:
    """HR segmentations on the thick slices, by the label at each slice's centre (ties: lower side, in every case)."""
    for file, labels, properties in read_folder(source, labels=True):
        thick = degrade_labels(torch.from_numpy(labels), factor, axis).numpy()
        FILES().write_seg(thick, str(target / file.name), scale_slice_geometry(properties, axis, factor))


def read_folder(folder: Path, *, labels: bool) -> Iterator[tuple[Path, np.ndarray, dict[str, Any]]]:
    """Every NIfTI file of a folder by name, with its values (D, H, W) and geometry; nothing without such a folder."""
    for file in image_files(folder, FILE_ENDING) if folder.is_dir() else ():
        values, properties = FILES().read_seg(str(file)) if labels else FILES().read_images([str(file)])
        yield file, values[0], properties

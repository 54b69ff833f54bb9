"""What is compared on what: the settings of one work folder, and the names of what lies in it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import SimpleITK as sitk

from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.raw_files import require_images
from rehrseg_nnunet.nnunet.safe_files import write_atomically

CONFIGURATION = "3d_fullres"
OFFSETS = {
    "thick": 500,
    "interpolated": 600,
    "true_hr": 700,
    "interpolated_true_labels": 800,
    "interpolated_sparse": 400,
    "pairs": 300,
}
DATASET_NAME = re.compile(r"Dataset(\d{3})_.+", re.ASCII)
FILE_ENDING = ".nii.gz"
MIN_CASES = 5  # nnU-Net makes five folds


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
        patch: patch size of the thick slices (z, y, x), r times as many slices for the thin ones; None: nnU-Net's own.
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
    patch: tuple[int, ...] | None = None

    @property
    def array_axis(self) -> int:
        """Array axis of the thick slices in the files."""
        return AXES[self.axis]

    def dataset(self, data: str) -> str:
        """Name of a dataset of `OFFSETS`."""
        suffix = "" if data == "thick" else f"_{data}"
        stem = self.source.name.split("_", 1)[1]
        return f"Dataset{_number(self.source.name) + OFFSETS[data]:03d}_{stem}_r{self.factor}{self.axis}{suffix}"

    def folder(self, kind: str, dataset: str) -> Path:
        """Folder of a dataset in nnUNet_raw or nnUNet_preprocessed."""
        return self.work / f"nnUNet_{kind}" / dataset

    def plans_name(self, plans: str = "") -> str:
        """Name of the plans of a key of `PLANS`."""
        return f"rehrseg{self.preset.upper()}" + (f"_{plans}" if plans else "")

    def patch_size(self, data: str) -> list[int] | None:
        """Patch size (z, y, x) that the dataset's plans shall have, None for nnU-Net's own."""
        if self.patch is None:
            return None
        slices, *in_plane = self.patch
        return [slices if data == "thick" else slices * self.factor, *in_plane]

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


def _number(dataset: str) -> int:
    """Number of a dataset by its name, 0 if the name is not nnU-Net's."""
    match = DATASET_NAME.fullmatch(dataset)
    return int(match[1]) if match else 0


def labelled_files(source: Path) -> list[Path]:
    """Label files of a raw dataset, in order of their names.

    Raises:
        ValueError: its dataset.json cannot be used.
        FileNotFoundError: it is no nnU-Net dataset, or without labels.
    """
    dataset = read_dataset_json(source / "dataset.json", required=("file_ending",))
    return require_images(source / "labelsTr", dataset["file_ending"])

"""What is compared on what: the settings of one work folder, and the names of what lies in it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.quality.benchmark import FILE_ENDING, labelled_files
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.safe_files import write_atomically

CONFIGURATION = "3d_fullres"
FOLD = 0
# datasets in the order of their numbers, and the ends of their names
SUFFIXES = {
    "pairs": "pairs",
    "source": "lowfield",
    "privileged": "better",
    "both": "both",
    "synthesised": "synthesised",
    "everyone": "everyone",
}
SIMULATED = {"pairs": "pairs", "source": "source", "privileged": "privileged", "both": "pairs", "everyone": "source"}
# what the results of segmentations do not have in their names, and those of pairs do not depend on
OF_SEGMENTATIONS = ("cases", "test_cases", "baseline_epochs", "keeper", "teacher_epochs", "keeper_epochs")
IN_NAMES = ("work", "number", "continued_epochs")
MIN_CASES = 5  # nnU-Net makes five folds


@dataclass(frozen=True, kw_only=True)
class GuidanceBenchmark:
    """What is compared on what; one work folder can hold several of these, with numbers of their own.

    Attributes:
        work: folder for everything.
        source: nnU-Net raw dataset folder of the better scans, with labels.
        number: of the dataset of pairs; those of the other datasets follow.
        pairs: its first cases, in order of their names, which become pairs.
        cases: number of the next ones, which segmentations are trained and validated on.
        test_cases: number of cases after these that no training sees.
        resolution: voxels of the weaker scanner, mm.
        snr: of the weaker scanner.
        contrast: share of the contrast that it leaves.
        preset: name of the preset.
        plans: name of the plans.
        batch_size: of all trainings.
        patch: patch size (z, y, x); None: nnU-Net's own.
        precision: of the networks' layers in training, see `quality.launch`; images are scored in float32, and the test
            set is predicted as nnU-Net does.
        teacher_epochs: of teachers; None: what the settings say.
        keeper_epochs: of keepers and their rival; None: what the settings say.
        baseline_epochs: of the baseline.
        continued_epochs: of all that goes on from it.
        keeper: key of the row of `rows.ROWS` that guides.
    """

    work: Path
    source: Path
    number: int
    pairs: int
    cases: int
    test_cases: int
    resolution: float
    snr: float
    contrast: float
    preset: str
    plans: str
    batch_size: int
    patch: tuple[int, ...] | None
    precision: str
    teacher_epochs: int | None
    keeper_epochs: int | None
    baseline_epochs: int
    continued_epochs: int
    keeper: str

    def dataset(self, data: str) -> str:
        """Name of a dataset of `SUFFIXES`: that of its number in nnUNet_raw if there is one."""
        number = self.number + list(SUFFIXES).index(data)
        found = sorted((self.work / "nnUNet_raw").glob(f"Dataset{number:03d}_*"))
        stem = self.source.name.split("_", 1)[1]
        return found[0].name if found else f"Dataset{number:03d}_{stem}_{SUFFIXES[data]}"

    def folder(self, kind: str, data: str) -> Path:
        """Folder of a dataset in nnUNet_raw or nnUNet_preprocessed."""
        return self.work / f"nnUNet_{kind}" / self.dataset(data)

    def plans_name(self, plans: str = "") -> str:
        """Name of the plans of a key of `PLANS`."""
        return f"{self.plans}_{plans}" if plans else self.plans

    def case_range(self, data: str) -> tuple[str, str]:
        """Cases of a simulated dataset and its test cases as FIRST:LAST, the second "" if there are none."""
        first = 0 if data in ("pairs", "everyone") else self.pairs
        last = self.pairs + (0 if data == "pairs" else self.cases)
        tested = data != "pairs" and self.test_cases > 0
        return f"{first}:{last}", f"{last}:{last + self.test_cases}" if tested else ""

    def check(self, *, segmentations: bool = True) -> None:
        """Check the source and the numbers.

        Args:
            segmentations: whether there are any, which need cases of their own.

        Raises:
            ValueError: too few cases, files of another ending, or numbers that leave no room for the datasets.
        """
        highest = 999 - len(SUFFIXES) + 1
        if not 1 <= self.number <= highest:
            raise ValueError(f"--number must be from 1 to {highest}, got {self.number}")
        ending = read_dataset_json(self.source / "dataset.json", required=("file_ending",))["file_ending"]
        if ending != FILE_ENDING:
            raise ValueError(f"--source must have files that end in {FILE_ENDING}, got {ending}")
        least = {"pairs": MIN_CASES} | ({"cases": MIN_CASES, "test_cases": 1} if segmentations else {})
        for name, number in least.items():
            if getattr(self, name) < number:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least {number}, got {getattr(self, name)}")
        available, wanted = len(labelled_files(self.source)), sum(getattr(self, name) for name in least)
        if wanted > available:
            raise ValueError(f"--pairs, --cases and --test-cases must be at most {available} together, got {wanted}")

    def remember(self, *, write: bool = True, segmentations: bool = True) -> None:
        """Write down what the datasets are of, or, without `write`, only compare.

        Args:
            write: whether something may be new.
            segmentations: whether segmentations are concerned, which more depends on.

        Raises:
            ValueError: they are of something else, or, without `write`, of nothing.
        """
        settings = {key: str(value) for key, value in asdict(self).items() if key not in IN_NAMES}
        settings["source"] = self.source.name
        own = {name: settings.pop(name) for name in OF_SEGMENTATIONS}
        self._remember(self.work / f"guidance_{self.number}.json", settings, write=write)
        if segmentations:
            self._remember(self.work / f"guidance_{self.number}_segmentations.json", own, write=write)

    def _remember(self, file: Path, mine: dict[str, str], *, write: bool) -> None:
        if not file.is_file():
            if not write:
                raise ValueError(f"{file} is missing: there is nothing to report")
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(mine, indent=2))
        theirs = json.loads(file.read_text())
        for name in sorted(mine.keys() | theirs.keys()):
            if theirs.get(name) != mine.get(name):
                raise ValueError(
                    f"{file} was made with {name} {theirs.get(name)}, got {mine.get(name)}; take another --number"
                )

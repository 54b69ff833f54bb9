"""Preprocessed cases that nothing can be trained on are named before training, all at once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

from rehrseg_nnunet.cases.case_dataset import PreprocessedCases
from rehrseg_nnunet.nnunet.dataset_json import read_dataset_json
from rehrseg_nnunet.nnunet.label_values import describe_unknown, known_labels, unknown_labels
from rehrseg_nnunet.nnunet.raw_files import group_channels, has_all_channels

REMEDY = (
    "mend the files, find others with nnUNetv2_plan_and_preprocess --verify_dataset_integrity, and preprocess again"
)
MOST_NAMED = 5


def check_cases(
    dataset: PreprocessedCases,
    identifiers: Iterable[str],
    *,
    label_manager: LabelManager,
    raw_folder: Path | None = None,
) -> None:
    """Refuse images with values that are not finite, labels that dataset.json does not have, and missing channels.

    Args:
        dataset: nnU-Net's dataset of preprocessed cases.
        identifiers: cases to look at.
        label_manager: nnU-Net's, of dataset.json.
        raw_folder: nnU-Net's raw dataset, to name the files that the cases came from; None names preprocessed files.

    Raises:
        ValueError: names the bad cases (the first ones, and how many more), what is wrong, their files and the remedy.
    """
    known = {-1, *known_labels(label_manager)}
    raw = RawFiles.of_dataset(raw_folder)
    found = {identifier: _problem(dataset, identifier, known, raw) for identifier in identifiers}
    problems = {identifier: problem for identifier, problem in found.items() if problem}
    if not problems:
        return
    named = [f"{i} {problems[i]} ({raw.name(dataset, i)})" for i in list(problems)[:MOST_NAMED]]
    more = f" and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
    raise ValueError(f"cases must have finite images and known labels: {'; '.join(named)}{more}; {REMEDY}")


class RawFiles(NamedTuple):
    """Files that preprocessed cases came from.

    Attributes:
        files: image files of each case, in order of their channels, then the label; empty where they are not at hand.
        ending: of files that are named by their channel; None where dataset.json lists files of any name.
    """

    files: dict[str, list[str]]
    ending: str | None

    @classmethod
    def of_dataset(cls, folder: Path | None) -> RawFiles:
        """Files of a raw dataset as nnU-Net finds them; nothing is read but dataset.json."""
        if folder is None or not (folder / "dataset.json").is_file():
            return cls({}, None)
        content = read_dataset_json(folder / "dataset.json", required=("file_ending",))
        ending = content["file_ending"]
        if "dataset" in content:
            found = get_filenames_of_train_images_and_targets(str(folder), content)
            return cls({case: [*files["images"], files["label"]] for case, files in found.items()}, None)
        if not (folder / "imagesTr").is_dir():
            return cls({}, ending)
        cases, _ = group_channels(folder / "imagesTr", ending)
        labels = folder / "labelsTr"
        return cls({case: [*images, str(labels / f"{case}{ending}")] for case, images in cases.items()}, ending)

    def name(self, dataset: PreprocessedCases, identifier: str) -> str:
        """The raw files of a case, or its preprocessed ones."""
        return ", ".join(self.files.get(identifier, [str(Path(dataset.source_folder, identifier))]))

    def lacks_channels(self, identifier: str, channels: int) -> bool:
        """Whether a case was made of other channels than 0 to C - 1, which nnU-Net numbers as it finds them."""
        if self.ending is None or identifier not in self.files:
            return False
        return not has_all_channels(self.files[identifier][:-1], self.ending, channels=channels)


def _problem(dataset: PreprocessedCases, identifier: str, known: set[int], raw: RawFiles) -> str | None:
    image, labels, _, _ = dataset.load_case(identifier)
    if not np.isfinite(image[:]).all():
        return "has nan or inf in its image"
    unknown = unknown_labels(labels[:], known)
    if unknown:
        return describe_unknown(unknown)
    if raw.lacks_channels(identifier, len(image)):
        return f"must have channels 0000 to {len(image) - 1:04d}, which nnU-Net numbers as it finds them"
    return None

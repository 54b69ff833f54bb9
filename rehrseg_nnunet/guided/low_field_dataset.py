"""A raw dataset of low-field twins, of the scans they were made of, or of both as pairs."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from rehrseg_nnunet.guided.finite_files import finite_files_of
from rehrseg_nnunet.guided.foreground import foreground, inside_masks
from rehrseg_nnunet.guided.image_scores import as_json, image_scores, mean_of_defined
from rehrseg_nnunet.guided.intensity_range import PERCENTILES
from rehrseg_nnunet.guided.low_field import LowField, case_generator, low_field_twin
from rehrseg_nnunet.guided.paired_channels import KEY
from rehrseg_nnunet.guided.report import best_line
from rehrseg_nnunet.nnunet.each_case import for_each_case
from rehrseg_nnunet.nnunet.label_values import known_labels, label_manager_of
from rehrseg_nnunet.nnunet.raw_cases import RawCase, read_labels
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import WholeFiles

logger = logging.getLogger(__name__)

Channels = Literal["pairs", "source", "privileged"]
BETTER = "_better"  # added to a channel's name
REPORT = "low_field.json"


@dataclass(frozen=True)
class FieldDataset:
    """What to write.

    Attributes:
        scanner: the weaker one.
        seed: of noise and bias fields, together with a case's name.
        channels: `source` (the twins), `privileged` (the scans as they are), or `pairs` of both.
        dataset: dataset.json of the scans, which are no pairs.
        cases: of training.
        test_cases: with labels, as the test set.
    """

    scanner: LowField
    seed: int
    channels: Channels
    dataset: Mapping[str, Any]
    cases: Sequence[RawCase]
    test_cases: Sequence[RawCase] = ()

    @property
    def ending(self) -> str:
        """File ending of the dataset."""
        return self.dataset["file_ending"]

    @property
    def channel_names(self) -> list[str]:
        """Names of the dataset's channels: twins have those of the scans, which have names of their own."""
        names = [self.dataset["channel_names"][str(c)] for c in range(len(self.dataset["channel_names"]))]
        better = [f"{name}{BETTER}" for name in names]
        return {"pairs": [*names, *better], "source": names, "privileged": better}[self.channels]

    def case_name(self, case: RawCase) -> str:
        """Name of a case."""
        return Path(case.images[0]).name.removesuffix(f"_0000{self.ending}")


class FieldCase(NamedTuple):
    """What was noticed in a case.

    Attributes:
        scores: of the twin.
        spacing_mm: of the scan's voxels.
    """

    scores: dict[str, float]
    spacing_mm: list[float]


def write_field_dataset(plan: FieldDataset, target: Path, *, name: str, processes: int) -> dict[str, float]:
    """Write the dataset, and what its twins are like, to a folder that exists.

    Args:
        plan: what to write.
        target: folder of the dataset.
        name: of the dataset.
        processes: cases at a time.

    Returns:
        Means over the cases of PSNR, SSIM and NMSE of twins against their scans, after the best line a x + b; of those
        that are defined, nan if none is.

    Raises:
        ValueError: files that cannot be used, or values below 0.
        UnwrittenFileError: the disk did not take a file.
    """
    reader = finite_files_of({"file_ending": plan.ending}, Path(plan.cases[0].images[0]))
    written: dict[str, FieldCase] = {}
    for part, cases in (("Tr", plan.cases), ("Ts", plan.test_cases)):
        by_name = {plan.case_name(case): case for case in cases}
        folders = [target / f"{kind}{part}" for kind in ("images", "labels")]
        if not by_name:
            continue
        for folder in folders:
            folder.mkdir()

        def write(case: str, by_name: dict[str, RawCase] = by_name, part: str = part) -> FieldCase:
            return write_field_case(plan, by_name[case], target, part, reader=reader)

        written |= for_each_case(write, list(by_name), processes=processes, title=part)
    _say_doubts(written, plan.scanner)
    scores = {case: found.scores for case, found in written.items()}
    means = {name: mean_of_defined([row[name] for row in scores.values()]) for name in next(iter(scores.values()))}
    content = {"settings": {**asdict(plan.scanner), "seed": plan.seed}, "mean": means, "cases": scores}
    write_atomically(target / REPORT, json.dumps(as_json(content), indent=2))
    write_atomically(target / "dataset.json", json.dumps(_dataset_json(plan, name), indent=2))
    return means


def _say_doubts(written: Mapping[str, FieldCase], scanner: LowField) -> None:
    """Warn of what may not be meant."""
    undefined = [case for case, found in written.items() if not all(map(math.isfinite, found.scores.values()))]
    if undefined:
        logger.warning(
            "%s: scores of the twin are not defined, as for a scan with one value everywhere, and no mean counts them; "
            "look at the scan, nothing can be learnt from one value",
            listed(undefined),
        )
    fine = [case for case, found in written.items() if scanner.resolution_mm <= min(found.spacing_mm)]
    if fine:
        logger.warning(
            "%s: no voxel edge of the scan is shorter than --resolution %g mm, so that the twin is as sharp as the "
            "scan; give a larger one",
            listed(fine),
            scanner.resolution_mm,
        )


def _dataset_json(plan: FieldDataset, name: str) -> dict[str, Any]:
    names = plan.channel_names
    scanner = plan.scanner
    description = (
        f"{plan.dataset.get('description', '')}; simulated at low field: voxels of {scanner.resolution_mm:g} mm, SNR "
        f"{scanner.snr:g}, contrast {scanner.contrast:g}; settings and scores are in {REPORT}"
    )
    privileged = [str(number) for number in range(len(names) // 2, len(names))]
    return {
        **plan.dataset,
        **({KEY: privileged} if plan.channels == "pairs" else {}),
        "name": name,
        "channel_names": {str(number): channel for number, channel in enumerate(names)},
        "numTraining": len(plan.cases),
        "description": description.removeprefix("; "),
    }


def write_field_case(plan: FieldDataset, case: RawCase, target: Path, part: str, *, reader: WholeFiles) -> FieldCase:
    """Write the channels and the label of one case.

    Args:
        plan: what to write.
        case: files of the scan.
        target: folder of the dataset.
        part: "Tr" or "Ts".
        reader: for the files.

    Raises:
        ValueError: a file cannot be used.
    """
    image, properties = reader.read_images(case.images)
    known = known_labels(label_manager_of(plan.dataset))
    read_labels(case, reader=reader, shape=image.shape[1:], properties=properties, known=known)  # only checks them
    name = plan.case_name(case)
    spacing_mm = [float(length) for length in properties["spacing"]]
    twin = _twin(case, image, spacing_mm, plan.scanner, random=case_generator(plan.seed, name))
    stem = target / f"images{part}" / name
    if plan.channels != "privileged":
        for number, channel in enumerate(twin):
            reader.write_image(channel, f"{stem}_{number:04d}{plan.ending}", properties)
    if plan.channels != "source":
        first = len(image) if plan.channels == "pairs" else 0
        for number, file in enumerate(case.images, start=first):
            shutil.copyfile(file, f"{stem}_{number:04d}{plan.ending}")
    if case.label is not None:
        shutil.copyfile(case.label, target / f"labels{part}" / f"{name}{plan.ending}")
    return FieldCase(_scores(image, twin), spacing_mm)


def _twin(
    case: RawCase, image: np.ndarray, spacing_mm: Sequence[float], scanner: LowField, *, random: np.random.Generator
) -> np.ndarray:
    """(C, D, H, W) twins of all channels, masked as the scan is."""
    head, inside = foreground(image), inside_masks(image)
    twins = []
    for file, channel in zip(case.images, image, strict=True):
        if channel.min() < 0 or channel[head].max() <= 0:
            got = f"{channel.min():g} to {channel.max():g}"
            raise ValueError(f"{file} must be a magnitude image, with values from 0 on, got values from {got}")
        twin = low_field_twin(channel, spacing_mm, scanner, head=head, random=random)
        twins.append(np.where(inside, twin, 0))
    return np.stack(twins)


def _scores(image: np.ndarray, twin: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM and NMSE where data are, after each twin's best line, means over the channels."""
    inside = inside_masks(image)
    low, high = np.percentile(image[:, inside], PERCENTILES, axis=1)
    fitted = np.concatenate([best_line(x[None], y[None], inside) for x, y in zip(twin, image, strict=True)])
    return image_scores(image, fitted, inside, (high - low).tolist())

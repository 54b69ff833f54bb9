"""Make a thick-slice dataset with known truth from an isotropic one."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.nnunet.label_values import known_labels, label_manager_of
from rehrseg_nnunet.nnunet.new_dataset import check_free_number, new_raw_dataset, read_raw_dataset_json
from rehrseg_nnunet.nnunet.raw_cases import RawCase, raw_cases, read_labels
from rehrseg_nnunet.nnunet.raw_files import listed
from rehrseg_nnunet.nnunet.safe_files import write_atomically
from rehrseg_nnunet.nnunet.whole_files import WholeFiles, whole_files_of
from rehrseg_nnunet.slices.geometry import MIN_ANISOTROPY, scale_slice_geometry
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

logger = logging.getLogger(__name__)

AXES = {"z": 0, "y": 1, "x": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `rehrseg simulate`."""
    parser.add_argument("-d", required=True, metavar="SOURCE", help="number or name of a dataset in nnUNet_raw")
    parser.add_argument("-o", required=True, type=int, metavar="ID", help="number of the dataset to write")
    parser.add_argument("--factor", type=int, default=4, help="HR slices per thick slice (default: 4)")
    parser.add_argument(
        "--axis", choices=AXES, default="z", help="file axis that gets thick slices: z is the last one (default: z)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the dataset and print its name."""
    target = simulate(args.d, args.o, factor=args.factor, axis=args.axis)
    print(f"wrote {target}")


def simulate(source: str, dataset_id: int, *, factor: int, axis: str) -> Path:
    """Write `Dataset<ID>_<source name>_r<factor><axis>` beside the source dataset (paper section 4.1.1).

    Images are blurred with the slice profile and decimated; labels by `degrade_labels`, every other case with upper
    ties. The truth, cropped at the end of the axis to a multiple of the factor, is kept in `imagesTrHR`, `labelsTrHR`
    (and `...Ts...` where there is a test set): LR and HR files cover the same field of view.

    Returns:
        The folder that was written.

    Raises:
        ValueError: impossible factor or number, a dataset.json or a file that cannot be used, or a case of fewer slices
            than the factor.
        FileNotFoundError: no images, or no labels of some.
        FileExistsError: the number is taken.
        NotImplementedError: a dataset whose files lie elsewhere.
    """
    if factor < 2:
        raise ValueError(f"--factor must be at least 2, got {factor}")
    folder = find_dataset(nnunet_folder("nnUNet_raw"), source)
    check_free_number(dataset_id)
    with new_raw_dataset(dataset_id, f"{folder.name.split('_', 1)[1]}_r{factor}{axis}") as (partial, target):
        _write_dataset(folder, partial, name=target.name, factor=factor, axis=AXES[axis])
    return target


def _write_dataset(source: Path, target: Path, *, name: str, factor: int, axis: int) -> None:
    dataset = read_raw_dataset_json(source)
    ending = dataset["file_ending"]
    there = [part for part in ("Tr", "Ts") if _is_there(source / f"images{part}", part)]
    parts = {part: raw_cases(source, part, dataset) for part in there}  # ties take turns in their order
    if "Tr" not in parts:
        raise FileNotFoundError(f"{source / 'imagesTr'} is missing; {source.name} has no training images")
    example = Path(parts["Tr"][0].images[0])
    reader = whole_files_of({"file_ending": ending}, example)  # one that keeps the files' order of axes
    known = known_labels(label_manager_of(dataset, source=str(source / "dataset.json")))
    thick: list[str] = []
    with logging_redirect_tqdm():  # warnings on lines of their own
        for part, cases in parts.items():
            for number, case in enumerate(tqdm(cases, desc=part)):
                options = {"factor": factor, "axis": axis, "upper_ties": number % 2 == 1}
                if thicken_case(case, target, part, reader=reader, known=known, **options):
                    thick.append(Path(case.images[0]).name)
    if thick:
        logger.warning(
            "%s: %s had thick slices already, so the truth has them too; simulate from nearly isotropic scans",
            source,
            listed(thick),
        )
    description = dataset.get("description", source.name)
    dataset |= {
        "name": name,
        "numTraining": len(parts["Tr"]),
        "description": f"{description}; thick slices simulated by a factor of {factor} along array axis {axis}, labels "
        "at the slices' centres; the truth is in imagesTrHR and labelsTrHR",
    }
    write_atomically(target / "dataset.json", json.dumps(dataset, indent=2))


def _is_there(images: Path, part: str) -> bool:
    """Whether there is such a part of the dataset; many have a folder for test images without any."""
    return images.is_dir() and (part == "Tr" or any(images.iterdir()))


def thicken_case(
    case: RawCase,
    target: Path,
    part: str,
    *,
    reader: WholeFiles,
    known: Collection[int],
    factor: int,
    axis: int,
    upper_ties: bool,
) -> bool:
    """Write one case with thick slices, and as it was, cropped to a multiple of the factor.

    Args:
        case: files that must be whole and on one grid.
        target: dataset folder.
        part: "Tr" or "Ts".
        reader: for the files.
        known: labels of dataset.json.
        factor: r.
        axis: array axis (0: the file's last axis).
        upper_ties: see `degrade_labels`.

    Returns:
        Whether the case had thick slices before.

    Raises:
        ValueError: a file cannot be used; named.
    """
    image, properties = reader.read_images(case.images)
    slices = image.shape[1 + axis]
    if slices < factor:
        raise ValueError(f"{case.images[0]} must have at least {factor} slices along the simulated axis, got {slices}")
    labels = read_labels(case, reader=reader, shape=image.shape[1:], properties=properties, known=known)
    grids = {"": scale_slice_geometry(properties, axis, factor), "HR": properties}
    keep = (slice(None),) * axis + (slice(0, slices - slices % factor),)
    for file, channel in zip(case.images, image, strict=True):
        hr = channel[keep]
        volumes = {"": degrade(torch.from_numpy(hr), factor, axis).numpy(), "HR": hr}
        for resolution, volume in volumes.items():
            output = target / f"images{part}{resolution}" / Path(file).name
            reader.write_image(volume, str(output), grids[resolution])
    was_thick = _is_thick(properties["spacing"])
    if labels is None or case.label is None:
        return was_thick
    hr = labels[keep]
    lr = degrade_labels(torch.from_numpy(hr), factor, axis, upper_ties=upper_ties).numpy()
    for resolution, volume in {"": lr, "HR": hr}.items():
        reader.write_seg(volume, str(target / f"labels{part}{resolution}" / case.label.name), grids[resolution])
    return was_thick


def _is_thick(spacing_mm: Sequence[float]) -> bool:
    """Whether one axis has longer voxels than both others, by the measure of models with thick slices."""
    largest, second, _ = sorted(spacing_mm, reverse=True)
    return largest >= MIN_ANISOTROPY * second

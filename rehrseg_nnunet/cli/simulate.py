"""Make a thick-slice dataset with known truth from an isotropic one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import SimpleITK as sitk
import torch
from tqdm import tqdm

from rehrseg_nnunet.nnunet.folders import find_dataset, nnunet_folder
from rehrseg_nnunet.slices.geometry import scale_slice_geometry
from rehrseg_nnunet.slices.slice_profile import degrade, degrade_labels

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
        ValueError: impossible factor or number, or an image that is not 3D or has fewer slices than the factor.
        FileExistsError: the number is taken.
        NotImplementedError: a dataset whose files lie elsewhere.
    """
    if factor < 2:
        raise ValueError(f"--factor must be at least 2, got {factor}")
    if not 1 <= dataset_id <= 999:
        raise ValueError(f"-o must be a number between 1 and 999, got {dataset_id}")
    raw = nnunet_folder("nnUNet_raw")
    folder = find_dataset(raw, source)
    _check_free(dataset_id)
    target = raw / f"Dataset{dataset_id:03d}_{folder.name.split('_', 1)[1]}_r{factor}{axis}"
    partial = raw / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        _write_dataset(folder, partial, name=target.name, factor=factor, axis=AXES[axis])
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _check_free(dataset_id: int) -> None:
    """nnU-Net refuses to work with a number that has several names in any of its folders."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        folder = os.environ.get(variable)
        taken = sorted(path.name for path in Path(folder).glob(f"Dataset{dataset_id:03d}_*")) if folder else []
        if taken:
            raise FileExistsError(f"-o must be a free number, but {variable} already has {taken[0]}")


def _write_dataset(source: Path, target: Path, *, name: str, factor: int, axis: int) -> None:
    try:
        dataset = json.loads((source / "dataset.json").read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{source / 'dataset.json'} is missing; {source.name} is no nnU-Net dataset") from None
    if "dataset" in dataset:
        raise NotImplementedError(f"{source.name} lists its files in dataset.json; they must lie in imagesTr, labelsTr")
    ending = dataset["file_ending"]
    for subfolder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        if not (source / subfolder).is_dir():
            continue
        (target / subfolder).mkdir()
        (target / f"{subfolder}HR").mkdir()
        files = sorted((source / subfolder).glob(f"*{ending}"))
        labels = "labels" in subfolder
        for number, file in enumerate(tqdm(files, desc=subfolder)):
            lr, hr = thicken(file, factor=factor, axis=axis, labels=labels, upper_ties=number % 2 == 1)
            sitk.WriteImage(hr, str(target / f"{subfolder}HR" / file.name), True)
            sitk.WriteImage(lr, str(target / subfolder / file.name), True)
    dataset["name"] = name
    dataset["description"] = (
        f"{dataset.get('description', source.name)}; thick slices simulated by a factor of {factor} along array axis "
        f"{axis}, labels at the slices' centres; the truth is in imagesTrHR and labelsTrHR"
    )
    (target / "dataset.json").write_text(json.dumps(dataset, indent=2))


def thicken(
    file: Path, *, factor: int, axis: int, labels: bool, upper_ties: bool = False
) -> tuple[sitk.Image, sitk.Image]:
    """Read one file and return it with thick slices and as it was, cropped to a multiple of the factor.

    Args:
        file: 3D image or label file that SimpleITK reads.
        factor: r.
        axis: array axis (0: the file's last axis).
        labels: it is a label file; intensities are written as float32.
        upper_ties: see `degrade_labels`.

    Raises:
        ValueError: the file is not 3D, is a label map of non-integers, or has fewer slices than the factor.
    """
    image = sitk.ReadImage(str(file))
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"{file} must be a 3D image with one value per voxel, got {image.GetDimension()} dimensions and "
            f"{image.GetNumberOfComponentsPerPixel()} values"
        )
    slices = image.GetSize()[2 - axis]
    if slices < factor:
        raise ValueError(f"{file} must have at least {factor} slices along the simulated axis, got {slices}")
    keep = [slice(None)] * 3
    keep[2 - axis] = slice(0, slices - slices % factor)
    hr = image[tuple(keep)]
    values = torch.from_numpy(sitk.GetArrayFromImage(hr))
    if labels:
        integers = values.to(torch.int32)
        if not torch.equal(integers.to(values.dtype), values):
            raise ValueError(f"{file} must hold integer labels")
        lr = degrade_labels(integers, factor, axis, upper_ties=upper_ties).to(values.dtype)
    else:
        hr = sitk.Cast(hr, sitk.sitkFloat32)
        lr = degrade(values.float(), factor, axis)
    return with_scaled_slices(lr, hr, axis, factor), hr


def with_scaled_slices(values: torch.Tensor, reference: sitk.Image, axis: int, scale: float) -> sitk.Image:
    """Image of values whose slices along an array axis are `scale` times as long as those of the reference."""
    properties = {
        "spacing": reference.GetSpacing()[::-1],
        "sitk_stuff": {
            "spacing": reference.GetSpacing(),
            "origin": reference.GetOrigin(),
            "direction": reference.GetDirection(),
        },
    }
    geometry = scale_slice_geometry(properties, axis, scale)["sitk_stuff"]
    image = sitk.GetImageFromArray(values.numpy())
    image.SetSpacing(geometry["spacing"])
    image.SetOrigin(geometry["origin"])
    image.SetDirection(geometry["direction"])
    return image

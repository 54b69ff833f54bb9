"""What the centre rule's ties give away: labels interpolated between thick slices, where they are meant and beside it.

    python -m benchmarks.ties --source nnUNet_raw/Dataset004_Hippocampus --factors 2 3 4 --skip 120 --every 3

For even r all ties to the lower side put labels half an HR voxel below the image. Interpolated by signed distance and
compared with the true HR labels, they then fit better half an HR voxel lower than where they are meant; with the sides
taking turns, where they are meant. For odd r there are no ties. Mean Dice over cases and classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.interpolate import CubicSpline

from rehrseg_nnunet.cli.simulate import AXES
from rehrseg_nnunet.evaluation.tables import format_table
from rehrseg_nnunet.self_sr.export import label_agreement
from rehrseg_nnunet.slices.shape_interpolation import signed_distance
from rehrseg_nnunet.slices.slice_profile import degrade_labels

PLACES = {"where meant": 0.0, "half an HR voxel lower": -0.5}


def main(argv: list[str] | None = None) -> None:
    """Print one row per factor and axis."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="isotropic nnU-Net raw dataset folder (.nii.gz)")
    parser.add_argument("--factors", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--skip", type=int, default=0, help="cases to leave out at the start, in order of their names")
    parser.add_argument("--every", type=int, default=1, help="take every n-th of the others")
    args = parser.parse_args(argv)
    if min(args.factors) < 2 or args.skip < 0 or args.every < 1:
        parser.error("--factors must be at least 2, --skip at least 0 and --every at least 1")
    files = sorted((args.source / "labelsTr").glob("*.nii.gz"))[args.skip :: args.every]
    if not files:
        parser.error(f"no cases are left of {args.source / 'labelsTr'}")
    volumes = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))).astype(np.int16) for file in files]
    print(format_table([table_row(volumes, factor, axis) for factor in args.factors for axis in args.axes]))


def table_row(volumes: list[np.ndarray], factor: int, axis: str) -> dict[str, str]:
    """Mean Dice of all cases by the rule for ties and the place; nearest neighbour for comparison."""
    scores: dict[str, list[float]] = {}
    for number, volume in enumerate(volumes):
        truth = _whole_slices(volume, factor, AXES[axis])
        classes = [(int(value),) for value in np.unique(truth)]
        for rule, upper_ties in (("lower ties", False), ("ties in turn", number % 2 == 1)):
            thick = degrade_labels(torch.from_numpy(truth), factor, 0, upper_ties=upper_ties).numpy()
            for place, offset in PLACES.items():
                labels = interpolated(thick, factor, offset=offset)
                scores.setdefault(f"{rule}, {place}", []).append(label_agreement(labels, truth, classes))
            nearest = np.repeat(thick, factor, axis=0)
            scores.setdefault(f"{rule}, nearest", []).append(label_agreement(nearest, truth, classes))
    return {"r": str(factor), "axis": axis, **{name: f"{np.mean(values):.3f}" for name, values in scores.items()}}


def _whole_slices(volume: np.ndarray, factor: int, axis: int) -> np.ndarray:
    """Slices first, cropped to a multiple of the factor."""
    slices = np.moveaxis(volume, axis, 0)
    return np.ascontiguousarray(slices[: len(slices) - len(slices) % factor])


def interpolated(thick: np.ndarray, factor: int, *, offset: float) -> np.ndarray:
    """Labels on r times as many slices by signed distance, as if they lay `offset` HR voxels from where they are meant.

    Args:
        thick: (D, H, W) label map on slices r isotropic pixels thick.
        factor: r.
        offset: along the slices, in HR voxels.
    """
    centres = factor * np.arange(len(thick)) + (factor - 1) / 2 + offset
    wanted = np.clip(np.arange(factor * len(thick)), centres[0], centres[-1])
    values = np.unique(thick)
    distances = (signed_distance(thick == value, (factor, 1, 1)) for value in values)
    splines = [CubicSpline(centres, distance, bc_type="natural")(wanted) for distance in distances]
    return values[np.argmax(splines, axis=0)]


if __name__ == "__main__":
    main()

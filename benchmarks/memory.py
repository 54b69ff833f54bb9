"""Memory of a prediction with many labels on a fine grid, beside stock nnU-Net's on the same grid: ratios from one run.

    python -m benchmarks.memory --labels 100 --factor 6

predicts a random scan in processes of their own, with networks of one convolution, and prints each one's peak: what
is held beyond the peak of the same program's prediction of a tiny scan. Stock nnU-Net's model was planned on the fine
grid and gets the scan there. `rehrseg predict` gets thick slices, and writes them on the HR grid, on that of a file, on
voxels of a given size, and on two grids in one pass. Nothing is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from rehrseg_nnunet.evaluation.tables import format_table
from rehrseg_nnunet.prediction.parse_grids import parse_grids
from rehrseg_nnunet.prediction.predictor import HRPredictor

STOCK = "nnUNetv2_predict"
SPACING = "1,1.02,1.04"  # of the fine grid, mm, x first; along z those of the thick slices over r
CASES = {
    "stock, planned on the fine grid": (STOCK, ()),
    "--grid hr": ("rehrseg", ("hr",)),
    "--grid FILE, shifted": ("rehrseg", ("FILE",)),
    "--grid 0.98,0.98,0.98": ("rehrseg", ("0.98,0.98,0.98",)),
    "--grid hr native": ("rehrseg", ("hr", "native")),
}
TINY = 16


class _Network(nn.Module):
    def __init__(self, heads: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, heads, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x)


def main() -> None:
    """Measure and print a table."""
    args = _arguments()
    kinds = {kind: name for name, (kind, _) in reversed(CASES.items())}  # the first case of each
    unloaded = {kind: _peak(args, name, TINY) for kind, name in kinds.items()}
    peaks = {name: _peak(args, name, args.size) - unloaded[kind] for name, (kind, _) in CASES.items()}
    stock = next(iter(peaks.values()))
    print(
        format_table(
            [
                {"prediction": name, "peak (MB)": f"{peak:.0f}", "of stock": f"{peak / stock:.2f}"}
                for name, peak in peaks.items()
            ]
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=100, help="with the background")
    parser.add_argument("--factor", type=int, default=6, help="r")
    parser.add_argument("--size", type=int, default=96, help="voxels of the fine grid along each axis, multiple of r")
    return parser.parse_args()


def _peak(args: argparse.Namespace, name: str, size: int) -> float:
    """MB that a process of its own held at most: forked, so that nothing is imported again."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_predict, (args, name, size))


def _predict(args: argparse.Namespace, name: str, size: int) -> float:
    kind, grids = CASES[name]
    slices = size // args.factor
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fine, thick = (size, size, slices * args.factor), (size, size, slices)
        _write_scan(folder / "fine.nii.gz", fine, factor=1, shift_mm=0.4)
        image = folder / "case_0000.nii.gz"
        _write_scan(image, fine if kind == STOCK else thick, factor=1 if kind == STOCK else args.factor)
        predictor = _predictor(kind, args, tuple(g.replace("FILE", str(folder / "fine.nii.gz")) for g in grids))
        with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):  # nnU-Net's lines
            predictor.predict_from_files_sequential([[str(image)]], [str(folder / "case")])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _write_scan(file: Path, size: tuple[int, int, int], *, factor: int, shift_mm: float = 0.0) -> None:
    values = np.random.default_rng(0).normal(size=size[::-1]).astype(np.float32)
    image = sitk.GetImageFromArray(values)
    spacing = [float(step) for step in SPACING.split(",")]
    image.SetSpacing([*spacing[:2], spacing[2] * factor])
    image.SetOrigin([shift_mm, shift_mm, spacing[2] * (factor - 1) / 2 + shift_mm])
    sitk.WriteImage(image, str(file))


def _predictor(kind: str, args: argparse.Namespace, grids: tuple[str, ...]) -> Any:
    options = {"device": torch.device("cpu"), "allow_tqdm": False}
    predictor = nnUNetPredictor(**options) if kind == STOCK else HRPredictor(**options, grid=parse_grids(grids))
    factor = 1 if kind == STOCK else args.factor
    manager = PlansManager(_plans(factor))
    network = _Network(args.labels)
    labels = {"background": 0, **{f"label {n}": n for n in range(1, args.labels)}}
    dataset = {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"}
    configuration = manager.get_configuration("3d_fullres")
    weights = [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, weights, dataset, "", (0, 1, 2))
    return predictor


def _plans(factor: int) -> dict[str, Any]:
    x, y, z = (float(step) for step in SPACING.split(","))
    configuration: dict[str, Any] = {
        "data_identifier": "memory",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [max(4, 24 // factor), 24, 24],
        "spacing": [z * factor, y, x],
        "normalization_schemes": ["NoNormalization"],
        "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    }
    if factor > 1:
        configuration["rehrseg"] = {"factor": factor}
    for kind in ("data", "seg", "probabilities"):
        options = {"is_seg": kind == "seg", "order": 1, "order_z": 0, "force_separate_z": None}
        configuration[f"resampling_fn_{kind}"] = "resample_data_or_seg_to_shape"
        configuration[f"resampling_fn_{kind}_kwargs"] = options
    return {
        "dataset_name": "Dataset001_Memory",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


if __name__ == "__main__":
    main()

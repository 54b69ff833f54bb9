"""Quality on real MRI with known truth: one resumable command from an isotropic dataset to the tables.

    python benchmarks/quality.py --source Dataset004_Hippocampus --work /scratch/quality

simulates thick slices, plans, preprocesses and trains through nnU-Net's own commands, and prints Dice and HD95 of the
validation cases of fold 0, on the thick slices and against the true thin ones. A step whose result is there is skipped,
a training that was stopped goes on from nnU-Net's last checkpoint. Rows with equal numbers of optimiser steps: the
continued baseline, REHRSeg (both baseline + stage-2 epochs) and nnU-Net on interpolated volumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from rehrseg_nnunet.cli.simulate import AXES, with_scaled_slices
from rehrseg_nnunet.cli.trainers import ensure_trainer_path
from rehrseg_nnunet.evaluation.comparison import brief_table, compare_fold
from rehrseg_nnunet.presets import load_preset, preset_names, scale_width
from rehrseg_nnunet.shape_interpolation import interpolate_labels
from rehrseg_nnunet.slice_profile import degrade_labels, interpolate

CONFIGURATION, FOLD = "3d_fullres", "0"
THICK_OFFSET, INTERPOLATED_OFFSET = 500, 600
ENVIRONMENT = {"nnUNet_n_proc_DA": "2", "nnUNet_def_n_proc": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def main() -> None:
    """Run what is missing and print the tables."""
    args = _arguments()
    bench = Benchmark(args)
    bench.prepare()
    bench.train()
    bench.report()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="isotropic nnU-Net raw dataset folder")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything; run again to resume")
    parser.add_argument("--cases", type=int, default=60, help="first cases of the source, in order of their names")
    parser.add_argument("--factor", type=int, default=4)
    parser.add_argument("--axis", choices=AXES, default="z")
    parser.add_argument("--preset", choices=preset_names(), default="cpu")
    parser.add_argument("--baseline-epochs", type=int, default=10, help="a length that nnU-Net has a trainer for")
    parser.add_argument("--stage-2-epochs", type=int, default=10, help="likewise; the sum too")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


class Benchmark:
    """The steps, each a no-op where its result is there."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.plans = f"rehrseg{args.preset.upper()}"
        self.source_name = args.source.name
        self.number = int(self.source_name.split("_")[0].removeprefix("Dataset"))
        stem = self.source_name.split("_", 1)[1]
        self.thick = f"Dataset{self.number + THICK_OFFSET:03d}_{stem}_r{args.factor}{args.axis}"
        suffix = f"{stem}_r{args.factor}{args.axis}_interpolated"
        self.interpolated = f"Dataset{self.number + INTERPOLATED_OFFSET:03d}_{suffix}"
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            (args.work / name).mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(args.work.resolve() / name)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        ensure_trainer_path()

    def folder(self, kind: str, dataset: str) -> Path:
        """Folder of a dataset below one of nnU-Net's three."""
        return self.args.work / f"nnUNet_{kind}" / dataset

    def fold(self, dataset: str, trainer: str) -> Path:
        """Folder of a training."""
        return self.folder("results", dataset) / f"{trainer}__{self.plans}__{CONFIGURATION}" / f"fold_{FOLD}"

    def prepare(self) -> None:
        """Subset, thick slices, interpolated volumes, nnU-Net's planning and preprocessing, plans of the preset."""
        args = self.args
        if not self.folder("raw", self.source_name).is_dir():
            copy_first_cases(args.source, self.folder("raw", self.source_name), args.cases)
        if not self.folder("raw", self.thick).is_dir():
            thick_id = str(self.number + THICK_OFFSET)
            options = ["--factor", str(args.factor), "--axis", args.axis]
            run(["rehrseg", "simulate", "-d", str(self.number), "-o", thick_id, *options])
        if not self.folder("raw", self.interpolated).is_dir():
            interpolate_dataset(self.folder("raw", self.thick), self.folder("raw", self.interpolated), args)
        for dataset in (self.thick, self.interpolated):
            if not (self.folder("preprocessed", dataset) / f"nnUNetPlans_{CONFIGURATION}").is_dir():
                number = str(int(dataset[7:10]))
                run(["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "2", "-np", "2"])
        if not (self.folder("preprocessed", self.thick) / f"{self.plans}.json").is_file():
            run(["rehrseg", "plan", "-d", self.thick, "--preset", args.preset, "-o", self.plans])
        self._plans_of_interpolated()

    def _plans_of_interpolated(self) -> None:
        """nnU-Net's plans for the interpolated volumes at the thick-slice plans' width and batch size."""
        file = self.folder("preprocessed", self.interpolated) / f"{self.plans}.json"
        if file.is_file():
            return
        thick = json.loads((self.folder("preprocessed", self.thick) / f"{self.plans}.json").read_text())
        plans = json.loads((self.folder("preprocessed", self.interpolated) / "nnUNetPlans.json").read_text())
        configuration = plans["configurations"][CONFIGURATION]
        plans["plans_name"] = self.plans
        configuration["batch_size"] = thick["configurations"][CONFIGURATION]["batch_size"]
        scale_width(configuration["architecture"]["arch_kwargs"], load_preset(self.args.preset).network_width)
        file.write_text(json.dumps(plans, indent=2))

    def train(self) -> None:
        """All trainings, in the order in which they build on each other."""
        baseline, stage_2 = self.args.baseline_epochs, self.args.stage_2_epochs
        self.baseline = self._train(self.thick, trainer_name("nnUNetTrainer", baseline))
        self.continued = self._train(self.thick, trainer_name("ContinuedBaselineTrainer", stage_2))
        self.self_sr = self._train(self.thick, "SelfSRTrainer", done="self_sr_report.json")
        self.rehrseg = self._train(self.thick, trainer_name("REHRSegTrainer", stage_2))
        self.on_interpolated = self._train(self.interpolated, trainer_name("nnUNetTrainer", baseline + stage_2))

    def _train(self, dataset: str, trainer: str, *, done: str = "validation/summary.json") -> Path:
        fold = self.fold(dataset, trainer)
        command = ["nnUNetv2_train", dataset, CONFIGURATION, FOLD, "-tr", trainer, "-p", self.plans]
        command += ["-device", self.args.device, "--npz"]
        if not (fold / "checkpoint_final.pth").is_file():
            run([*command, "--c"] if list(fold.glob("checkpoint_*.pth")) else command)
        elif not (fold / done).is_file() or (done.startswith("validation") and not list(fold.glob("validation/*.npz"))):
            run([*command, "--val"])
        return fold

    def report(self) -> None:
        """Print the self-SR table and the LR and HR tables; files in `<work>/comparison`."""
        thick = self.folder("raw", self.thick)
        output = self.args.work / "comparison"
        decimate_folder(
            self.on_interpolated / "validation",
            output / "interpolated_lr" / "validation",
            self.args.factor,
            AXES[self.args.axis],
        )
        lr, hr = compare_fold(
            raw_folder=thick,
            fold_folders={
                "REHRSeg": self.rehrseg,
                "nnU-Net": self.baseline,
                "nnU-Net, continued": self.continued,
            },
            factor=self.args.factor,
            axis=AXES[self.args.axis],
            output_folder=output,
            lr_folders={"nnU-Net on interpolated volumes": output / "interpolated_lr" / "validation"},
            hr_folders={"nnU-Net on interpolated volumes": self.on_interpolated / "validation"},
        )
        print("\nSelf-SR, mean over validation cases\n")
        scored = json.loads((self.self_sr / "self_sr_report.json").read_text())
        for comparison, methods in scored["comparisons"].items():
            for method, scores in methods.items():
                print(f"{comparison:20}{method:28}" + "".join(f"{k} {v:8.4f}  " for k, v in scores.items()))
        print(f"\nThick slices (LR), {self._steps()}\n\n{brief_table(lr, against='REHRSeg')}")
        print(f"\nThin slices (HR), against the true labels\n\n{brief_table(hr, against='REHRSeg')}")
        print(f"\np: paired two-sided Wilcoxon test against REHRSeg; everything per case is in {output}")

    def _steps(self) -> str:
        first, second = self.args.baseline_epochs, self.args.stage_2_epochs
        return f"baseline {first} epochs of 250 steps, all others {first + second}; fold {FOLD}, one run each"


def trainer_name(base: str, epochs: int) -> str:
    """nnU-Net's name for a training length."""
    return f"{base}_{epochs}epoch" + ("s" if epochs > 1 else "")


def run(command: list[str]) -> None:
    """Run one command of this Python's environment, print it first, stop where it fails."""
    print("$", *command, flush=True)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, check=True, env=environment)


def copy_first_cases(source: Path, target: Path, cases: int) -> None:
    """Copy the first cases of a raw dataset, in order of their names."""
    dataset = json.loads((source / "dataset.json").read_text())
    ending = dataset["file_ending"]
    labels = sorted((source / "labelsTr").glob(f"*{ending}"))[:cases]
    for subfolder in ("imagesTr", "labelsTr"):
        (target / subfolder).mkdir(parents=True)
    for label in labels:
        shutil.copy(label, target / "labelsTr")
        for image in (source / "imagesTr").glob(f"{label.name.removesuffix(ending)}_????{ending}"):
            shutil.copy(image, target / "imagesTr")
    (target / "dataset.json").write_text(json.dumps({**dataset, "numTraining": len(labels)}))


def interpolate_dataset(thick: Path, target: Path, args: argparse.Namespace) -> None:
    """Thick slices interpolated to thin ones: images by cubic B-spline, labels by signed distances."""
    partial = target.with_name(f".{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    axis = AXES[args.axis]
    for file, image in _read_folder(thick / "imagesTr"):
        fine = interpolate(torch.from_numpy(sitk.GetArrayFromImage(image)), args.factor, axis)
        _write(with_scaled_slices(fine, image, axis, 1 / args.factor), partial / "imagesTr" / file.name)
    for file, image in _read_folder(thick / "labelsTr"):
        labels = sitk.GetArrayFromImage(image)
        fine = interpolate_labels(labels, args.factor, axis, spacing_mm=image.GetSpacing()[::-1])
        _write(
            with_scaled_slices(torch.from_numpy(fine), image, axis, 1 / args.factor), partial / "labelsTr" / file.name
        )
    shutil.copy(thick / "dataset.json", partial)
    partial.rename(target)


def decimate_folder(source: Path, target: Path, factor: int, axis: int) -> None:
    """HR segmentations on the thick slices, by the label at each slice's centre."""
    for file, image in _read_folder(source):
        labels = torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.int16))
        _write(with_scaled_slices(degrade_labels(labels, factor, axis), image, axis, factor), target / file.name)


def _read_folder(folder: Path) -> Iterator[tuple[Path, sitk.Image]]:
    for file in sorted(folder.glob("*.nii.gz")):
        yield file, sitk.ReadImage(str(file))


def _write(image: sitk.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(file), True)


if __name__ == "__main__":
    main()

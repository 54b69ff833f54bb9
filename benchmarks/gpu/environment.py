"""The machine in one line, and the files that all other tasks take for granted."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.data import DEFAULT, SMALL
from benchmarks.gpu.scheduler import Context
from benchmarks.gpu.trainings import build

PACKAGES = ("rehrseg-nnunet", "nnunetv2", "numpy", "monai", "batchgeneratorsv2", "blosc2")


def describe(context: Context) -> Iterator[dict[str, Any]]:
    """Versions, device, cores."""
    cuda = context.settings.device == "cuda"
    properties = torch.cuda.get_device_properties(0) if cuda else None
    yield {
        "device": "cpu" if properties is None else properties.name,
        "memory_gib": None if properties is None else round(properties.total_memory / 2**30, 1),
        "capability": None if properties is None else f"{properties.major}.{properties.minor}",
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        **{package: version(package) for package in PACKAGES},
    }


def make_workspace(context: Context) -> Iterator[dict[str, Any]]:
    """Interpolated cases, and what others start from, of no step: a baseline, and teachers of both plans."""
    data = context.settings.data
    for dataset, cases in data.interpolate():
        yield {"interpolated": dataset, "cases": cases}
    os.environ["nnUNet_results"] = str(data.results("baseline"))
    teachers = [("GuidanceTeacherTrainer", data.pairs, plans) for plans in (SMALL, DEFAULT)]
    for name, dataset, plans in [("nnUNetTrainer", data.thick, SMALL), *teachers]:
        trainer = build(name, dataset, plans, device="cpu")
        trainer.initialize()
        trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
        plans_file = Path(trainer.output_folder).parent / "plans.json"  # as every training leaves it
        plans_file.write_text(json.dumps(trainer.plans_manager.plans))

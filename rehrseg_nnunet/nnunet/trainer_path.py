"""Where nnU-Net finds the trainers of this package."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

VARIABLE = "nnUNet_extTrainer"


def trainers_folder() -> Path:
    """Folder with REHRSeg's nnU-Net trainers, in a wheel as in an editable install."""
    return Path(str(files("rehrseg_nnunet.trainers").joinpath("__init__.py"))).resolve().parent


def ensure_trainer_path() -> None:
    """Append the trainers' folder to nnUNet_extTrainer of this process and its children, once."""
    folder = str(trainers_folder())
    paths = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    if folder not in paths:
        os.environ[VARIABLE] = os.pathsep.join([*paths, folder])

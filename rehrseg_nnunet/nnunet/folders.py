"""nnU-Net's folders: one clear line when an environment variable is missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path


def nnunet_folder(variable: str) -> Path:
    """Folder that one of nnUNet_raw, nnUNet_preprocessed and nnUNet_results names.

    Raises:
        ValueError: the variable is not set.
        FileNotFoundError: its folder does not exist.
    """
    value = os.environ.get(variable)
    if not value:
        raise ValueError(f"environment variable {variable} must be set, e.g. export {variable}=/data/{variable}")
    folder = Path(value)
    if not folder.is_dir():
        raise FileNotFoundError(f"environment variable {variable} must name an existing folder, got {value}")
    return folder


def check_input(path: Path) -> None:
    """Refuse an input that is not there, before nnU-Net and PyTorch are imported, which takes seconds.

    Raises:
        FileNotFoundError: names it.
    """
    if not path.exists():
        raise FileNotFoundError(f"-i must be an existing file or folder, got {path}")


def check_model_path(path: Path) -> None:
    """Refuse a model that is not there.

    Raises:
        FileNotFoundError: neither a folder nor a file.
    """
    if not path.exists():
        raise FileNotFoundError(f"-m must be an existing folder or zip file, got {path}")


def check_folder_name(folder: Path, endings: Sequence[str]) -> None:
    """Refuse a new folder that is called like a file: a file was meant.

    Args:
        folder: what -o names.
        endings: of the files that are written there.

    Raises:
        ValueError: names the folder.
    """
    if folder.name.lower().endswith(tuple(endings)) and not folder.exists():
        raise ValueError(
            f"-o must be a folder, whose files are called like cases and labels, got {folder}; use -o {folder.parent}"
        )


def raw_folder(dataset_name: str) -> Path | None:
    """A dataset's folder in nnUNet_raw, None where that is not set: training does not need it."""
    value = os.environ.get("nnUNet_raw")
    return Path(value, dataset_name) if value else None


def find_dataset(base: Path, name_or_id: str) -> Path:
    """Dataset folder below one of nnU-Net's folders, by full name or by number.

    Raises:
        FileNotFoundError: no such dataset.
        ValueError: several datasets have this number.
    """
    if name_or_id.startswith("Dataset"):
        found = [base / name_or_id] if (base / name_or_id).is_dir() else []
    else:
        try:
            prefix = f"Dataset{int(name_or_id):03d}_"
        except ValueError:
            raise ValueError(f"-d must be a number or a name like Dataset004_Hippocampus, got {name_or_id}") from None
        found = sorted(path for path in base.iterdir() if path.is_dir() and path.name.startswith(prefix))
    if not found:
        there = ", ".join(sorted(path.name for path in base.glob("Dataset*_*"))) or "none"
        raise FileNotFoundError(f"dataset {name_or_id} was not found in {base}; there are: {there}")
    if len(found) > 1:
        raise ValueError(f"dataset number {name_or_id} must be unique, got {[path.name for path in found]} in {base}")
    return found[0]
